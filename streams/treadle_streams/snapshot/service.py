"""The continuous snapshotter: a version whenever enough new rows have settled, or some time after anything changed.

One process serves any number of policies: one follower of `.graded`, one corpus a policy, runs one after the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from treadle.errors import LogError, TopicMissing
from treadle.log import Admin, Partition, Record, TailReader
from treadle_corpus import decode_key, is_wanted
from treadle_schemas.codec import PART, REGRADED, header_map
from treadle_schemas.errors import FieldError, TreadleError
from treadle_schemas.moments import now, to_micros
from treadle_schemas.snapshot_policy import DEFAULT_EVERY_S, DEFAULT_MIN_NEW_ROWS, SnapshotPolicy
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import workspaces
from treadle_streams.snapshot._graded import BATCH_RECORDS
from treadle_streams.snapshot.policies import policies_of, selection
from treadle_streams.snapshot.run import DEFAULT_WAIT_S, RunReport, Snapshotter, Tell

__all__ = ["DEFAULT_EVERY_S", "DEFAULT_MIN_NEW_ROWS", "Trigger", "serve", "serve_policies"]

_POLL_S: Final = 0.5
AHEAD_RECORDS: Final = BATCH_RECORDS
"""So many records are folded before a run is due. It is what one commit takes anyway."""
_RETRY_S: Final = 5.0
"""Pause after a run that could not go on for a reason that may pass."""

Ran = Callable[[str, RunReport], None]
"""Hears of each run: the policy's name, and what it did."""
Place = Callable[[SnapshotPolicy], Path]
"""Where the corpus of a policy lies on this machine. May raise TargetError."""


class Trigger:
    """When to run. Pure: time is passed in, seconds of any monotonic clock.

    A run is due when `min_new_rows` rows that no run saw have settled, or `every_s` after the run before when anything was graded since.
    """

    def __init__(
        self, min_new_rows: int, every_s: float, now_s: float, *, unfinished: bool = False, held: int | None = None
    ) -> None:
        """`now_s` is when the run before was, or now. `held`: so many new rows were folded by a process before and are in no version;
        None: it left nothing. `unfinished`: a run is due whatever came."""
        self._min_new_rows = min_new_rows
        self._every_s = every_s
        self._last_s = now_s
        self._seen: list[tuple[int, int, object]] = []
        self._unfinished = unfinished
        self._held = held

    def saw(self, partition: int, offset: int, new_row: object) -> None:
        """A graded record; `new_row` names its row if no run saw that yet, else None."""
        self._seen.append((partition, offset, new_row))

    def due(self, now_s: float) -> bool:
        """Is a run due?"""
        if self._unfinished:
            return True
        if (self._held or 0) + len({row for _, _, row in self._seen if row is not None}) >= self._min_new_rows:
            return True
        return (bool(self._seen) or self._held is not None) and now_s - self._last_s >= self._every_s

    def ran(self, offsets: dict[int, int], now_s: float) -> None:
        """A run folded everything below `offsets`."""
        self._unfinished = False
        self._held = None
        self._last_s = now_s
        self._seen = [seen for seen in self._seen if seen[1] >= offsets.get(seen[0], 0)]


class _Served:
    """One policy that is being served: its open corpus, its trigger, and how far it looked at `.graded`."""

    def __init__(
        self, name: str, snapshotter: Snapshotter, min_new_rows: int, every_s: float, *, changed: bool = False
    ) -> None:
        writer = snapshotter.writer
        self.name = name
        self.snapshotter = snapshotter
        self.looked = dict(writer.offsets)
        self._waiting = 0
        """Records looked at that are not folded."""
        self.not_before_s = 0.0
        """A run that failed is tried again from then on."""
        last_s = time.monotonic()
        if writer.unfinished and writer.manifest is not None:  # the interval goes on where the process before left it
            last_s -= max(0.0, (to_micros(now(), "$") - to_micros(writer.manifest.created_at, "$.created_at")) / 1e6)
        held = writer.new_rows if writer.unfinished else None
        self._trigger = Trigger(min_new_rows, every_s, last_s, unfinished=changed, held=held)

    def watch(self, records: Iterable[Record]) -> None:
        """Take notice of records of `.graded`, each of them once."""
        writer = self.snapshotter.writer
        folded = writer.offsets
        for record in records:
            if record.offset < max(self.looked.get(record.partition, 0), folded.get(record.partition, 0)):
                continue  # seen before, or a run folded it while it was on its way here
            self.looked[record.partition] = record.offset + 1
            self._waiting += 1
            headers = header_map(record.headers)
            if headers.get("ce_type") in (PART.encode(), REGRADED.encode()):
                continue  # what is new of it is the row behind it, or before it
            row = headers.get("row_id", b"")
            try:
                known = writer.knows(decode_key(row))
            except (FieldError, ValueError, TypeError):
                known = False
            self._trigger.saw(record.partition, record.offset, None if known else row)

    def due(self) -> bool:
        now_s = time.monotonic()
        return now_s >= self.not_before_s and self._trigger.due(now_s)

    def fold_ahead(self) -> None:
        """Fold what has come while no run is due, so that the run has little left to do."""
        if self._waiting >= AHEAD_RECORDS:
            self.snapshotter.fold_ahead(self.looked)
            self._waiting = 0

    def run(self, wait_s: float) -> RunReport:
        report = self.snapshotter.run(wait_s)
        self._waiting = 0
        self._trigger.ran(self.snapshotter.writer.offsets, time.monotonic())
        return report


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
    """Follow `.graded` and run one policy until `stop`. `ran` hears of each run.

    What may pass (the broker is away, the join is behind) is told and tried again; other errors end it, and a supervisor starts it anew.
    """
    stop = stop or threading.Event()
    served = _Served("", snapshotter, min_new_rows, every_s)
    tail = _tail(servers, workspace, [served])
    try:
        while not stop.is_set():
            served.watch(tail.poll(_POLL_S))
            if is_wanted(snapshotter.writer.path):
                _say(tell, f"letting go of {snapshotter.writer.path}, which another process waits for")
                snapshotter.give_way(stop)
            if stop.is_set():
                continue
            try:
                if not served.due():
                    served.fold_ahead()
                    continue
                report = served.run(wait_s)
            except TreadleError as err:
                if not _may_pass(err):
                    raise
                _say(tell, f"{err}; trying again in {_RETRY_S:g} s")
                stop.wait(_RETRY_S)
                continue
            if ran is not None:
                ran(report)
    finally:
        tail.close()


def serve_policies(
    servers: str,
    workspace: str,
    place: Place,
    *,
    only: Sequence[str] = (),
    wait_s: float = DEFAULT_WAIT_S,
    stop: threading.Event | None = None,
    ran: Ran | None = None,
    tell: Tell | None = None,
) -> None:
    """Serve all policies of a workspace that are not manual, or those named in `only`, until `stop`; follow what is stored.

    A policy that changed, is new or was deleted counts within a second. What goes wrong with one policy is told and tried again, and
    holds up no other one; an error that does not pass by itself is raised when it leaves nothing to serve. Raises WorkspaceMissing,
    TopicMissing where the workspace is gone.
    """
    stop = stop or threading.Event()
    keeper = _Keeper(servers, workspace, place, only, tell)
    try:
        keeper.reconcile()
        while not stop.is_set():
            keeper.poll()
            for served in list(keeper.served.values()):
                if stop.is_set():
                    continue
                try:
                    if not served.due():
                        served.fold_ahead()
                        continue
                    report = served.run(wait_s)
                except TreadleError as err:
                    keeper.failed(served.name, err)
                    served.not_before_s = time.monotonic() + _RETRY_S
                    continue
                keeper.broken.discard(served.name)
                if ran is not None:
                    ran(served.name, report)
    finally:
        keeper.close()


class _Keeper:
    """The policies that are served, kept to what the workspace's settings say."""

    def __init__(self, servers: str, workspace: str, place: Place, only: Sequence[str], tell: Tell | None) -> None:
        self._servers = servers
        self._settings: Partition = (topic(workspace, "settings"), 0)
        # before they are read, so that no change is missed
        self._settings_end = Admin(servers).end_offsets([self._settings]).get(self._settings, 0)
        self._workspace = workspaces.get(servers, workspace)
        self._place = place
        self._only = only
        self._tell = tell
        self.served: dict[str, _Served] = {}
        self._policies: dict[str, SnapshotPolicy] = {}
        """As they are served."""
        self.broken: set[str] = set()
        """Those whose last try failed for a reason that does not pass by itself."""
        self._again_s: float | None = None
        self._tail: TailReader | None = None

    def poll(self) -> None:
        """Take in what is new on `.graded` and in the settings."""
        assert self._tail is not None
        records = self._tail.poll(_POLL_S)
        self._give_way()
        graded = [r for r in records if r.topic != self._settings[0]]
        for served in self.served.values():
            served.watch(graded)
        changes = [r.offset + 1 for r in records if r.topic == self._settings[0]]
        self._settings_end = max([self._settings_end, *changes])
        if changes or (self._again_s is not None and time.monotonic() >= self._again_s):
            try:
                self._workspace = workspaces.get(self._servers, self._workspace.workspace)
            except LogError as err:
                _say(self._tell, f"the settings cannot be read, going on with the last ones: {err}")
                self._again_s = time.monotonic() + _RETRY_S
                return
            self.reconcile()

    def reconcile(self) -> None:
        """Open what is to be served, close what is not any more."""
        self._again_s = None
        wanted = self._wanted()
        self.broken &= wanted.keys()
        for name in [n for n in self.served if wanted.get(n) != self._policies[n]]:
            self.served.pop(name).snapshotter.close()
            _say(self._tell, f"policy {name} {'changed' if name in wanted else 'is not served any more'}")
        for name, policy in wanted.items():
            if name not in self.served:
                try:
                    self.served[name] = self._opened(policy)
                    self._policies[name] = policy
                except TreadleError as err:
                    self.failed(name, err)
                    self._again_s = time.monotonic() + _RETRY_S
        if self._tail is not None:
            self._tail.close()
        self._tail = _tail(
            self._servers, self._workspace, list(self.served.values()), {self._settings: self._settings_end}
        )

    def _give_way(self) -> None:
        """Let go of a corpus that another process waits for, as an erasure does, and come back to it."""
        for name, served in list(self.served.items()):
            path = served.snapshotter.writer.path
            if is_wanted(path):
                self.served.pop(name).snapshotter.close()
                _say(self._tell, f"policy {name}: letting go of {path}, which another process waits for")
                self._again_s = time.monotonic() + _RETRY_S

    def failed(self, name: str, err: TreadleError) -> None:
        """Tell of it. Raises `err` where nothing is left that could succeed by itself."""
        if not _may_pass(err):
            self.broken.add(name)
            if isinstance(err, TopicMissing) or self.broken >= self._wanted().keys():
                raise err
        _say(self._tell, f"policy {name}: {err}; trying again in {_RETRY_S:g} s")

    def close(self) -> None:
        """Let other writers in."""
        for served in self.served.values():
            served.snapshotter.close()
        if self._tail is not None:
            self._tail.close()

    def _wanted(self) -> dict[str, SnapshotPolicy]:
        known = policies_of(self._workspace)
        return {n: p for n, p in known.items() if (n in self._only if self._only else not p.manual)}

    def _opened(self, policy: SnapshotPolicy) -> _Served:
        path = self._place(policy)
        snapshotter = Snapshotter(self._servers, self._workspace, path, selection(policy), tell=self._tell)
        try:
            held = snapshotter.writer.manifest
            changed = held is not None and not selection(policy).selects_as(held.policy)
            served = _Served(policy.name, snapshotter, policy.min_new_rows, policy.every_s, changed=changed)
        except BaseException:
            snapshotter.close()
            raise
        _say(self._tell, f"following {self._workspace.workspace} into {path} ({selection(policy)})")
        return served


def _tail(
    servers: str, workspace: WorkspaceSettings, served: Sequence[_Served], more: Mapping[Partition, int] | None = None
) -> TailReader:
    """From where the first of the policies looks on."""
    name = topic(workspace.workspace, "graded")
    begin = {(name, p): min(one.looked.get(p, 0) for one in served) for p in range(workspace.partitions) if served}
    # below its start the log is archived: a run reads that by itself
    starts = Admin(servers).start_offsets(begin)
    begin = {place: max(offset, starts[place]) for place, offset in begin.items()}
    return TailReader(servers, {**begin, **(more or {})})


def _say(tell: Tell | None, text: str) -> None:
    if tell is not None:
        tell(text)


def _may_pass(err: TreadleError) -> bool:
    # a broker that comes back answers with errors that its client does not call retriable
    return err.retriable or (isinstance(err, LogError) and not isinstance(err, TopicMissing))
