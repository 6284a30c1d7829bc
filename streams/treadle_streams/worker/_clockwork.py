"""The second hand of a worker: clock records, the ends of the inputs, the status file. A thread of its own, so that batches never wait.

A topic counts as at its end by this order of events: a clock record is acknowledged with broker time B; then the end of the topic is asked
for and found to be E; then the lane has consumed everything below E. Whatever was appended up to B lies below E, so the topic counts as B
(less a margin for the clocks of several brokers).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from treadle.errors import LogError, NotDelivered
from treadle.log import Admin, Sender
from treadle_schemas import codec, topics
from treadle_schemas.moments import now

from treadle_streams.join import INPUTS, Input, Meta
from treadle_streams.worker._settings import WorkerSettings
from treadle_streams.worker._status import StatusFile

__all__ = ["Clockwork", "Copy", "Reading", "View", "behind", "report"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of the broker: its time by partition, then the ends of the input topics."""

    number: int = 0
    broker_ms: Mapping[int, int] = field(default_factory=dict)
    ends: Mapping[tuple[Input, int], int] = field(default_factory=dict)
    settings_end: int = 0
    """End of the topic of the workspace's settings: they were written anew when it moves."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A partition of another worker, as far as it is copied here."""

    applied: int
    """The next offset of the changelog."""
    level: bool
    """Whether that was its end when it was last read."""


@dataclass(frozen=True, slots=True)
class View:
    """What the lane shows of itself: a snapshot, replaced and never changed."""

    state: str = "waiting"
    """waiting (for an assignment), recovering, or running."""
    generation: int = -1
    metas: Mapping[int, Meta] = field(default_factory=dict)
    batches: int = 0
    standbys: Mapping[int, Copy] = field(default_factory=dict)
    scrubs: int = 0
    """Partitions whose files still hold bytes of what was erased."""


class Clockwork(threading.Thread):
    """Ticks once a second. `reading` is the newest reading, for the lane to pick up."""

    def __init__(
        self,
        settings: WorkerSettings,
        view: Callable[[], View],
        status: StatusFile,
        caught_up: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`caught_up` is called after each tick at which everything that was there is joined; `failed` ends the process."""
        super().__init__(name="treadle-clockwork", daemon=True)
        self._settings = settings
        self._view = view
        self._status = status
        self._caught_up = caught_up
        self._failed = failed
        self._admin = Admin(settings.servers)
        self._sender = Sender(settings.servers, timeout_s=5.0)
        self._names: dict[Input, str] = {kind: topics.topic(settings.workspace, kind) for kind in INPUTS}
        self._progress = topics.topic(settings.workspace, "progress")
        self._changes = (topics.topic(settings.workspace, "settings"), 0)
        self._quit = threading.Event()
        self._complained = False
        self.reading = Reading()

    def close(self) -> None:
        """Stop ticking."""
        self._quit.set()

    def run(self) -> None:
        """The thread: without it no clock moves, so whatever it cannot handle ends the process."""
        try:
            self._run()
        except BaseException as err:
            self._failed(err)

    def _run(self) -> None:
        parent = self._settings.parent_pid
        while not self._quit.wait(self._settings.tick_s):
            if parent is not None and os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
            view = self._view()
            reading = self._read(sorted(view.metas)) if view.state == "running" else None
            self._status.write(report(view, reading))
            if reading is not None:
                self.reading = reading
                if behind(view.metas, reading) == 0:
                    self._caught_up()

    def _read(self, partitions: list[int]) -> Reading | None:
        try:
            times = self._tell_time(partitions)
            inputs = [(name, p) for name in self._names.values() for p in partitions]
            ends = self._admin.end_offsets([*inputs, self._changes])
        except LogError as err:
            # the broker is away: the clock stands still until it is back
            if not self._complained:
                _log.warning("the clock stands still: %s", err)
            self._complained = True
            return None
        self._complained = False
        by_kind: dict[tuple[Input, int], int] = {
            (kind, p): ends[name, p] for kind, name in self._names.items() for p in partitions
        }
        return Reading(self.reading.number + 1, times, by_kind, ends[self._changes])

    def _tell_time(self, partitions: list[int]) -> dict[int, int]:
        for partition in partitions:
            headers = codec.make_headers(codec.CLOCK, self._settings.workspace, source="treadle/join")
            self._sender.send(self._progress, None, b"{}", headers, partition)
        try:
            self._sender.flush(5.0)
        except NotDelivered:
            self._sender = Sender(self._settings.servers, timeout_s=5.0)
            raise
        return {p: self._sender.last_timestamp_ms[self._progress, p] for p in partitions}


def behind(metas: Mapping[int, Meta], reading: Reading) -> int:
    """Input records that are there and not joined."""
    return sum(
        max(0, end - metas[partition].offsets.get(kind, 0))
        for (kind, partition), end in reading.ends.items()
        if partition in metas
    )


def report(view: View, reading: Reading | None) -> dict[str, Any]:
    """What a status file says."""
    partitions: dict[str, Any] = {}
    totals: dict[str, int] = {}
    dead: dict[str, int] = {}
    for partition, meta in sorted(view.metas.items()):
        lag = None
        if reading is not None:
            lag = {k: max(0, reading.ends[k, partition] - meta.offsets.get(k, 0)) for k in INPUTS}
        partitions[str(partition)] = {
            "clock_ms": meta.clock_ms,
            "offsets": dict(meta.offsets),
            "lag": lag,
            "imports": sorted(meta.imports),
            "counts": dict(meta.counts),
        }
        for name, count in meta.counts.items():
            totals[name] = totals.get(name, 0) + count
        for reason, count in meta.dead_letters.items():
            dead[reason] = dead.get(reason, 0) + count
    known = view.state == "running"
    captured, settled = totals.get("captured", 0), totals.get("settled", 0)
    return {
        "state": view.state,
        "generation": view.generation,
        "batches": view.batches,
        "updated_at": now(),
        "monotonic_s": time.monotonic(),
        # null while it is not known: no partition is ours yet
        "captured": captured if known else None,
        "settled": settled if known else None,
        "pending": captured - settled if known else None,
        "orphans": totals.get("orphans", 0) if known else None,
        "waiting": totals.get("waiting", 0) if known else None,
        "corrections": totals.get("corrections", 0) if known else None,
        "dead_letters": dead,
        "counts": totals,
        "scrubs": view.scrubs,
        "lag": None if reading is None else behind(view.metas, reading),
        "clock_ms": min((m.clock_ms for m in view.metas.values()), default=None),
        "partitions": partitions,
        "standbys": {str(p): {"applied": copy.applied, "level": copy.level} for p, copy in view.standbys.items()},
    }
