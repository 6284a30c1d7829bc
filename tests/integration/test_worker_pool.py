"""Small workspaces in one worker process: they come and go, one that is broken or floods stops no other, nothing is lost with the process.

A broker of this module's own: a shared worker joins every small workspace that it finds, also those of other tests.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer, TopicPartition
from treadle.log import Admin, Sender, read
from treadle.settings import Settings
from treadle_schemas import GradedRow, Metric, WorkspaceSettings, codec
from treadle_schemas.topics import group, prefix, topic
from treadle_streams import workspaces
from treadle_streams.broker import LocalBroker
from treadle_streams.supervisor._overview import overview
from treadle_streams.worker import status_path
from treadle_streams.worker._pool_fetch import Feed, SharedFetch
from treadle_streams.worker._pool_producer import RestingProducer
from treadle_streams.worker._pool_turns import QUICK_THREADS, Turns

AT = "2026-01-01T00:00:00Z"
FLOOD = 6_000
"""Rows; six times what an inbox holds, so that it fills, lets go and is resumed many times."""


class World:
    """A broker, a home, and the workers that are started in it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.broker = LocalBroker(folder / "broker", die_with_parent=True, session_timeout_ms=1500)
        self.broker.start()
        self.servers = self.broker.bootstrap
        self.sender = Sender(self.servers)
        self.workers: list[subprocess.Popen[str]] = []

    def worker(self, *arguments: str, home: Path | None = None, **variables: str) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")}
        environment |= {"TREADLE_HOME": str(home or self.home), "TREADLE_BOOTSTRAP_SERVERS": self.servers} | variables
        command = [sys.executable, "-m", "treadle_streams.worker", *arguments]
        self.workers.append(subprocess.Popen(command, env=environment, text=True))
        return self.workers[-1]

    def create(self, partitions: int = 1, name: str = "") -> str:
        made = name or f"t-{secrets.token_hex(6)}"
        metrics = (Metric(name="reward", required=True),)
        settings = WorkspaceSettings(workspace=made, partitions=partitions, metrics=metrics)
        workspaces.create(self.servers, settings, home=self.home)
        return made

    def row(self, workspace: str, key: str, content: str = "hi") -> None:
        interaction = {
            "interaction_id": key,
            "agent": "bot",
            "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "hello"}],
            "started_at": AT,
            "ended_at": AT,
        }
        outcome = {"interaction_id": key, "name": "reward", "value": 1.0, "outcome_id": "o", "observed_at": AT}
        self.send(workspace, "interactions", codec.INTERACTION, key, json.dumps(interaction).encode())
        self.send(workspace, "outcomes", codec.OUTCOME, key, json.dumps(outcome).encode())

    def send(self, workspace: str, kind: str, event_type: str, key: str, value: bytes) -> None:
        headers = codec.make_headers(event_type, workspace, source="test")
        self.sender.send(topic(workspace, kind), key.encode(), value, headers)

    def status(self, workspace: str, home: Path | None = None) -> dict[str, Any]:
        try:
            return dict(json.loads(status_path(home or self.home, workspace).read_text()))
        except FileNotFoundError:
            return {}

    def graded(self, workspace: str, partitions: int = 1) -> dict[str, list[int]]:
        """The revisions of each row, in order."""
        rows: dict[str, list[int]] = {}
        for record in read(self.servers, topic(workspace, "graded"), partitions):
            row = msgspec.json.decode(record.value or b"", type=GradedRow)
            rows.setdefault(row.interaction_id, []).append(row.provenance.revision)
        return rows

    def settles(self, workspace: str, key: str) -> None:
        """Send a row and wait until it is graded, once."""
        self.row(workspace, key)
        self.sender.flush()
        self.wait(f"{key} of {workspace} settles", lambda: self.graded(workspace).get(key) == [1])

    def runs(self, workspace: str, **where: Path) -> int:
        """Wait until a workspace is joined; the process."""
        self.wait(f"{workspace} is joined", lambda: self.status(workspace, **where).get("state") == "running")
        return int(self.status(workspace, **where)["pid"])

    def wait(self, what: str, condition: Callable[[], bool], deadline_s: float = 150.0) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            for worker in self.workers:
                ended = worker.poll() not in (None, 0, -signal.SIGKILL)
                assert not ended, f"{what}: a worker ended with {worker.returncode}"
            seen = {p.name: p.read_text()[:400] for p in (self.home / "run").glob("worker-*.json")}
            assert time.monotonic() < end, f"{what}: not within {deadline_s} s; {seen}"
            time.sleep(0.1)

    def stop(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.terminate()
        for worker in self.workers:
            worker.wait(60)
        self.workers.clear()


@pytest.fixture(scope="module")
def module_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("pool"))
    try:
        yield made
    finally:
        made.broker.kill()


@pytest.fixture
def world(module_world: World) -> Iterator[World]:
    """The module's broker without workspaces or workers of an earlier test."""
    try:
        yield module_world
    finally:
        module_world.stop()
        for name in workspaces.names(module_world.servers):
            workspaces.delete(module_world.servers, name)


def test_small_workspaces_share_a_process_as_they_come_and_go(world: World) -> None:
    first, big = world.create(), world.create(partitions=2)
    parent = world.worker()
    shared = world.runs(first)
    second = world.create()
    assert world.runs(second) == shared
    assert world.runs(big) not in (shared, parent.pid)
    world.settles(first, "x")
    world.settles(second, "x")

    workspaces.delete(world.servers, first)
    assert world.status(first) == {}
    admin = Admin(world.servers)
    assert not [name for name in admin.partitions() if name.startswith(prefix(first))]
    assert admin.groups(prefix(first)) == {}
    world.settles(second, "y")
    world.create(name=first)
    assert world.runs(first) == shared
    world.settles(first, "x")  # revision 1: the state of the one before is gone

    # killed, it is started again, and goes on where it was
    os.kill(shared, signal.SIGKILL)
    world.row(first, "while-away")
    world.row(second, "while-away")
    world.sender.flush()
    for name in (first, second):
        world.wait("another process", lambda name=name: world.status(name).get("pid") != shared)  # type: ignore[misc]
        world.wait("it settles", lambda name=name: world.graded(name).get("while-away") == [1])  # type: ignore[misc]
    assert world.graded(second) == {"x": [1], "y": [1], "while-away": [1]}
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(60) == 0
    assert not Path(f"/proc/{world.status(first).get('pid', 0)}").exists() or world.status(first) == {}


@pytest.mark.long
def test_a_broken_workspace_is_taken_out_shown_and_tried_again_while_the_others_go_on(world: World) -> None:
    lost, missing, corrupt, poisoned, fine = (world.create() for _ in range(5))
    worker = world.worker("--small")
    for name in (lost, missing, corrupt, poisoned, fine):
        world.runs(name)
        world.settles(name, "before")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    admin = Admin(world.servers)
    changelog = group(lost, "join") + "-rows-changelog"
    admin.delete([changelog])
    world.wait("the changelog is gone", lambda: changelog not in admin.partitions())
    (current,) = (world.home / "state" / corrupt).rglob("CURRENT")
    current.write_bytes(b"no database\n")

    world.worker("--small")
    world.runs(fine)
    admin.delete([topic(missing, "outcomes")])
    for name, reason in ((lost, "there is no META"), (missing, "outcomes"), (corrupt, "cannot be opened")):
        world.wait(
            f"{name} is taken out",
            lambda name=name, reason=reason: reason in world.status(name).get("error", ""),  # type: ignore[misc]
        )
    for number in range(50):
        world.send(poisoned, "interactions", codec.INTERACTION, "x", b"{no json %d" % number)
    world.settles(poisoned, "after")
    world.settles(fine, "after")
    assert len(list(read(world.servers, topic(poisoned, "dead-letter"), 1))) == 50
    world.wait("it is tried again", lambda: world.status(lost).get("failures", 0) >= 3)
    found = overview(Settings(home=world.home, corpus_root=world.home, configured_servers=world.servers))
    assert {v.workspace: v.worker for v in found.workspaces} == {
        lost: "failing",
        missing: "failing",
        corrupt: "failing",
        poisoned: "running",
        fine: "running",
    }
    assert sum("not joined" in problem for problem in found.problems) == 3

    # what was broken comes back by itself once it is mended
    folder = current.parent
    folder.rename(folder.with_name("set-aside"))
    world.runs(corrupt)
    world.settles(corrupt, "after")
    assert world.graded(corrupt) == {"before": [1], "after": [1]}


@pytest.mark.long
def test_a_flooding_workspace_lets_others_through_and_loses_nothing(world: World) -> None:
    flooded, quiet = world.create(), world.create()
    for number in range(FLOOD):
        world.row(flooded, f"r{number}", "x" * 500)
    world.sender.flush()
    world.worker("--small")
    world.runs(quiet)
    world.settles(quiet, "beside")
    assert world.status(flooded).get("settled") != FLOOD, "the quiet one did not wait for the end of the flood"
    world.wait("the flood is joined", lambda: world.status(flooded).get("settled") == FLOOD, 120)
    assert world.graded(flooded) == {f"r{number}": [1] for number in range(FLOOD)}


@pytest.mark.long
def test_a_broker_that_restarts_is_survived(world: World) -> None:
    names = [world.create() for _ in range(3)]
    world.worker()
    for name in names:
        world.runs(name)
        world.settles(name, "before")
    world.broker.kill()
    world.broker.start()
    for name in names:
        world.settles(name, "after")
        assert world.graded(name) == {"before": [1], "after": [1]}


@pytest.mark.fault
@pytest.mark.long
def test_a_shared_worker_that_is_stopped_in_a_batch_and_woken_too_late_changes_nothing(
    world: World, tmp_path: Path
) -> None:
    names = [world.create() for _ in range(2)]
    sleeper = world.worker("--small", home=tmp_path, TREADLE_FAULT_STOP_AT="flush:1")
    for name in names:
        world.row(name, "x")
    world.sender.flush()
    state = Path(f"/proc/{sleeper.pid}/stat")
    world.wait("it is stopped", lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
    world.worker("--small")
    for name in names:
        world.wait("the other one has joined it", lambda name=name: world.graded(name) == {"x": [1]})  # type: ignore[misc]
    sleeper.send_signal(signal.SIGCONT)
    for name in names:
        world.settles(name, "y")
        assert world.graded(name) == {"x": [1], "y": [1]}


@pytest.mark.long
def test_an_inbox_that_is_full_lets_go_of_its_partition_and_misses_nothing_when_it_goes_on(world: World) -> None:
    full, free = world.create(), world.create()
    names = {name: topic(name, "interactions") for name in (full, free)}
    for number in range(3_000):
        world.send(full, "interactions", codec.INTERACTION, "x", b"%d" % number)
    world.send(free, "interactions", codec.INTERACTION, "x", b"free")
    world.sender.flush()
    failures: list[BaseException] = []
    fetch = SharedFetch(world.servers, failures.append)
    fetch.start()
    try:
        slow, quick = (fetch.feed(lambda: None, 100, 1 << 20) for _ in range(2))
        slow.assign([TopicPartition(names[full], 0, 0)])
        world.wait("it is full", lambda: slow.held)
        quick.assign([TopicPartition(names[free], 0, 0)])
        found: list[bytes] = []

        def records(feed: Feed, limit: int) -> list[bytes]:
            return [m.value() or b"" for m in feed.consume(limit, 0.0) if m.error() is None]

        def free_came() -> bool:
            found.extend(records(quick, 10))
            return found == [b"free"]

        world.wait("the other one is served", free_came)
        seen: list[bytes] = []
        lettings_go = 0

        def all_came() -> bool:
            nonlocal lettings_go
            lettings_go += slow.held
            seen.extend(records(slow, 70))
            return len(seen) >= 3_000

        world.wait("all came", all_came)
        assert seen == [b"%d" % number for number in range(3_000)]
        assert lettings_go > 1

        # what an earlier assignment fetched is gone
        slow.assign([TopicPartition(names[full], 0, 2_990)])
        again: list[bytes] = []

        def rest_came() -> bool:
            again.extend(records(slow, 70))
            return len(again) >= 10

        world.wait("the rest came again", rest_came)
        assert again == [b"%d" % number for number in range(2_990, 3_000)]
    finally:
        fetch.close()
        fetch.join(30)
    assert failures == []


@pytest.mark.long
def test_a_producer_that_rested_goes_on_with_its_next_transaction(world: World) -> None:
    name = topic(world.create(), "dead-letter")
    config = {"bootstrap.servers": world.servers, "transactional.id": f"{name}-test", "log_level": 0}
    producer = RestingProducer(config, lambda made: Producer(dict(made)))
    producer.init_transactions(30)
    assert not producer.awake
    for value in (b"1", b"2"):
        producer.begin_transaction()
        producer.produce(name, value, None, 0)
        producer.rest(60)
        assert producer.awake
        producer.commit_transaction(30)
        producer.rest(0)
        assert not producer.awake
    assert [record.value for record in read(world.servers, name, 1)] == [b"1", b"2"]


class _Seat:
    """Takes turns and writes down that it did."""

    def __init__(self, name: str, log: list[str], *, endless: bool) -> None:
        self.name, self.log, self.endless = name, log, endless
        self.queued = self.running = self.again = self.over = self.long = False

    def turn(self, *, quick: bool) -> bool:
        self.log.append(self.name)
        return self.endless and not self.over


def test_whoever_waits_is_taken_before_anybody_is_taken_twice() -> None:
    """The bound: between two turns of one that floods, each one that waits gets its own."""
    log: list[str] = []
    turns = Turns(lambda err: None)
    greedy = [_Seat(f"greedy-{n}", log, endless=True) for n in range(2)]
    modest = [_Seat(f"modest-{n}", log, endless=False) for n in range(20)]
    for seat in (*greedy, *modest):
        turns.wake(seat)
    turns.start()
    try:
        end = time.monotonic() + 20
        while len({name for name in log if name.startswith("modest")}) < len(modest):
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        for seat in greedy:
            seat.over = True
        turns.close()
    for seat in greedy:
        assert turns.wait_idle(seat, 10)
        at = [i for i, name in enumerate(log) if name == seat.name]
        served = sum(name.startswith("modest") for name in log[: at[1]])
        # the other threads may have taken one each and not begun
        assert served >= len(modest) - (QUICK_THREADS - 1)
