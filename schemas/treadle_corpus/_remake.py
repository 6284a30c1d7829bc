"""A corpus made again beside itself, from its own history, without some episodes: every version under its number, and what comes after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from treadle_schemas.records import GradedRow

from treadle_corpus import _disk, _files
from treadle_corpus._bodies import Bodies, Entry, pack
from treadle_corpus._control import Control
from treadle_corpus._moments import Moment
from treadle_corpus._parts import PartKey, PartMeta, part_name
from treadle_corpus._recovery import begin
from treadle_corpus._rows import Decision, Key, RowMeta, encode_key
from treadle_corpus.manifest import Manifest
from treadle_corpus.policy import Policy
from treadle_corpus.writer import CorpusWriter

__all__ = ["Remake"]

T = TypeVar("T")

_BLOCK: Final = 500
"""Bodies held in memory at once."""


class Remake(CorpusWriter):
    """The writer of the new corpus. What it takes over is decided already, so it needs no filter; who is a duplicate of whom is decided
    anew, without the rows that are left out.
    """

    def __init__(self, path: Path, source: Path, control: Control, left_out: Callable[[str], bool]) -> None:
        """Begin at `path`, where nothing is. `left_out` tells which episodes are. Raises CorpusLocked, CorpusFull, CorpusUnwritable."""
        lock = _files.Lock(path)
        try:
            fresh = Control(workspace=control.workspace, workspace_created_at=control.workspace_created_at)
            super().__init__(path, lock, begin(path, fresh), Policy())
        except BaseException:
            lock.release()
            raise
        self._source = Bodies(source)
        self._left_out = left_out
        self._taken: dict[Key, RowMeta] = {}
        """Rows as the source had them when they were taken over last."""
        self._numbers: dict[int, int] = {}
        """The new number of each body, by its number in the source."""

    def take(self, moment: Moment) -> Manifest | None:
        """Become what the source was at that moment, and make the version if it was one.

        Raises CorpusDamaged, CorpusFull, CorpusUnwritable.
        """
        state = moment.state
        # selector: decisions come with the rows, so none is asked for
        control = msgspec.structs.replace(
            self._control,
            offsets=state.control.offsets,
            watermark_ms=state.control.watermark_ms,
            metric_kinds=state.control.metric_kinds,
            selector=state.control.selector,
        )
        parts = {key: state.parts[key] for key in moment.parts if not self._left_out(key[0])}
        for block in _blocks(list(parts.items())):
            self._fold(control, [], dict(block))
        changed = [
            (key, meta)
            for key in moment.rows
            if not self._left_out(key[0]) and not _same(self._taken.get(key), meta := state.rows[key])
        ]
        for rows in _blocks(changed):
            self._fold(control, rows, {})
        self._taken.update(changed)
        if control != self._control:
            self._commit("fold", control, {})
        if moment.version is None:
            return None
        told = moment.version.manifest
        self.policy = told.policy
        return self.finish(
            _Decided(state.control.selector),
            pending=told.pending,
            code_version=told.code_version,
            created_at=told.created_at,
            number=told.version,
        )

    def sync(self) -> None:
        """All of it is on disk when this returns, what no version has yet too. Raises CorpusFull, CorpusUnwritable."""
        self._bodies.sync()
        self._journal.sync()
        for folder in ("index", "bodies", "versions", "tags", "."):
            _disk.sync(self.path / folder)

    def _fold(
        self, control: Control, rows: Sequence[tuple[Key, RowMeta]], parts: dict[PartKey, tuple[int, PartMeta]]
    ) -> None:
        self._copy((number, part_name(key)) for key, (number, _) in parts.items())
        self._copy((meta.bulk, encode_key(key)) for key, meta in rows)
        changed: dict[Key, RowMeta] = {}
        for key, meta in rows:
            mine = self._state.rows.get(key)
            changed[key] = msgspec.structs.replace(
                meta,
                bulk=self._numbers[meta.bulk],
                status=mine.status if mine else "pending",
                published=mine.published if mine else b"",
            )
        placed = {key: (self._numbers[number], meta) for key, (number, meta) in parts.items()}
        self._commit("fold", control, changed, placed)
        self._seal()

    def _copy(self, named: Iterable[tuple[int, bytes]]) -> None:
        missing = {number: name for number, name in named if number not in self._numbers}
        found = self._source.read(list(missing))
        entries = [Entry(name, pack(body)) for name, body in zip(missing.values(), found, strict=True)]
        first = self._bodies.add(entries)
        self._numbers.update(zip(missing, range(first, first + len(entries)), strict=True))


def _blocks(items: list[T]) -> Iterator[list[T]]:
    return (items[start : start + _BLOCK] for start in range(0, len(items), _BLOCK))


class _Decided:
    """The selector of a version whose decisions are known."""

    def __init__(self, identity: str) -> None:
        self.identity = identity

    def select(self, rows: Sequence[GradedRow]) -> list[Decision]:
        """Never asked: see `Remake.take`."""
        raise AssertionError(f"{len(rows)} rows are undecided, and their version is made")


def _same(one: RowMeta | None, two: RowMeta) -> bool:
    """Whether both say the same of a row, but for what a version made of it."""
    return one is not None and msgspec.structs.replace(one, status=two.status, published=two.published) == two
