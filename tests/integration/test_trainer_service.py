"""The trainer service on a real broker: versions wake it, it does each turn once, whatever happens to it.

The training itself is tested in test_train_turn; here candidates are registered beforehand, as after a crash between training and
evaluation, so that the service's own work is seen alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from treadle.log import Sender, read
from treadle_corpus import Corpus, CorpusWriter, Policy
from treadle_corpus.testing import SelectAll, graded
from treadle_schemas import ReleaseEvent, ReleaseId, SnapshotRecord, Split, WorkspaceSettings
from treadle_schemas.codec import SNAPSHOT, decode, encode, make_headers, to_json
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_trainer.jobs import JobRunner
from treadle_trainer.policy import GatePolicy, TrainingPolicy
from treadle_trainer.queue import JobQueue
from treadle_trainer.registry import Registry
from treadle_trainer.service import TrainerService
from treadle_trainer.storage import Storage
from treadle_trainer.turn import job_key

HERE = Path(__file__).parent
POLICY = TrainingPolicy(
    environment="train_world:WordWorld",
    evaluator="train_world:by_skill_file",
    eval_tasks=80,
    timeout_s=60,
    gate=GatePolicy(min_tasks=40),
    scorecard=None,  # these folders hold no model
)


class World:
    def __init__(self, broker: str, name: str, home: Path) -> None:
        self.broker, self.name, self.home, self.root = broker, name, home, home / "registry"
        workspaces.create(broker, WorkspaceSettings(workspace=name, partitions=1, split=Split(share=0.2)))
        self.registry = Registry(self.root, name)
        POLICY.save(self.root, name, "main")
        self.corpus = home / "corpora" / "main"

    def first_champion(self) -> None:
        self.registry.promote(self.registry.register(self.model(0.3)), expect=None, reason="what runs today")

    def model(self, skill: float) -> Path:
        folder = self.home / f"model-{skill}"
        folder.mkdir(exist_ok=True)
        (folder / "skill").write_text(str(skill))
        return folder

    def version(self, path: Path, skill: float, rows: int = 5, policy: TrainingPolicy = POLICY) -> int:
        """A next version, the candidate that training on it gave, and the record that tells of it."""
        with CorpusWriter.open(path, workspace=self.name, policy=Policy()) as writer:
            start = sum(writer.offsets.values())
            writer.apply([graded(f"{path.name}-{start + n}") for n in range(rows)], {0: start + rows}, 1)
            manifest = writer.finish(SelectAll())
        assert manifest is not None
        key = job_key(Corpus.open(path), policy)
        self.registry.register(self.model(skill), actor="trainer", parent="x", config={"job": key, "training": {}})
        record = SnapshotRecord(
            corpus=str(path),
            version=manifest.version,
            content_hash=manifest.content_hash,
            rows=manifest.rows,
            new_rows=rows,
            added=manifest.added,
            updated=0,
            removed=0,
            created_at="2026-01-01T00:00:00Z",
            last_append_ms=123,
        )
        sender = Sender(self.broker)
        headers = make_headers(SNAPSHOT, self.name, source="test")
        sender.send(topic(self.name, "snapshots"), str(path).encode(), encode(to_json(record)), headers)
        sender.flush()
        return manifest.version

    def decisions(self) -> list[tuple[str, int]]:
        return [
            (e.event, e.evidence["version"])
            for e in self.registry.events()
            if e.actor == "trainer" and "gate" in e.evidence
        ]

    def told(self) -> list[ReleaseEvent]:
        records = read(self.broker, topic(self.name, "releases"), 1)
        return [msgspec.convert(decode(r.value, r.headers).data, ReleaseEvent) for r in records]


@pytest.fixture
def world(broker: str, workspace_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    return World(broker, workspace_name, tmp_path)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[JobRunner]:
    with JobRunner(tmp_path / "jobs", preload=False) as made:
        yield made


def _until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)


def _serve(world: World, runner: JobRunner) -> None:
    """Do what is due, as `treadle trainer --once` does."""
    TrainerService(world.root, runner, world.broker, world.name).run(lambda: False, once=True)


def test_a_new_version_wakes_the_trainer_and_its_decision_is_told(world: World, runner: JobRunner) -> None:
    world.first_champion()
    world.version(world.corpus, 0.9)
    _serve(world, runner)
    assert world.decisions() == [("promoted", 1)]
    event = world.told()[-1]
    assert (event.event, event.champion) == ("promoted", f"{world.name}/main/r1")
    snapshot = event.evidence["snapshot"]
    assert (snapshot["offset"], snapshot["last_append_ms"], snapshot["created_at"]) == (0, 123, "2026-01-01T00:00:00Z")
    assert snapshot["append_ms"] <= snapshot["seen_ms"] + 1000
    assert event.evidence["gate"]["candidate"] > event.evidence["gate"]["champion"]

    # a restart, with and without its own memory of it, does nothing again
    _serve(world, runner)
    (world.registry.path / "trainer.json").unlink()
    _serve(world, runner)
    assert world.decisions() == [("promoted", 1)]

    world.version(world.corpus, 0.2)
    _serve(world, runner)
    assert world.decisions() == [("promoted", 1), ("rejected", 2)]
    assert str(world.registry.champion).endswith("/r1")


def test_of_several_waiting_versions_only_the_newest_is_trained_on(world: World, runner: JobRunner) -> None:
    world.first_champion()
    for _ in range(3):
        world.version(world.corpus, 0.9)
    _serve(world, runner)
    assert world.decisions() == [("promoted", 3)]


def test_few_new_rows_wait_for_more(world: World, runner: JobRunner) -> None:
    policy = POLICY.changed({"min_new_rows": 9})
    policy.save(world.root, world.name, "main")
    world.first_champion()
    world.version(world.corpus, 0.9, rows=5, policy=policy)
    _serve(world, runner)
    assert world.decisions() == []
    world.version(world.corpus, 0.9, rows=5, policy=policy)
    _serve(world, runner)
    assert world.decisions() == [("promoted", 2)]
    world.version(world.corpus, 0.95, rows=5, policy=policy)
    _serve(world, runner)
    assert len(world.decisions()) == 1


def test_versions_of_another_corpus_start_nothing(world: World, runner: JobRunner) -> None:
    POLICY.changed({"corpus": str(world.corpus)}).save(world.root, world.name, "main")
    world.first_champion()
    world.version(world.home / "corpora" / "poisoned", 0.9)
    _serve(world, runner)
    assert world.decisions() == []


def test_without_a_first_champion_it_waits_for_one(world: World, runner: JobRunner) -> None:
    world.version(world.corpus, 0.9)
    service = TrainerService(world.root, runner, world.broker)
    for _ in range(10):
        service.tick()
    assert world.decisions() == []
    world.first_champion()
    _until(service.tick)
    assert world.decisions() == [("promoted", 1)]
    for desk in service._desks.values():
        desk.close()


def test_a_version_that_cannot_be_read_is_told_as_failed(world: World, runner: JobRunner) -> None:
    world.first_champion()
    world.version(world.corpus, 0.9)
    (world.corpus / "corpus.json").write_text("{}")
    _serve(world, runner)
    assert world.told()[-1].event == "failed"
    assert world.told()[-1].evidence["version"] == 1


def test_with_a_manual_trigger_only_a_person_starts_jobs_and_may_cancel_and_resume_them(
    world: World, runner: JobRunner
) -> None:
    policy = POLICY.changed({"trigger": "manual"})
    policy.save(world.root, world.name, "main")
    world.first_champion()
    world.version(world.corpus, 0.9, policy=policy)
    _serve(world, runner)
    assert world.decisions() == []
    queue = JobQueue(world.registry.path)
    job, _ = queue.submit(str(world.corpus), 1, fingerprint=policy.fingerprint)
    hold = world.root / world.name / "hold"
    hold.touch()
    service = threading.Thread(target=_serve, args=(world, runner))
    service.start()
    _until(lambda: list(world.home.glob("jobs/*-evaluate/log.txt")) != [])
    assert queue.job(job.number).state == "running"
    queue.cancel(job.number)
    service.join(30)
    assert queue.job(job.number).state == "cancelled"
    assert world.decisions() == []

    hold.unlink()
    queue.resume(job.number)
    _serve(world, runner)
    done = queue.job(job.number)
    assert (done.state, done.decision, done.release) == ("done", "promoted", f"{world.name}/main/r1")
    assert world.decisions() == [("promoted", 1)]
    assert world.told()[-1].evidence["queue"] == job.number
    assert (world.home / "jobs" / f"{done.key}-evaluate" / "log.txt").exists()


def test_on_a_schedule_a_version_waits_until_its_time_has_come(world: World, runner: JobRunner) -> None:
    policy = POLICY.changed({"trigger": "schedule", "every_s": 3600})
    policy.save(world.root, world.name, "main")
    world.first_champion()
    world.version(world.corpus, 0.9, policy=policy)
    _serve(world, runner)
    assert world.decisions() == [("promoted", 1)]
    world.version(world.corpus, 0.95, policy=policy)
    _serve(world, runner)
    assert len(world.decisions()) == 1
    policy.changed({"every_s": 0.1}).save(world.root, world.name, "main")
    _serve(world, runner)
    assert [version for _, version in world.decisions()] == [1, 2]
    assert [job.state for job in JobQueue(world.registry.path).jobs()] == ["done", "done"]


def test_a_job_of_an_older_version_that_had_not_begun_is_superseded(world: World, runner: JobRunner) -> None:
    world.first_champion()
    world.version(world.corpus, 0.9)
    queue = JobQueue(world.registry.path)
    queue.submit(str(world.corpus), 1, fingerprint=POLICY.fingerprint, actor="trainer")  # and then the service ended
    world.version(world.corpus, 0.9)
    _serve(world, runner)
    assert [(job.version, job.state) for job in queue.jobs()] == [(1, "superseded"), (2, "done")]
    assert queue.job(1).reason == "job 2 on v2 took its place"
    POLICY.changed({"trigger": "manual"}).save(world.root, world.name, "main")
    queue.submit(str(world.corpus), 1, fingerprint="before", actor="trainer")
    world.version(world.corpus, 0.9)
    _serve(world, runner)
    assert queue.job(3).state == "superseded"


def test_one_service_at_a_time_serves_a_slot(world: World, runner: JobRunner) -> None:
    world.first_champion()
    first, second = (TrainerService(world.root, runner, world.broker, world.name) for _ in range(2))
    first.tick()
    assert list(first._desks) == [(world.name, "main")]
    second.tick()
    assert second._desks == {}
    assert "another trainer serves it" in second._troubles[world.name, "main"]
    for desk in first._desks.values():
        desk.close()
    second._looked = -10.0
    second.tick()
    assert list(second._desks) == [(world.name, "main")]
    for desk in second._desks.values():
        desk.close()


def test_a_job_without_room_waits_and_says_why_until_there_is_some(world: World, runner: JobRunner) -> None:
    world.first_champion()
    world.version(world.corpus, 0.9)
    storage = Storage(world.root, runner.root, world.home / "corpora", budget=10)
    service = TrainerService(world.root, runner, world.broker, world.name, storage)
    queue = JobQueue(world.registry.path)
    _until(lambda: not service.tick() and queue.jobs() != [] and queue.job(1).reason is not None)
    assert queue.job(1).state == "queued"
    assert "job 1 wants" in str(queue.job(1).reason)
    assert "TREADLE_TRAINER_BYTES" in str(queue.job(1).reason)
    storage.budget = 10**9
    for desk in service._desks.values():
        desk._retry_at = 0.0
    _until(service.tick)
    assert (queue.job(1).state, queue.job(1).decision) == ("done", "promoted")
    for desk in service._desks.values():
        desk.close()


def test_a_job_that_takes_too_much_memory_fails_and_may_be_resumed_with_more(world: World, runner: JobRunner) -> None:
    policy = POLICY.changed({"memory_gb": 0.3, "evaluator": "train_world:hungry_once"})
    policy.save(world.root, world.name, "main")
    world.first_champion()
    world.version(world.corpus, 0.9, policy=policy)
    _serve(world, runner)
    queue, nursery = JobQueue(world.registry.path), runner._nursery
    assert queue.job(1).state == "failed"
    assert "policy memory_gb lets a job have 0.30 GB" in str(queue.job(1).reason)
    assert world.told()[-1].event == "failed"
    (world.root / world.name / "room").touch()
    queue.resume(1)
    _serve(world, runner)
    assert (queue.job(1).state, queue.job(1).decision) == ("done", "promoted")
    assert runner._nursery is nursery


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_job_leaves_the_registry_valid_and_with_room_all_goes_on(
    broker: str, workspace_name: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    world = World(broker, workspace_name, small_disk)
    policy = POLICY.changed({"evaluator": "train_world:filling"})
    policy.save(world.root, world.name, "main")
    world.first_champion()
    world.version(world.corpus, 0.9, policy=policy)
    queue, workspace = JobQueue(world.registry.path), world.root / world.name
    with JobRunner(small_disk / "jobs", preload=False) as runner:
        service = TrainerService(world.root, runner, world.broker, world.name)
        _until(lambda: not service.tick() and (workspace / "filler").exists())
        assert shutil.disk_usage(small_disk).free < 10_000
        assert "disk is full" in service._troubles[world.name, "main"]
        registry = Registry(world.root, world.name)
        assert str(registry.champion).endswith("/r0")
        for manifest in registry.releases():
            registry.verify(ReleaseId.parse(manifest.release))
        (workspace / "filler").unlink()
        (workspace / "room").touch()
        _until(service.tick)
        for desk in service._desks.values():
            desk.close()
    assert (queue.job(1).state, queue.job(1).decision) == ("done", "promoted")


_SERVICE = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from treadle_trainer.jobs import JobRunner
    from treadle_trainer.service import TrainerService

    home, broker, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    with JobRunner(home / "jobs", preload=False) as runner:
        TrainerService(home / "registry", runner, broker, name).run(lambda: False, once=True)
    """
)


def test_a_trainer_killed_in_mid_turn_finishes_it_once_after_the_restart(world: World) -> None:
    world.first_champion()
    world.version(world.corpus, 0.9)
    hold = world.root / world.name / "hold"
    hold.touch()
    command = [sys.executable, "-c", _SERVICE, str(world.home), world.broker, world.name]
    process = subprocess.Popen(command, env=dict(os.environ))
    try:
        _until(lambda: list(world.home.glob("jobs/*-evaluate/log.txt")) != [])
        process.kill()
        process.wait()
        assert world.decisions() == []
        assert not (world.registry.path / "trainer.json").exists()
        hold.unlink()
        assert subprocess.run(command, timeout=60, check=False).returncode == 0
    finally:
        process.kill()
        process.wait()
    assert world.decisions() == [("promoted", 1)]
    assert len(world.registry.releases()) == 2
