"""The continuous snapshotter: a version whenever enough new rows have settled, or some time after anything changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from treadle.errors import LogError, TopicMissing
from treadle.log import Record, TailReader
from treadle_corpus import decode_key
from treadle_schemas.codec import PART, REGRADED, header_map
from treadle_schemas.errors import FieldError, TreadleError
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.snapshot.run import DEFAULT_WAIT_S, RunReport, Snapshotter, Tell

__all__ = ["DEFAULT_EVERY_S", "DEFAULT_MIN_NEW_ROWS", "Trigger", "serve"]

DEFAULT_MIN_NEW_ROWS: Final = 1000
DEFAULT_EVERY_S: Final = 600.0
_POLL_S: Final = 0.5
_RETRY_S: Final = 5.0
"""Pause after a run that could not go on for a reason that may pass."""


class Trigger:
    """When to run. Pure: time is passed in, seconds of any monotonic clock.

    A run is due when `min_new_rows` rows that no run saw have settled, or `every_s` after the run before when anything was graded since.
    """

    def __init__(self, min_new_rows: int, every_s: float, now_s: float, *, unfinished: bool = False) -> None:
        self._min_new_rows = min_new_rows
        self._every_s = every_s
        self._last_s = now_s
        self._seen: list[tuple[int, int, object]] = []
        self._unfinished = unfinished

    def saw(self, partition: int, offset: int, new_row: object) -> None:
        """A graded record; `new_row` names its row if no run saw that yet, else None."""
        self._seen.append((partition, offset, new_row))

    def due(self, now_s: float) -> bool:
        """Is a run due? An unfinished one of a process before is so at once."""
        if self._unfinished:
            return True
        if len({row for _, _, row in self._seen if row is not None}) >= self._min_new_rows:
            return True
        return bool(self._seen) and now_s - self._last_s >= self._every_s

    def ran(self, offsets: dict[int, int], now_s: float) -> None:
        """A run folded everything below `offsets`."""
        self._unfinished = False
        self._last_s = now_s
        self._seen = [seen for seen in self._seen if seen[1] >= offsets.get(seen[0], 0)]


def serve(
    snapshotter: Snapshotter,
    servers: str,
    workspace: WorkspaceSettings,
    *,
    min_new_rows: int = DEFAULT_MIN_NEW_ROWS,
    every_s: float = DEFAULT_EVERY_S,
    wait_s: float = DEFAULT_WAIT_S,
    stop: threading.Event | None = None,
    ran: Callable[[RunReport], None] | None = None,
    tell: Tell | None = None,
) -> None:
    """Follow `.graded` and run until `stop`. `ran` hears of each run.

    What may pass (the broker is away, the join is behind) is told and tried again; other errors end it, and a supervisor starts it anew.
    """
    stop = stop or threading.Event()
    name = topic(workspace.workspace, "graded")
    writer = snapshotter.writer
    trigger = Trigger(min_new_rows, every_s, time.monotonic(), unfinished=writer.unfinished)
    tail = TailReader(servers, {(name, p): writer.offsets.get(p, 0) for p in range(workspace.partitions)})
    try:
        while not stop.is_set():
            _watch(trigger, tail.poll(_POLL_S), snapshotter)
            if not trigger.due(time.monotonic()):
                continue
            try:
                report = snapshotter.run(wait_s)
            except TreadleError as err:
                if not _may_pass(err):
                    raise
                if tell is not None:
                    tell(f"{err}; trying again in {_RETRY_S:g} s")
                stop.wait(_RETRY_S)
                continue
            trigger.ran(writer.offsets, time.monotonic())
            if ran is not None:
                ran(report)
    finally:
        tail.close()


def _may_pass(err: TreadleError) -> bool:
    # a broker that comes back answers with errors that its client does not call retriable
    return err.retriable or (isinstance(err, LogError) and not isinstance(err, TopicMissing))


def _watch(trigger: Trigger, records: Iterable[Record], snapshotter: Snapshotter) -> None:
    writer = snapshotter.writer
    offsets = writer.offsets
    for record in records:
        if record.offset < offsets.get(record.partition, 0):
            continue  # a run folded it while it was on its way here
        headers = header_map(record.headers)
        if headers.get("ce_type") in (PART.encode(), REGRADED.encode()):
            continue  # what is new of it is the row behind it, or before it
        row = headers.get("row_id", b"")
        try:
            known = writer.knows(decode_key(row))
        except (FieldError, ValueError, TypeError):
            known = False
        trigger.saw(record.partition, record.offset, None if known else row)
