"""Which rows are known but not settled: the last state of each row on `.progress`.

`.progress` also carries a clock record a second, so it is read once and remembered: `progress.json` beside the corpus is the cache of a
fold, with its own offsets. Lost or damaged it is made again from the topic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from treadle.log import Admin, Record, read
from treadle_schemas.codec import PROGRESS, REGRADED, header_map
from treadle_schemas.records import Regraded
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings

__all__ = ["PendingRows"]

Key = tuple[str, str]


class _Grade(msgspec.Struct):
    settled: bool


class _Progress(msgspec.Struct):
    """What is needed of records.Progress."""

    episode_id: str
    interaction_id: str
    grade: _Grade


class _Cache(msgspec.Struct):
    workspace_created_at: str
    offsets: dict[int, int]
    pending: list[Key]
    graded_by: dict[int, int] = {}


_DECODER = msgspec.json.Decoder(_Progress)


class PendingRows:
    """The rows that `.progress` last called unsettled, up to the offsets read so far."""

    def __init__(
        self,
        servers: str,
        workspace: WorkspaceSettings,
        cache: Path,
        *,
        remember: bool = True,
        erased: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Start from the cache where it is of this workspace. Without `remember` nothing is written. Episodes that are `erased` are not
        counted, and not named in the cache.
        """
        self._remember = remember
        self._erased = erased
        self._servers = servers
        self._workspace = workspace
        self._cache = cache
        self._offsets: dict[int, int] = {}
        self.keys: set[Key] = set()
        self._graded_by: dict[int, int] = {}
        """By partition, the newest grading version that all of its rows have, as its markers say."""
        try:
            found = msgspec.json.decode(cache.read_bytes(), type=_Cache)
        except (OSError, msgspec.DecodeError):
            return
        if found.workspace_created_at == workspace.created_at:
            self._offsets, self.keys, self._graded_by = found.offsets, set(found.pending), found.graded_by

    def advance(self, admin: Admin) -> None:
        """Read on to the present end, and remember. A record that cannot be read is left out of the count: it only informs.

        The end is that of the log, not the stable one: the join's position is visible before the markers of the same transaction
        are on every partition. Reading waits for them, so whatever settled here is on `.graded` when this returns.
        """
        where = [(topic(self._workspace.workspace, "progress"), p) for p in range(self._workspace.partitions)]
        ends = {partition: end for (_, partition), end in admin.end_offsets(where).items()}
        name = topic(self._workspace.workspace, "progress")
        start = {p: self._offsets.get(p, 0) for p in ends if p in self._offsets}
        for record in read(self._servers, name, self._workspace.partitions, start=start, until=ends):
            self._take(record)
        self._offsets.update(ends)
        self.keys = {key for key in self.keys if not self._erased(key[0])}
        if not self._remember:
            return
        value = _Cache(self._workspace.created_at, self._offsets, sorted(self.keys), self._graded_by)
        fresh = self._cache.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(value))
        fresh.replace(self._cache)

    def ungraded(self, version: int) -> list[int]:
        """The partitions that were not yet graded anew by a grading version. The first one needs no word."""
        return [p for p in range(self._workspace.partitions) if self._graded_by.get(p, 1) < version]

    def count(self, settled: Callable[[Key], bool | None], unsettled: Iterator[Key]) -> int:
        """How many rows are pending, as seen from a fold of `.graded` that is at least as new.

        `settled` says what the fold knows of a row (None: nothing), `unsettled` are its rows that are unsettled again.
        """
        waiting = {key for key in self.keys if not settled(key)}
        return len(waiting | set(unsettled))

    def _take(self, record: Record) -> None:
        kind = header_map(record.headers).get("ce_type")
        if record.value is not None and kind == REGRADED.encode():
            marker = msgspec.json.decode(record.value, type=Regraded)
            self._graded_by[record.partition] = max(self._graded_by.get(record.partition, 1), marker.grading_version)
        if record.value is None or kind != PROGRESS.encode():
            return
        try:
            row = _DECODER.decode(record.value)
        except msgspec.DecodeError:
            return
        key = (row.episode_id, row.interaction_id)
        if row.grade.settled:
            self.keys.discard(key)
        else:
            self.keys.add(key)
