"""The indexer: follows the topics of one workspace and keeps its live index up to them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from treadle.log import Admin, TailReader, read
from treadle_schemas.topics import topic

from treadle_streams import workspaces
from treadle_streams.live.embedding import Embedder
from treadle_streams.live.fold import INPUTS, Fold
from treadle_streams.live.folder import IndexFolder
from treadle_streams.live.index import LiveIndex

__all__ = ["Counts", "Indexer", "run_indexer"]

_LOG: Final = logging.getLogger(__name__)

_POLL_S: Final = 0.1
_COMMIT_S: Final = 0.25
"""Rows are searchable this long after they were read, and the time of a commit. A commit costs some 20 ms, so not at once."""
_IDLE_COMMIT_S: Final = 5.0
"""Positions alone, which clock records move each second, are written this often."""
_BATCH_RECORDS: Final = 2_000
"""Records after which a batch is committed while there is more to read: 8 MB of texts at 4 KB."""
_ERASURE_LOOK_S: Final = 0.5

Partition = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What an index holds, in rows."""

    shown: int
    hidden: int
    """Not in any answer: may not be recalled, without text, or known by a grade alone."""
    waiting: int
    """Wait for parts of their messages."""


class Indexer:
    """The one writer of a workspace's index. Use it with `with`; it can be killed at any time.

    Raises WorkspaceMissing, LogError, IndexInUse, IndexFull.
    """

    def __init__(
        self, servers: str, home: Path, workspace: str, *, embedder: Embedder | None = None, rebuild: bool = False
    ) -> None:
        self._servers = servers
        self._workspace = workspace
        self._embedder = embedder
        self._rebuild = rebuild
        self._folder = IndexFolder(home, workspace)

    def __enter__(self) -> Self:
        settings = workspaces.get(self._servers, self._workspace)
        self._lock = self._folder.locked()
        self._lock.__enter__()
        try:
            self._index = LiveIndex(self._folder, settings, self._embedder, rebuild=self._rebuild)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        self._settings = settings
        self._partitions = [(topic(self._workspace, kind), n) for kind in INPUTS for n in range(settings.partitions)]
        self._fold = Fold(self._index.rows, settings, self._index.erased)
        self._scanned: set[tuple[str, str]] = set()
        self._positions = self._begin()
        self._reader = TailReader(self._servers, self._positions)
        self._records = 0
        self._committed_at = self._looked_at = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._reader.close()
            self._index.close()
        finally:
            self._lock.__exit__(kind, value, traceback)

    def step(self, timeout_s: float = _POLL_S) -> int:
        """Read for at most `timeout_s`, and commit where it is time to. How many records were read."""
        records = self._reader.poll(timeout_s, _BATCH_RECORDS)
        if records:
            with self._index.writing():
                self._index.rows.begin()
                for record in records:
                    self._fold.take(record)
            self._records += len(records)
        since_s = time.monotonic() - self._committed_at
        if self._fold.changed or self._index.rows.dirty:
            if self._records >= _BATCH_RECORDS or since_s >= _COMMIT_S:
                self.commit()
        elif since_s >= _IDLE_COMMIT_S:
            self.commit()
        if time.monotonic() - self._looked_at >= _ERASURE_LOOK_S:
            self._looked_at = time.monotonic()
            self._tend()
        return len(records)

    def commit(self) -> None:
        """Make what was read searchable."""
        self._index.commit(self._fold.changed, self._reader.positions)
        self._fold.changed.clear()
        self._records = 0
        self._committed_at = time.monotonic()
        if self._fold.uncovered or self._fold.parts_erased:
            self._index.erase(self._fold.uncovered)
            self._fold.uncovered.clear()
            self._fold.parts_erased = False
        if self._fold.newest_grading > self._settings.grading_version:
            self._settings = workspaces.get(self._servers, self._workspace)
            self._index.set_settings(self._settings)
            self._fold.newest_grading = self._settings.grading_version
        if self._fold.waiting:
            self._read_again()

    def catch_up(self, timeout_s: float = 60.0) -> Counts:
        """Read to the ends that the topics have now, and commit. Raises TimeoutError."""
        ends = Admin(self._servers).stable_offsets(self._partitions)
        deadline = time.monotonic() + timeout_s
        while any(self._reader.positions[where] < end for where, end in ends.items()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the live index of {self._workspace} was not at {ends} in {timeout_s:g} s")
            self.step()
        self.commit()
        self._tend()
        return self.counts()

    def counts(self) -> Counts:
        """What the index holds."""
        found = self._index.rows.count()
        shown, waiting = found.pop("", 0), found.pop("waiting", 0)
        return Counts(shown=shown, waiting=waiting, hidden=sum(found.values()))

    def _begin(self) -> dict[Partition, int]:
        """Where to read on; from the first kept offset where the log was cut above the position."""
        admin = Admin(self._servers)
        known, starts = self._index.rows.positions(), admin.start_offsets(self._partitions)
        return {where: max(known.get(where, 0), starts[where]) for where in self._partitions}

    def _tend(self) -> None:
        if self._index.erasures_due:
            self.commit()
            left = self._index.erase()
            _LOG.warning("%s: erased %d rows", self._workspace, left)
            self._fold.waiting = {row: at for row, at in self._fold.waiting.items() if self._still_waits(row)}

    def _still_waits(self, row: tuple[str, str]) -> bool:
        return self._index.rows.row(*row).hidden == "waiting"

    # ---- rows whose interaction has to be read again

    def _read_again(self) -> None:
        """Read the interactions of waiting rows once more: alone where their parts may be here, then with all of their episodes."""
        fresh, self._fold.fresh_parts = self._fold.fresh_parts, set()
        again = {row: at for row, at in self._fold.waiting.items() if row not in self._scanned or row[0] in fresh}
        if not again:
            return
        self._index.rows.begin()
        self._scan(again, whole=False)
        missing = {row: at for row, at in self._fold.waiting.items() if row in again and row not in self._scanned}
        if missing:
            self._scan(missing, whole=True)
            self._scanned |= missing.keys()
        self._index.commit(self._fold.changed, {})
        self._fold.changed.clear()

    def _scan(self, rows: dict[tuple[str, str], tuple[int, int]], *, whole: bool) -> None:
        name = topic(self._workspace, "interactions")
        keys = {episode.encode() for episode, _ in rows}
        for partition in {at[0] for at in rows.values()}:
            offsets = [offset for number, offset in rows.values() if number == partition]
            start = None if whole else {partition: min(offsets)}
            for record in read(self._servers, name, 0, start=start, until={partition: max(offsets) + 1}):
                if record.key in keys:
                    self._fold.take(record)


def run_indexer(
    servers: str,
    home: Path,
    workspace: str,
    quit_: threading.Event,
    *,
    embedder: Embedder | None = None,
    rebuild: bool = False,
    once: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Counts:
    """Keep a workspace's index up to its topics until `quit_` is set, or with `once` until all that is there now is in it."""
    with Indexer(servers, home, workspace, embedder=embedder, rebuild=rebuild) as indexer:
        counts = indexer.catch_up(timeout_s=float("inf"))
        tell(f"{workspace}: {counts.shown:,} interactions can be recalled")
        while not once and not quit_.is_set():
            indexer.step()
        if not once:
            indexer.commit()
        return indexer.counts()
