"""The trainer under kill -9 in the middle of a training: service, nursery and job gone at one moment, as with the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from treadle_corpus import Corpus, CorpusWriter, Policy
from treadle_corpus.testing import SelectAll, graded
from treadle_schemas import ReleaseId, Split, WorkspaceSettings
from treadle_streams import workspaces
from treadle_trainer.candidate import train_spec
from treadle_trainer.jobs import JobRunner
from treadle_trainer.policy import GatePolicy, TrainingPolicy
from treadle_trainer.queue import JobQueue
from treadle_trainer.registry import Registry

WORLD = Path(__file__).parents[1] / "integration"
POLICY = TrainingPolicy(
    environment="train_world:WordWorld",
    evaluator="train_world:by_folder_name",  # whatever it says: it is the weights that are looked at
    steps=40,
    save_steps=4,
    lr=1e-2,
    batch=4,
    max_length=64,
    eval_tasks=20,
    timeout_s=240,
    trigger="manual",
    gate=GatePolicy(min_tasks=10),
)
SERVICE = textwrap.dedent(
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


def _until(condition: Callable[[], bool], process: subprocess.Popen[bytes], timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, "the service ended by itself"
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.01)


def _below(pid: int) -> list[int]:
    """Children, and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *_below(child)]
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _corpus(path: Path, workspace: str) -> Path:
    from train_world import ANSWERS, WordWorld, said  # type: ignore[import-not-found]

    records = [
        graded(
            f"{n:03}",
            reward=1.0,
            task_id=task.task_id,
            messages=said(task, ANSWERS[task.data["kind"]]),
            response=[1],
            ended_at=f"2026-01-01T00:{n // 60:02}:{n % 60:02}Z",
            started_at="2026-01-01T00:00:00Z",
        )
        for n, task in enumerate(WordWorld().tasks(60, 11))
    ]
    with CorpusWriter.open(path, workspace=workspace, policy=Policy()) as writer:
        writer.apply(records, {0: len(records)}, 1)
        assert writer.finish(SelectAll()) is not None
    return path


@pytest.mark.long
def test_a_training_that_lost_all_its_processes_ends_with_the_weights_of_an_undisturbed_one(
    broker: str, workspace_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(WORLD))
    monkeypatch.setenv("PYTHONPATH", str(WORLD), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from train_world import make_base

    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=1, split=Split(share=0.2)))
    base, home = tmp_path / "base", tmp_path / "home"
    make_base(base)
    path = _corpus(home / "corpora" / "main", workspace_name)
    registry = Registry(home / "registry", workspace_name)
    registry.promote(registry.register(base), expect=None, reason="what runs today")
    POLICY.save(home / "registry", workspace_name, "main")
    queue = JobQueue(registry.path)
    queue.submit(str(path), 1, fingerprint=POLICY.fingerprint)

    command = [sys.executable, "-c", SERVICE, str(home), broker, workspace_name]
    service = subprocess.Popen(command)
    try:
        _until(lambda: list(home.glob("jobs/*-train/checkpoints/checkpoint-*/treadle.json")) != [], service)
        processes = _below(service.pid)
        assert len(processes) >= 2  # nursery and job
        for pid in (service.pid, *processes):
            os.kill(pid, signal.SIGKILL)
        service.wait()
        while any(map(_alive, processes)):
            time.sleep(0.01)
        assert queue.job(1).state == "running"
        assert len(registry.releases()) == 1
        assert subprocess.run(command, timeout=300, check=False).returncode == 0
    finally:
        service.kill()
        service.wait()
    job = queue.job(1)
    assert job.state == "done", job.reason
    trained = registry.manifest(ReleaseId.parse(str(job.release)))
    assert trained.config["training"]["resumed_at"] >= 4
    assert {"accumulate": 1, "packed": False, "max_length": 64, "beta": 0.1}.items() <= trained.config.items()

    with Corpus.open(path) as corpus, JobRunner(tmp_path / "other", preload=False) as runner:
        spec = train_spec(
            POLICY, registry.folder(registry.id(0)), corpus, tmp_path / "other" / "calm", tmp_path / "calm"
        )
        calm = runner.run("calm", spec, timeout_s=240)
    assert calm["resumed_at"] is None
    assert calm["peak_memory_mb"] > 100
    weights = registry.folder(ReleaseId.parse(str(job.release))) / "model.safetensors"
    assert weights.read_bytes() == (tmp_path / "calm" / "model.safetensors").read_bytes()
