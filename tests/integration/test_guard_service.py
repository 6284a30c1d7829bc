"""The guard on a real broker: it rolls back once, by itself, and survives being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from treadle import Releases
from treadle.log import Record, Sender, TailReader, read
from treadle_schemas import Grade, Progress, ReleaseEvent, WorkspaceSettings
from treadle_schemas.codec import CLOCK, PROGRESS, decode, encode, make_headers, to_json
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_trainer._workspace import workspace_settings
from treadle_trainer.evaluate.calibration import points
from treadle_trainer.guard import GuardService, lower_bound
from treadle_trainer.policy import GuardPolicy, TrainingPolicy
from treadle_trainer.registry import Outbox, Registry, flags

AGE_S = 1.0
PARTITIONS = 2
POLICY = TrainingPolicy(guard=GuardPolicy(age_s=AGE_S, min_baseline=30, tolerance=0.05, alpha=0.01))


class World:
    """A workspace whose `.progress` the test writes itself, and a registry with two releases."""

    def __init__(self, broker: str, name: str, home: Path) -> None:
        self.broker, self.name, self.home = broker, name, home
        workspaces.create(broker, WorkspaceSettings(workspace=name, partitions=PARTITIONS))
        self.registry = Registry(home / "registry", name)
        POLICY.save(home / "registry", name, "main")
        for _ in range(2):
            release = self.registry.register(hosted="model")
            self.registry.promote(release, expect=self.registry.champion, reason="next")
        self._topic = topic(name, "progress")
        self._row = 0
        self._sender = Sender(broker)
        self.pass_time(0)  # connected, so that no row is late by that

    def live(self, release: str, values: list[float]) -> None:
        """Rows of a release with their outcomes, append times as the broker will give them; then time passes their age."""
        self.write([(release, value) for value in values])
        self.pass_time(time.monotonic() + AGE_S + 0.3)

    def write(self, rows: list[tuple[str, float]]) -> None:
        """Rows with their outcomes, append times as the broker will give them."""
        for release, value in rows:
            self._row += 1
            grade = Grade(
                metrics={"reward": ("observed", value)}, reward=value, completeness=1.0, settled=True, grading_version=1
            )
            row = Progress(
                episode_id=f"e{self._row}",
                interaction_id=f"i{self._row}",
                task_id=None,
                agent="a",
                slot="main",
                release=f"{self.name}/main/{release}",
                grade=grade,
                split="train",
                revision=1,
                append_ms=time.time_ns() // 1_000_000,
                ended_at="2026-01-01T00:00:00Z",
            )
            headers = make_headers(PROGRESS, self.name, source="test")
            self._sender.send(
                self._topic, row.episode_id.encode(), encode(to_json(row)), headers, self._row // 2 % PARTITIONS
            )
        self._sender.flush()

    def pass_time(self, until: float) -> None:
        """Clock records, as the worker writes them, until the age of everything written has passed."""
        while True:
            for partition in range(PARTITIONS):
                headers = make_headers(CLOCK, self.name, source="test")
                self._sender.send(self._topic, None, b"{}", headers, partition)
            self._sender.flush()
            if time.monotonic() > until:
                return
            time.sleep(0.1)  # the clock of the topic is the broker's, which only time moves

    def told(self) -> list[ReleaseEvent]:
        records = read(self.broker, topic(self.name, "releases"), 1)
        return [msgspec.convert(decode(r.value, r.headers).data, ReleaseEvent) for r in records]


@pytest.fixture
def world(broker: str, workspace_name: str, tmp_path: Path) -> World:
    return World(broker, workspace_name, tmp_path)


def _until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)


def _ticks(service: GuardService, n: int) -> None:
    for _ in range(n):
        service.tick()


def test_a_bad_champion_is_rolled_back_once_and_everyone_is_told(world: World) -> None:
    service = GuardService(world.home / "registry", world.broker)
    world.live("r0", [1.0, 0.0, 1.0, 1.0] * 15)
    world.live("r1", [1.0, 1.0, 0.0, 1.0] * 10)
    _ticks(service, 10)
    assert str(world.registry.champion).endswith("/r1")

    world.live("r1", [0.0] * 40)
    _until(lambda: not service.tick() or str(world.registry.champion).endswith("/r0"))
    assert str(world.registry.champion).endswith("/r0")
    _ticks(service, 3)
    service.close()

    events = world.registry.events()
    back, quarantined = events[-1], events[-2]
    assert (quarantined.event, back.event, back.actor) == ("quarantined", "rolled_back", "guard")
    assert (back.previous, back.champion) == (f"{world.name}/main/r1", f"{world.name}/main/r0")
    evidence = back.evidence
    assert 40 < evidence["after_rows"] <= 80
    assert evidence["baseline"] == pytest.approx(0.75)
    assert evidence["floor"] == pytest.approx(lower_bound(0.75, 60, 0.01 / 4) - 0.05)
    assert (evidence["baseline_rows"], evidence["age_s"], evidence["metric"]) == (60, AGE_S, "reward")
    assert evidence["e_value"] >= 400
    assert [e.sequence for e in world.told()] == list(range(len(events)))
    assert world.told()[-1] == back

    # another guard, from the saved state and from nothing, finds the work done
    for fresh in (False, True):
        if fresh:
            (world.home / "registry" / world.name / "guard.json").unlink()
        again = GuardService(world.home / "registry", world.broker, world.name)
        _ticks(again, 10)
        again.close()
    assert world.registry.events() == events


def test_a_guard_under_steady_traffic_judges_as_well(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class NeverAtTheEnd(TailReader):
        """As where records come faster than a reader finds no more."""

        def poll(self, timeout_s: float, limit: int = 1000) -> list[Record]:
            found = super().poll(timeout_s, limit)
            self.at_end.clear()
            return found

    monkeypatch.setattr("treadle_trainer.guard._service.TailReader", NeverAtTheEnd)
    world.live("r0", [1.0] * 40)
    world.live("r1", [0.0] * 40)
    service = GuardService(world.home / "registry", world.broker)
    _until(lambda: not service.tick() or str(world.registry.champion).endswith("/r0"))
    service.close()
    assert world.registry.events()[-1].event == "rolled_back"


def test_a_guard_that_is_killed_goes_on_where_it_was(world: World) -> None:
    command = [sys.executable, "-m", "treadle", "guard", "--workspace", world.name]
    env = {**os.environ, "TREADLE_HOME": str(world.home), "TREADLE_BOOTSTRAP_SERVERS": world.broker}
    saved = world.home / "registry" / world.name / "guard.json"

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE)

    def end(process: subprocess.Popen[bytes], number: int) -> bytes:
        process.send_signal(number)
        return process.communicate(timeout=20)[1]

    process = start()
    try:
        world.live("r0", [1.0] * 40)
        world.live("r1", [0.0, 1.0] * 2)
        # it saves every few seconds, and moves on only with time
        _until(lambda: saved.exists() or world.pass_time(0) is not None, 30)
        end(process, signal.SIGKILL)
        state = json.loads(saved.read_bytes())
        assert state["positions"]
        world.live("r1", [0.0] * 30)
        process = start()
        _until(lambda: str(world.registry.champion).endswith("/r0"), 30)
        _until(lambda: world.told() != [] and world.told()[-1].event == "rolled_back", 30)
        log = end(process, signal.SIGTERM)
        assert process.returncode == 0, log
        assert b"rolled back to" in log
        assert [e.event for e in world.registry.events()].count("rolled_back") == 1
    finally:
        process.kill()
        process.communicate()


def test_what_a_crash_left_unpublished_is_published_by_the_next_one(world: World, tmp_path: Path) -> None:
    outbox = Outbox(world.registry, world.broker)
    assert outbox.publish() == 4
    assert outbox.publish() == 0
    world.registry.rollback("by hand")  # decided, and then the process died
    assert len(world.told()) == 4
    assert Outbox(Registry(world.home / "registry", world.name), world.broker).publish() == 2
    assert [e.event for e in world.told()[-2:]] == ["quarantined", "rolled_back"]
    # a crash between the broker's acknowledgement and the cursor repeats, and the sequence says so
    (world.registry.path / "published.json").write_text('{"sequence": 4}')
    assert outbox.publish() == 1
    assert [e.sequence for e in world.told()] == [0, 1, 2, 3, 4, 5, 5]


def test_a_workspace_that_was_made_anew_is_told_everything_again(
    world: World, broker: str, workspace_name: str
) -> None:
    Outbox(world.registry, world.broker).publish()
    workspaces.delete(broker, workspace_name)
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS))
    assert Outbox(world.registry, world.broker).publish() == 4
    assert [e.sequence for e in world.told()] == [0, 1, 2, 3]


def test_agents_hear_of_the_champion_that_the_registry_decided(world: World) -> None:
    Outbox(world.registry, world.broker).publish()
    with Releases(world.name, bootstrap_servers=world.broker) as releases:
        event = releases.current()
        assert event is not None
        assert event.champion == f"{world.name}/main/r1"
        world.registry.rollback("bad")
        Outbox(world.registry, world.broker).publish()
        moved = releases.poll(10.0)
        assert moved is not None
        assert moved.champion == f"{world.name}/main/r0"


def test_a_canary_goes_or_wins_without_a_person_and_agents_know_within_seconds(world: World) -> None:
    # the horizon is the default of seven days: no row settles here
    assert workspace_settings(world.broker, world.name).metrics[0].horizon_s == 7 * 86_400
    champion, versions = world.registry.champion, [f"/corpora/c@v{n}" for n in (3, 4)]
    assert champion is not None
    service = GuardService(world.home / "registry", world.broker)
    with Releases(world.name, bootstrap_servers=world.broker, registry=world.home / "registry") as releases:
        releases.current()
        for n, good in enumerate((False, True)):
            canary = world.registry.register(hosted="model", corpus="/corpora/c", corpus_version=3 + n)
            world.registry.admit(canary, share=0.3, expect=champion, reason="try")
            _until(lambda: not service.tick() or (releases.poll() is None and releases.traffic.canary is not None))
            name, wins = f"r{canary.number}", [1.0, 1.0, 1.0, 0.0] * 15
            losses = [1.0 - x for x in wins]
            ours, theirs = (wins, losses) if good else (losses, wins)
            both = [row for a, b in zip(ours, theirs, strict=True) for row in ((name, a), (f"r{champion.number}", b))]
            world.write(both)
            written = time.monotonic()

            def told() -> bool:
                service.tick()
                world.pass_time(0)
                releases.poll()
                return releases.traffic.canary is None

            _until(told)
            # the age of the row that decided is part of it
            assert time.monotonic() - written < AGE_S + 10
            event = world.registry.events()[-1]
            live = event.evidence["live"]
            if good:
                assert (event.event, releases.traffic.champion) == ("promoted", str(canary))
                assert live["effect"]["low"] > 0
            else:
                assert (event.event, releases.traffic.champion) == ("withdrawn", str(champion))
                assert world.registry.aliases.quarantined[str(canary.number)] == event.reason
                assert (live["decision"], event.evidence["flagged"]) == ("withdraw", versions[0])
                assert [f.version for f in flags(world.registry)] == [3]
            assert event.actor == "guard"
    service.close()
    saved = json.loads((world.registry.path / "live.json").read_bytes())
    assert saved["metric"] == "reward"
    found = points(world.registry)
    assert [(p.decision, p.live > 0, p.offline) for p in found] == [("withdraw", False, None), ("promote", True, None)]
