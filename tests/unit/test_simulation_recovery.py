"""Recovery on the simulated log, where a whole schedule seldom gets: what counts as lost state, and what does not."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from treadle_streams.join import Meta
from treadle_streams.worker._recovery import recover
from treadle_streams.worker.errors import StateLost

sys.path.append(str(Path(__file__).resolve().parent.parent))

from simulation.cluster import Cluster
from simulation.disk import Batch, Database, Disk
from simulation.faults import Faults
from simulation.log import Entry, Log
from simulation.process import Process
from simulation.schedule import settings_of
from simulation.scheduler import Scheduler
from treadle_streams.worker._store import PartitionStore

PARTITION = 0


class World:
    """A log, and one process that takes partition 0 over."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(0)
        workspace, _ = settings_of(2)
        self.cluster = Cluster(self.scheduler, workspace, Faults(Random(0), 1.0, 2.0))
        self.process = Process(self.cluster, "a", {PARTITION: Disk()})

    @property
    def log(self) -> Log:
        return self.cluster.log

    def transaction(self, commit: bool, **records: bytes) -> None:
        """One record a topic kind, and the marker."""
        who = self.log.producer(5.0)
        for kind, key in records.items():
            value = Meta(offsets={"outcomes": 3}).encode() if key == b"\0m" else b"row"
            self.log.write(who, 0, (self.cluster.topic(kind), PARTITION), [Entry(key, value, [], 0)])
        self.log.end(who, 0, commit)

    def recover(self) -> dict[int, Meta]:
        """What the shipped recovery finds."""
        found: list[Any] = []
        ports = self.process.ports

        def body() -> None:
            store = PartitionStore(Database(self.process.disks[PARTITION], self.process), "w", Batch)
            try:
                found.append(recover(self.process.settings, ports, ports.admin(""), {PARTITION: store}, lambda: True))
            except StateLost as err:
                found.append(err)
            self.scheduler.finish()

        self.process.task = self.scheduler.spawn(self.process, body)
        self.scheduler.run()
        self.scheduler.close()
        if isinstance(found[0], StateLost):
            raise found[0]
        metas: dict[int, Meta] = found[0][0]
        return metas


def test_a_first_transaction_that_was_aborted_is_no_lost_state() -> None:
    world = World()
    world.transaction(False, graded=b"e", changelog=b"\0m")
    assert world.recover() == {PARTITION: Meta()}


def test_graded_rows_without_meta_are_lost_state() -> None:
    world = World()
    world.transaction(True, graded=b"e")
    with pytest.raises(StateLost, match="graded has records, but there is no META"):
        world.recover()


def test_a_worker_stopped_in_recovery_takes_what_a_later_owner_did_for_no_lost_state() -> None:
    world = World()
    # the changelog is empty when its end is asked for; then another owner commits, and only then the rest is asked
    world.scheduler.after(0.006, lambda: world.transaction(True, graded=b"e", changelog=b"\0m"))
    world.cluster.latency_s = lambda: 0.005  # type: ignore[method-assign]
    assert world.recover()[PARTITION].offsets == {"outcomes": 3}


def test_recovery_waits_for_a_transaction_that_can_still_be_committed() -> None:
    world = World()
    world.log.slow_markers = 1.0
    world.transaction(True, graded=b"e", changelog=b"\0m")
    assert world.recover()[PARTITION].offsets == {"outcomes": 3}
    assert world.scheduler.now_s > 1.0
