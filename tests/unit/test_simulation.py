"""The simulator itself: its log, group and disks behave as Kafka and RocksDB do, and a seed is a schedule, exactly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).resolve().parent.parent
sys.path.append(str(_TESTS))

from simulation.disk import Batch, Disk  # noqa: E402
from simulation.events import KINDS  # noqa: E402
from simulation.group import SESSION_S, Group, Joined  # noqa: E402
from simulation.log import Entry, Log, Refusal  # noqa: E402
from simulation.schedule import run  # noqa: E402
from simulation.scheduler import Killed, Owner, Scheduler  # noqa: E402

PLACE = ("t", 0)
OTHER = ("t", 1)


def entry(value: bytes = b"v", key: bytes = b"k") -> Entry:
    return Entry(key, value, [], 0)


def pass_time(scheduler: Scheduler, seconds: float) -> None:
    scheduler.after(seconds, scheduler.finish)
    scheduler.run()


def values(log: Log) -> list[bytes | None]:
    return [e.value for _, e in log[PLACE].committed()]


def test_readers_of_committed_data_wait_for_the_oldest_open_transaction() -> None:
    scheduler = Scheduler(0)
    log = Log(scheduler)
    first, second = log.producer(5.0), log.producer(5.0)
    log.append(PLACE, entry(b"plain"))
    log.write(first, 0, PLACE, [entry(b"first")])
    log.write(second, 0, PLACE, [entry(b"second")])
    log.end(second, 0, True)
    pass_time(scheduler, 1.0)
    assert (values(log), log[PLACE].stable, log[PLACE].end) == ([b"plain"], 1, 4), "a marker takes an offset"
    log.end(first, 0, False)
    pass_time(scheduler, 1.0)
    assert (values(log), log[PLACE].stable) == ([b"plain", b"second"], 5), (
        "what was aborted keeps its offset and is not read"
    )


def test_a_decided_transaction_reaches_its_partitions_and_positions_by_markers_of_their_own() -> None:
    scheduler = Scheduler(1)
    log = Log(scheduler)
    log.slow_markers = 1.0
    who = log.producer(5.0)
    log.write(who, 0, PLACE, [entry()])
    log.write(who, 0, OTHER, [entry()])
    log.add_positions(who, 0, {("in", 0): 7})
    assert log.pending([("in", 0)])
    log.end(who, 0, True)
    with pytest.raises(Refusal, match="CONCURRENT_TRANSACTIONS"):
        log.write(who, 0, PLACE, [entry()])
    seen = set()
    for _ in range(60):
        pass_time(scheduler, 0.1)
        seen.add((log[PLACE].stable, log[OTHER].stable, log.positions.get(("in", 0))))
    assert len(seen) == 4, "three markers, one after the other"
    assert (2, 2, 7) in seen
    log.write(who, 0, PLACE, [entry()])


def test_a_transaction_out_of_time_is_aborted_and_its_producer_is_fenced() -> None:
    scheduler = Scheduler(0)
    log = Log(scheduler)
    who = log.producer(5.0)
    log.write(who, 0, PLACE, [entry()])
    pass_time(scheduler, 5.5)
    log.expire()
    pass_time(scheduler, 1.0)
    assert log[PLACE].stable == log[PLACE].end
    assert values(log) == []
    for late in (lambda: log.write(who, 0, PLACE, [entry()]), lambda: log.end(who, 0, True)):
        with pytest.raises(Refusal, match="_FENCED"):
            late()


def test_compaction_keeps_the_last_committed_record_of_a_key_at_its_offset() -> None:
    scheduler = Scheduler(0)
    log = Log(scheduler)
    for value in (b"1", b"2"):
        log.append(PLACE, entry(value))
    log.append(PLACE, entry(b"3", b"other"))
    who = log.producer(5.0)
    log.write(who, 0, PLACE, [entry(b"open")])
    log.compact("t")
    assert [(at, e.value) for at, e in log[PLACE].committed()] == [(1, b"2"), (2, b"3")]


def test_a_member_that_is_silent_past_its_session_may_not_commit_and_its_partitions_go_on() -> None:
    scheduler = Scheduler(0)
    group = Group(scheduler, partitions=4)
    told: dict[str, Joined] = {}
    group.join(None, lambda joined: told.update(a=joined))
    group.join(None, lambda joined: told.update(b=joined))
    pass_time(scheduler, 1.0)
    a, b = told["a"], told["b"]
    assert sorted(a.partitions + b.partitions) == [0, 1, 2, 3]
    group.check(a.member_id, a.generation)
    pass_time(scheduler, SESSION_S - 1.5)
    assert group.heartbeat(b.member_id, b.generation) == "fine"
    pass_time(scheduler, 1.0)
    group.expire()
    with pytest.raises(Refusal, match="UNKNOWN_MEMBER_ID"):
        group.check(a.member_id, a.generation)
    group.join(b.member_id, lambda joined: told.update(b=joined))
    pass_time(scheduler, 1.0)
    assert told["b"].partitions == [0, 1, 2, 3]
    with pytest.raises(Refusal, match="ILLEGAL_GENERATION"):
        group.check(b.member_id, b.generation)
    assert group.heartbeat(a.member_id, a.generation) == "unknown"


def test_a_power_failure_takes_the_last_write_batches_and_no_half_of_one() -> None:
    disk = Disk()
    for n in range(3):
        batch = Batch()
        batch.put(b"a", b"%d" % n)
        batch.put(b"b%d" % n, b"")
        disk.write(batch.changes)
    disk.lose_last(2)
    assert disk.data == {b"a": b"0", b"b0": b""}


def test_a_stopped_process_goes_on_where_it_was_and_a_killed_one_does_not() -> None:
    scheduler = Scheduler(0)
    stopped, killed = Owner("stopped"), Owner("killed")
    seen: list[str] = []

    def body(owner: Owner) -> None:
        try:
            for n in range(3):
                scheduler.wait(1.0)
                seen.append(f"{owner.name} {n} at {scheduler.now_s:.0f}")
        except Killed:
            seen.append(f"{owner.name} unwinds")
            raise

    scheduler.spawn(stopped, lambda: body(stopped))
    scheduler.spawn(killed, lambda: body(killed))
    scheduler.after(1.5, lambda: scheduler.stop(stopped))
    scheduler.after(1.5, lambda: scheduler.kill(killed))
    scheduler.after(9.0, lambda: scheduler.resume(stopped))
    pass_time(scheduler, 20.0)
    scheduler.close()
    assert seen == ["stopped 0 at 1", "killed 0 at 1", "killed unwinds", "stopped 1 at 9", "stopped 2 at 10"]


@pytest.mark.parametrize("seed", range(5))
def test_a_schedule_has_fifty_events_of_every_kind_two_workers_and_three_faults(seed: int) -> None:
    result = run(seed, trace=True)
    assert result.violations == []
    assert result.trace is not None
    said = [line for line in result.trace if "event: " in line]
    assert result.events == len(said) >= 50
    assert all(any(f"event: {kind} " in line for line in said) for kind in KINDS)
    assert sum(result.faults.values()) >= 3
    assert {"a starts", "b starts"} <= {line.split("  ")[-1] for line in result.trace}


def test_a_seed_is_the_same_schedule_again_in_any_process() -> None:
    first = run(7, trace=True).trace
    assert first is not None
    assert run(7, trace=True).trace == first
    assert run(8, trace=True).trace != first
    command = [sys.executable, str(_TESTS / "simulation"), "--first", "7", "--trace"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONHASHSEED": "77"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == first
