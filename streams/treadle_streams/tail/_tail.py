"""Reading the end of a workspace's rows, and going on from there."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, Literal, TypeAlias

import treadle
from treadle.consuming import Consumed
from treadle.errors import LogUnreachable
from treadle.log import Admin
from treadle_corpus import kinds_of
from treadle_schemas.records import GradedRow, Progress
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import filter as filters
from treadle_streams import workspaces
from treadle_streams.filter import Filter, FilterNameError, SqlType

__all__ = ["Kind", "Row", "tail"]

Kind = Literal["graded", "progress"]
Row: TypeAlias = GradedRow | Progress

_SPAN: Final = 500
"""Offsets of each partition that are looked at first; eight times as many while too few rows match."""
_BATCH: Final = 1000
_HELD: Final = 10_000
"""Rows that wait for the first that has a metric which the filter names and nobody declared."""
_POLL_S: Final = 0.5
_PATIENCE_S: Final = 60.0


def tail(
    servers: str, workspace: str, kind: Kind, filter_: str | None = None, *, last: int = 10, follow: bool = False
) -> Iterator[Row]:
    """The `last` matching rows there are now, the oldest first; with `follow` then each new one, for ever.

    A filter that names a metric which is neither declared nor seen on any row is refused; `now` in it is the present. What is new counts
    from this call on. Raises FilterError, WorkspaceMissing, LogError, and while it is read ContractError.
    """
    if filter_ is not None:
        filters.check_syntax(filter_)
    settings = workspaces.get(servers, workspace)
    partitions = [(topic(workspace, kind), p) for p in range(settings.partitions)]
    admin = Admin(servers)
    ends = {p: offset for (_, p), offset in admin.end_offsets(partitions).items()}
    starts = {p: offset for (_, p), offset in admin.start_offsets(partitions).items()}
    matching = _Matching(filter_, settings, kind)
    return _rows(servers, matching, starts, ends, last, follow)


def _rows(
    servers: str, matching: _Matching, starts: Mapping[int, int], ends: Mapping[int, int], last: int, follow: bool
) -> Iterator[Row]:
    span = max(_SPAN, 2 * last) if last else 0
    with ExitStack() as stack:
        while True:
            begin = {p: max(starts[p], end - span) for p, end in ends.items()}
            rows: Consumed[Any] = stack.enter_context(
                _consume(servers, matching.settings.workspace, matching.kind, begin)
            )
            beyond: list[Row] = []
            found = _newest(_until(rows, ends, beyond), matching, last, begin == starts)
            if found is not None:
                break
            stack.pop_all().close()
            matching.forget()
            span = max(8 * span, _SPAN)
        yield from found
        if follow:
            yield from matching.of(beyond)
        while follow:
            yield from matching.of(rows.batch(_POLL_S, _BATCH))


class _Matching:
    """The filter, and the metrics that were seen so far, which it may name."""

    def __init__(self, text: str | None, settings: WorkspaceSettings, kind: Kind) -> None:
        self._text = text
        self.settings = settings
        self.kind: Kind = kind
        self._kinds: dict[str, set[str]] = {}
        self._held: list[Row] = []
        self._types: dict[str, SqlType] | None = None
        self._filter: Filter | None = None

    def forget(self) -> None:
        """Rows that waited are read once more."""
        self._held = []

    def of(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that match, of these and of those that waited."""
        if self._text is None or not rows:
            return list(rows)
        for row in rows:
            kinds_of(row, self._kinds)
        self._held += rows
        try:
            return self.settle()
        except FilterNameError:
            if len(self._held) > _HELD:
                raise
            return []

    def settle(self) -> list[Row]:
        """The rows that waited and match. Raises FilterNameError for a name that is still unknown."""
        if self._text is None:
            return []
        types = filters.metric_types(self.settings, {name: frozenset(k) for name, k in self._kinds.items()})
        now_ms = int(time.time() * 1000)
        if self._filter is None or types != self._types:
            columns = {} if self.kind == "graded" else {"columns": filters.PROGRESS_COLUMNS}
            self._filter = filters.compile(self._text, types, now_ms, **columns)
            self._types = types
        held, self._held = self._held, []
        whole = [filters.progress_row(row) if isinstance(row, Progress) else row for row in held]
        return [row for row, match in zip(held, self._filter.at(now_ms).matches(whole), strict=True) if match]


def _newest(batches: Iterator[list[Row]], matching: _Matching, last: int, everything: bool) -> list[Row] | None:
    """The last matching rows, by time; None where there are too few, and more to look at."""
    found: dict[int, deque[Row]] = {}
    for batch in batches:
        for row in matching.of(batch):
            # rows of one partition are in order; which partition is asked first says nothing
            key = row.provenance.partition if isinstance(row, GradedRow) else 0
            found.setdefault(key, deque(maxlen=last)).append(row)
    try:
        rest = matching.settle()
    except FilterNameError:
        if everything:
            raise
        return None
    rows = sorted([row for part in found.values() for row in part] + rest, key=_time)
    return rows[len(rows) - last :] if len(rows) >= last else rows if everything else None


def _time(row: Row) -> str:
    return row.provenance.graded_at if isinstance(row, GradedRow) else ""


def _until(rows: Consumed[Any], ends: Mapping[int, int], beyond: list[Row]) -> Iterator[list[Row]]:
    """All values below `ends`, in batches; those behind them that come on the way go to `beyond`.

    Raises LogUnreachable when nothing comes any more.
    """
    heard = time.monotonic()
    positions = rows.positions
    batch: list[Row] = []
    while any(positions.get(p, 0) < end for p, end in ends.items()):
        value = rows.batch(_POLL_S, 1)  # alone, so that its place is known
        moved = {p: at for p, at in rows.positions.items() if positions.get(p) != at}
        (beyond if any(at > ends[p] for p, at in moved.items()) else batch).extend(value)
        positions |= moved
        if len(batch) >= _BATCH:
            yield batch
            batch = []
        if value or moved:
            heard = time.monotonic()
        elif time.monotonic() - heard > _PATIENCE_S:
            raise LogUnreachable(f"no progress in {_PATIENCE_S:g} s at {positions} before offsets {dict(ends)}")
    yield batch


def _consume(servers: str, workspace: str, kind: Kind, begin: Mapping[int, int]) -> Consumed[Any]:
    if kind == "graded":
        return treadle.consume(workspace, "graded", start=begin, bootstrap_servers=servers)
    return treadle.consume(workspace, "progress", start=begin, bootstrap_servers=servers)
