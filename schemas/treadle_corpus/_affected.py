"""Which rows a change can move in or out of a version: those with the same messages, now or before. Pure.

Rows decide on each other where their normalised messages are equal (leaks and duplicates), see `_decide`. So a version decides the rows
that changed, and whoever is or was tied to them so. What else ties rows, as near-duplicates do, is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from treadle_corpus._rows import Key, RowMeta

__all__ = ["Affected"]


class Affected:
    """The ties between the rows of a corpus, and which rows were affected since `settle`."""

    def __init__(self, rows: Mapping[Key, RowMeta]) -> None:
        """Nothing is affected at first."""
        self._tied: dict[bytes, Key | set[Key]] = {}
        """The one row, or the rows, by digest of the normalised messages."""
        self._stirred: set[Key] = set()
        for key, meta in rows.items():
            self._tie(key, meta)

    def change(self, key: Key, before: RowMeta | None, after: RowMeta) -> None:
        """A row changed."""
        self._stirred.add(key)
        if before is not None and before.twin != after.twin:
            self._stirred.update(self._rows(before.twin))
            self._untie(key, before.twin)
        if before is None or before.twin != after.twin:
            self._tie(key, after)

    def take(self, rows: Mapping[Key, RowMeta]) -> set[Key]:
        """All rows that are affected."""
        found = set(self._stirred)
        for digest in {rows[key].twin for key in self._stirred}:
            found.update(self._rows(digest))
        return found

    def settle(self) -> None:
        """A version was made of them: nothing is affected any more."""
        self._stirred.clear()

    def _rows(self, digest: bytes) -> Iterator[Key]:
        held = self._tied.get(digest)
        if isinstance(held, set):
            yield from held
        elif held is not None:
            yield held

    def _tie(self, key: Key, meta: RowMeta) -> None:
        held = self._tied.get(meta.twin)
        if held is None:
            self._tied[meta.twin] = key
        elif isinstance(held, set):
            held.add(key)
        else:
            self._tied[meta.twin] = {held, key}

    def _untie(self, key: Key, digest: bytes) -> None:
        held = self._tied.get(digest)
        if isinstance(held, set):
            held.discard(key)
        elif held == key:
            del self._tied[digest]
