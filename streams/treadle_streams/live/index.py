"""One writable index: rows, text and vectors that are committed in an order that survives a kill between any two steps.

A commit:

1. the changed rows' vectors are written into the matrix, and reach the disk
2. the text index takes over the changed rows' words, and commits
3. the database commits rows, grades, places in the matrix and positions

What is in no committed row is in no answer. A kill before 3 leaves words and vectors of records that are then read again: the same rows
get the same ids, and what they said is replaced.

Writing all anew (`renew`), after an erasure:

1. the database forgets the rows, and commits: they are in no answer
2. a text index and a matrix of the next generation are made of the rows that are left
3. the database names that generation, and commits
4. the files of other generations are removed, the database and its log are written anew
5. the database says that the erasure is done, and commits

A kill before 5 begins again at 1.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from treadle_schemas.canonical import dumps, loads
from treadle_schemas.codec import to_json
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.live.embedding import Embedder
from treadle_streams.live.erased import Erased
from treadle_streams.live.errors import ErasureWaiting, IndexFull
from treadle_streams.live.folder import IndexFolder
from treadle_streams.live.pushdown import facets_of
from treadle_streams.live.store import FORMAT, Row, Rows, writing
from treadle_streams.live.text import TextWriter
from treadle_streams.live.vectors import VectorFile

__all__ = ["LiveIndex"]

_LOG: Final = logging.getLogger(__name__)

_EMBED_AT_ONCE: Final = 256
_SCRUB_S: Final = 20.0
"""How long the database is tried to be written anew while readers are in the way. A search takes milliseconds."""


class LiveIndex:
    """The index of one workspace, opened for writing. The caller holds the folder's lock."""

    def __init__(
        self,
        folder: IndexFolder,
        settings: WorkspaceSettings,
        embedder: Embedder | None = None,
        *,
        rebuild: bool = False,
        keep_vectors: bool = False,
    ) -> None:
        """Open it; where there is none, or one of another format or of a workspace that was made anew, an empty one is made.

        Vectors of another embedder are made anew, without an embedder they are removed; `keep_vectors` leaves them as they are, for
        whoever adds no rows. Raises IndexFull.
        """
        self.folder = folder
        self.embedder = embedder
        self._failed = False
        with writing(folder.path):
            self._open(settings, rebuild=rebuild, keep_vectors=keep_vectors)

    def _open(self, settings: WorkspaceSettings, *, rebuild: bool, keep_vectors: bool) -> None:
        folder = self.folder
        expected = {"format": FORMAT, "workspace": settings.workspace, "created_at": settings.created_at}
        self.rows = self._opened(expected, settings, rebuild)
        self.erased = Erased(folder.path)
        self.set_settings(settings)
        self._generation = int(self.rows.meta("generation") or 1)
        folder.remove_others(self._generation)
        self._text = TextWriter(folder.text(self._generation))
        if not keep_vectors:
            self._use_embedder()
        self._vectors = self._vectors_of(self._generation)
        if self.embedder is not None:
            self._embed_missing()

    def close(self) -> None:
        """Close it; what was not committed is forgotten."""
        try:
            self.rows.rollback()
            self._text.close()
        except (sqlite3.Error, ValueError):
            if not self._failed:
                raise
            # the write that failed before said why; what is committed is whole
        finally:
            self.rows.close()

    def set_settings(self, settings: WorkspaceSettings) -> None:
        """Keep the workspace's settings, which searches need."""
        self.rows.set_meta("settings", dumps(to_json(settings)).decode())

    def commit(self, changed: Iterable[int], positions: Mapping[tuple[str, int], int]) -> None:
        """Make a batch visible and durable; `changed` are the rows whose text may have changed.

        Raises IndexFull; the index has to be opened again then.
        """
        with self.writing():
            self.rows.begin()
            rows = [row for number in changed if (row := self.rows.by_id(number)) is not None]
            self._embed(rows)  # 1
            if rows:  # 2
                for row in rows:
                    self._index(row)
                self._text.commit()
            self.rows.set_positions(positions)  # 3
            self.rows.commit()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around whatever changes rows before `commit`. Raises IndexFull."""
        try:
            with writing(self.folder.path):
                yield
        except IndexFull:
            self._failed = True
            raise

    def rollback(self) -> None:
        """Forget the batch."""
        self._text.rollback()
        self.rows.rollback()

    @property
    def erasures_due(self) -> bool:
        """Whether subjects were erased whose rows may still be there."""
        self.erased.refresh()
        return int(self.rows.meta("erasures") or 0) < self.erased.count

    def erase(self, uncovered: Sequence[str] = ()) -> int:
        """Carry out what is to be erased, and forget whole episodes besides. Returns how many rows left. No batch may be open.

        Raises ErasureWaiting where a reader does not let the database be written anew, IndexFull; a repeated call goes on.
        """
        with self.writing():
            return self._erase(uncovered)

    def _erase(self, uncovered: Sequence[str]) -> int:
        self.erased.refresh()
        due = self.erased.count
        episodes = [*uncovered, *(episode for episode in self.rows.episodes() if self.erased.covers(episode, None))]
        for subject in self.rows.subjects():
            if self.erased.covers_subject(subject):
                episodes += self.rows.episodes_of(subject)
        episodes = list(dict.fromkeys(episodes))
        # those that are written down only now are carried out as well
        due += sum(not self.erased.covers(episode, None) for episode in episodes)
        self.erased.add(episodes=episodes)
        self.rows.begin()
        left = 0
        for episode in episodes:
            left += len(self.rows.of_episode(episode))
            self.rows.delete_episode(episode)
        self.rows.commit()
        self.renew()
        self.rows.set_meta("erasures", str(due))
        return left

    def renew(self) -> None:
        """Write all files anew, so that nothing is in them that was deleted. Raises ErasureWaiting."""
        following = self._generation + 1
        self.folder.remove_others(self._generation)
        text = TextWriter(self.folder.text(following))
        old, self._text = self._text, text
        old.close()
        vectors = self._vectors_of(following)
        self.rows.begin()
        slots: list[tuple[int | None, int]] = []
        for row in self.rows.shown():
            self._index(row)
            if vectors is not None and self._vectors is not None and row.slot is not None:
                vectors.put(len(slots), self._vectors.get(row.slot))
                slots.append((len(slots), row.id))
        text.commit()
        if vectors is not None:
            vectors.sync()
            self.rows.clear_slots()
            self.rows.set_slots(slots)
        self.rows.set_meta("generation", str(following))
        self.rows.commit()
        self._generation, self._vectors = following, vectors
        self.folder.remove_others(following)
        deadline = time.monotonic() + _SCRUB_S
        while not self.rows.scrub():
            if time.monotonic() > deadline:
                raise ErasureWaiting(
                    f"live index {self.folder.path}: a reader holds the old database; repeat the erasure"
                )

    def _opened(self, expected: Mapping[str, str], settings: WorkspaceSettings, rebuild: bool) -> Rows:
        self.folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.folder.rows.exists():
            found = None if not rebuild else "a rebuild was asked for"
            try:
                rows = Rows(self.folder.rows, writable=True)
            except sqlite3.Error as err:
                found = str(err)
            else:
                found = found or rows.unusable(expected)
                if found is None:
                    return rows
                rows.close()
            _LOG.warning("making the live index of %s anew: %s", self.folder.workspace, found)
        self.folder.clear()
        TextWriter(self.folder.text(1)).close()
        return Rows.create(self.folder.rows, {**expected, "settings": dumps(to_json(settings)).decode()})

    def _index(self, row: Row) -> None:
        if row.hidden:
            self._text.remove(row.id)
        else:
            said = loads((row.captured or "{}").encode())
            self._text.put(row.id, row.text, row.asked or "", facets_of(said))

    # ---- vectors

    def _use_embedder(self) -> None:
        name = "" if self.embedder is None else self.embedder.name
        known = self.rows.meta("embedder") or ""
        if known != name:
            self.rows.begin()
            self.rows.clear_slots()
            self.rows.set_meta("embedder", name)
            self.rows.set_meta("dimension", "0")
            self.rows.commit()
            self.folder.vectors(self._generation).unlink(missing_ok=True)

    def _vectors_of(self, generation: int) -> VectorFile | None:
        dimension = int(self.rows.meta("dimension") or 0)
        return VectorFile(self.folder.vectors(generation), dimension) if dimension else None

    def _embed_missing(self) -> None:
        missing = [row.id for row in self.rows.shown() if row.slot is None]
        for start in range(0, len(missing), _EMBED_AT_ONCE):
            self.rows.begin()
            self._embed(
                [row for n in missing[start : start + _EMBED_AT_ONCE] if (row := self.rows.by_id(n)) is not None]
            )
            self.rows.commit()

    def _embed(self, rows: Sequence[Row]) -> None:
        if self.embedder is None:
            return
        slots: list[tuple[int | None, int]] = [(None, row.id) for row in rows if row.hidden and row.slot is not None]
        if self._vectors is not None:
            for row in rows:
                if row.hidden and row.slot is not None:
                    self._vectors.clear(row.slot)
        shown = [row for row in rows if not row.hidden]
        free = self.rows.free_slot()
        for start in range(0, len(shown), _EMBED_AT_ONCE):
            some = shown[start : start + _EMBED_AT_ONCE]
            found = self.embedder([row.asked or "" for row in some])
            if self._vectors is None:
                self.rows.set_meta("dimension", str(found.shape[1]))
                self._vectors = VectorFile(self.folder.vectors(self._generation), found.shape[1])
            for row, vector in zip(some, found, strict=True):
                slot = row.slot
                if slot is None:
                    slot, free = free, free + 1
                    slots.append((slot, row.id))
                self._vectors.put(slot, vector)
        if self._vectors is not None:
            self._vectors.sync()
        self.rows.set_slots(slots)
