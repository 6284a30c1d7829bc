"""Workers and broker are killed, stopped and starved of disk while events flow; readers must have what an offline fold of the log says.

The harness is `tests/soak`: its history has every kind of event, poison among them, and its verdict names what is lost, wrong, duplicate
or never settled. `make soak` runs the same faults for longer, drawn at random.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from treadle_streams.broker import LocalBroker
from treadle_streams.worker._faults import STEPS

_TESTS = Path(__file__).resolve().parent.parent
sys.path.append(str(_TESTS))

from soak.bench import HOMES_MB, Bench, Disk, own_broker, stopped  # noqa: E402
from soak.faults import FAULTS, PAST_SESSION_S, Driver, broker_away, feasible  # noqa: E402

pytestmark = pytest.mark.fault


@dataclass(frozen=True, slots=True)
class Ground:
    """A broker to break, and disks to fill."""

    broker: LocalBroker
    broker_disk: Disk
    homes: Disk

    def bench(self, workspace: str, *, seed: int, partitions: int = 4, rate_per_s: float = 120.0) -> Bench:
        """A workspace under load on it."""
        print(f"seed {seed}")
        return Bench(
            self.broker.bootstrap,
            workspace,
            self.homes,
            seed=seed,
            partitions=partitions,
            rate_per_s=rate_per_s,
            broker=self.broker,
            broker_disk=self.broker_disk,
        )


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """One for all tests here: each heals what it broke."""
    folder = tmp_path_factory.mktemp("ground")
    with own_broker(folder, die_with_parent=True) as (broker, broker_disk):
        homes = Disk(folder / "homes", HOMES_MB)
        try:
            yield Ground(broker, broker_disk, homes)
        finally:
            homes.close()


def _struck(bench: Bench, names: list[str], seed: int, overlap: float = 0.0) -> None:
    for name in ("a", "b"):
        bench.start(name)
    bench.advanced("the start")
    Driver(bench, Random(seed), lambda line: print(line, flush=True)).run(names, overlap)
    _verified(bench)
    assert bench.struck.total() == len(names)


def _verified(bench: Bench) -> None:
    done = bench.verify()
    print(f"{done}; workers that ended by themselves: {dict(bench.ends)}", flush=True)
    assert not done.findings


def test_workers_killed_wiped_and_stopped_lose_repeat_and_change_nothing(ground: Ground, workspace_name: str) -> None:
    bench = ground.bench(workspace_name, seed=7)
    try:
        names = [
            "worker killed",
            "worker killed and wiped",
            "worker killed, back late",
            "worker stopped past its session",
        ]
        _struck(bench, names, seed=7, overlap=0.5)
    finally:
        bench.close()


@pytest.mark.long
def test_a_broker_killed_and_away_loses_repeats_and_changes_nothing(
    ground: Ground, workspace_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, takes, _ = FAULTS["broker stopped for 30 s"]
    # longer than a transaction and a session live
    monkeypatch.setitem(FAULTS, "broker stopped for 9 s", (weight, takes, broker_away(9.0)))
    bench = ground.bench(workspace_name, seed=8)
    try:
        _struck(bench, ["broker killed", "broker and workers killed", "broker stopped for 9 s"], seed=8)
    finally:
        bench.close()


@pytest.mark.long
def test_full_disks_of_workers_and_broker_lose_repeat_and_change_nothing(ground: Ground, workspace_name: str) -> None:
    if not (ground.homes.small and ground.broker_disk.small):
        pytest.skip("only root may mount the small tmpfs that is filled")
    bench = ground.bench(workspace_name, seed=9)
    try:
        _struck(bench, ["worker's disk full", "broker's disk full"], seed=9)
    finally:
        bench.close()


def _stopped_after_each_step(bench: Bench, flag: str) -> None:
    """A worker a step stops itself after it, another takes everything over, and all are woken past their sessions."""
    try:
        bench.start("other")
        for step in STEPS:
            bench.start(step, TREADLE_FAULT_STOP_AT=f"{step}:15{flag}")
        sleepers = {step: bench.workers[step] for step in STEPS}
        if flag:
            bench.wait("all are up", lambda: all(bench.mine(step) for step in STEPS), 90.0, restart=False)
            bench.writer.rest(True)
        bench.wait("all stop", lambda: all(map(stopped, sleepers.values())), 120.0, restart=False)
        bench.writer.rest(False)
        print(f"stopped at {bench.progress()}", flush=True)
        woken_at = time.monotonic() + PAST_SESSION_S
        everything = set(range(bench.partitions))
        bench.wait("taken over", lambda: bench.mine("other") == everything, 60.0, restart=False)
        bench.advanced("taken over", restart=False)
        bench.wait("past the sessions", lambda: time.monotonic() > woken_at, 60.0, restart=False)
        for worker in sleepers.values():
            worker.send_signal(signal.SIGCONT)
        bench.advanced("woken")
        _verified(bench)
    finally:
        bench.close()


def test_a_worker_stopped_after_any_step_past_its_session_changes_nothing_when_it_wakes(
    ground: Ground, workspace_name: str
) -> None:
    _stopped_after_each_step(ground.bench(workspace_name, seed=10, partitions=len(STEPS) + 1), "")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_worker_stopped_in_batches_of_timers_alone_changes_nothing_when_it_wakes(
    ground: Ground, workspace_name: str
) -> None:
    _stopped_after_each_step(ground.bench(workspace_name, seed=11, partitions=len(STEPS) + 1), ":t")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_fault_strikes_once_and_loses_repeats_and_changes_nothing(ground: Ground, workspace_name: str) -> None:
    bench = ground.bench(workspace_name, seed=12)
    try:
        names = feasible(bench)
        Random(12).shuffle(names)
        _struck(bench, names, seed=12)
    finally:
        bench.close()


@pytest.mark.long
def test_a_worker_with_little_to_do_lives_on_when_the_broker_is_killed_and_comes_back(
    ground: Ground, workspace_name: str
) -> None:
    bench = ground.bench(workspace_name, seed=13, rate_per_s=8.0)
    try:
        _struck(bench, ["broker killed"] * 3, seed=13)
        assert bench.ends.total() < 6, "not every time: only a kill in the middle of a transaction ends a worker"
    finally:
        bench.close()
