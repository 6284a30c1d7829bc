"""Bugs that the join does not have, planted one at a time: the simulator must find each of them.

Each is a patch of the shipped code for as long as the context lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final
from unittest.mock import patch

from treadle_streams.join import INPUTS, Arrival, Grading, Meta, OutcomeEvent, Plan, StateReader, decode, understand
from treadle_streams.join import plan as real_plan
from treadle_streams.worker import _lane, _recovery, _store
from treadle_streams.worker._inputs import Inputs, Position
from treadle_streams.worker._store import PartitionStore
from treadle_streams.worker._transaction import Membership, Transactions

from simulation.clients import Offsets

__all__ = ["BUGS", "COINCIDENCES"]

_real_run = Transactions.run
_real_recover = _recovery.recover
_real_assign = Inputs.assign
_real_replay = PartitionStore.replay
_real_end_offsets = Offsets.end_offsets


def _ack_before_write() -> AbstractContextManager[Any]:
    """The positions count, in META and the group, before the rows and outputs are in the log."""

    def run(self: Transactions, plans: Sequence[Plan], metas: Mapping[int, bytes], member: Membership) -> Any:
        acked = _real_run(self, [replace(made, puts={}, deletes=[], outputs=[]) for made in plans], metas, member)
        return None if acked is None else _real_run(self, plans, metas, member)

    return patch.object(Transactions, "run", run)


def _changelog_after_ack() -> AbstractContextManager[Any]:
    """Outputs and the group's positions are committed, and then the changelog."""

    def run(self: Transactions, plans: Sequence[Plan], metas: Mapping[int, bytes], member: Membership) -> Any:
        known: dict[int, bytes] = self.__dict__.setdefault("simulated_metas", {})
        early = [replace(made, puts={}, deletes=[]) for made in plans if made.partition in known]
        if early and _real_run(self, early, known, member) is None:
            return None
        late = [replace(made, outputs=[]) if made.partition in known else made for made in plans]
        known.update(metas)
        return _real_run(self, late, metas, member)

    return patch.object(Transactions, "run", run)


def _missing_fencing() -> AbstractContextManager[Any]:
    """Positions are sent with no generation, which no coordinator checks."""
    metadata = Membership.metadata
    return patch.object(Membership, "metadata", lambda self, group: metadata(Membership(-1, ""), group))


def _positions_of_the_group() -> AbstractContextManager[Any]:
    """After an assignment the group says where to read on, and META follows it."""

    def recover(settings: Any, ports: Any, admin: Any, stores: Any, current: Any, *more: Any) -> Any:
        metas, behind = _real_recover(settings, ports, admin, stores, current, *more)
        names = dict(zip(INPUTS, settings.inputs, strict=True))
        committed = admin.committed(settings.group, [(name, p) for name in names.values() for p in metas])
        for partition, meta in metas.items():
            meta.offsets = {kind: committed[name, partition] for kind, name in names.items()}
        return metas, behind

    return patch.object(_lane, "recover", recover)


def _timer_lost() -> AbstractContextManager[Any]:
    """Timers are kept beside the database, and not made anew from the changelog."""

    def replay(self: PartitionStore, *args: Any, **options: Any) -> None:
        with patch.object(_store, "index_keys", lambda key, value: []):
            _real_replay(self, *args, **options)

    return patch.object(PartitionStore, "replay", replay)


def _off_by_one() -> AbstractContextManager[Any]:
    """What is committed is the position after the next record, where there is one already."""

    def assign(self: Inputs, positions: Mapping[Position, int]) -> None:
        log = self._consumer._process.cluster.log  # type: ignore[attr-defined]
        ends = {place: log[self._names[place[0]], place[1]].end for place in positions}
        _real_assign(self, {place: at + 1 if 0 < at < ends[place] else at for place, at in positions.items()})

    return patch.object(Inputs, "assign", assign)


def _lateness_by_batch() -> AbstractContextManager[Any]:
    """An outcome is too late if its row had settled before its batch."""

    def plan(partition: int, meta: Meta, reader: StateReader, arrivals: Any, grading: Grading, **more: Any) -> Plan:
        early = [a for a in arrivals if not _settled(reader, a, grading)]
        positions = dict(more.pop("positions", None) or {})
        for a in arrivals:
            positions[a.kind] = max(positions.get(a.kind, 0), a.offset + 1)
        return real_plan(partition, meta, reader, early, grading, positions=positions, **more)

    return patch.object(_lane, "plan", plan)


def _settled(reader: StateReader, arrival: Arrival, grading: Grading) -> bool:
    event = understand(arrival, grading)
    if not isinstance(event, OutcomeEvent) or not event.key.startswith(b"r"):
        return False
    (data,) = reader.get_many([event.key])
    return data is not None and decode(data).settled


def _stable_end() -> AbstractContextManager[Any]:
    """A new owner replays to the stable offset, and so does not wait for what can still be committed."""

    def end_offsets(self: Offsets, partitions: Any) -> Any:
        places = list(partitions)
        if all(name.endswith("changelog") for name, _ in places):
            return self.stable_offsets(places)
        return _real_end_offsets(self, places)

    return patch.object(Offsets, "end_offsets", end_offsets)


BUGS: Final[dict[str, Callable[[], AbstractContextManager[Any]]]] = {
    "ack before write": _ack_before_write,
    "changelog after ack": _changelog_after_ack,
    "missing fencing": _missing_fencing,
    "positions of the group": _positions_of_the_group,
    "timer lost": _timer_lost,
    "off by one": _off_by_one,
    "lateness by batch": _lateness_by_batch,
    "stable end": _stable_end,
}
COINCIDENCES: Final = {
    "positions of the group": frozenset({"positions reset"}),
    "stable end": frozenset({"slow markers"}),
}
"""Bugs that show when a worker takes over (after any fault) while another fault is there: in most schedules not without that one."""
