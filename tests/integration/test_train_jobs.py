"""Job processes: they say what went wrong, end when they should, and never outlive who asked for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from treadle_schemas import Split
from treadle_trainer._files import locked
from treadle_trainer.errors import DiskFull, JobFailed, JobStopped, JobTimedOut, JobTooLarge
from treadle_trainer.jobs import EnvironmentSpec, JobRunner

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _world_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[JobRunner]:
    with JobRunner(tmp_path / "jobs", preload=False) as made:
        yield made


def _spec(evaluator: str, models: dict[str, str] | None = None) -> EnvironmentSpec:
    return EnvironmentSpec(
        models=models or {"champion": "/x/bad", "candidate": "/x/good"},
        environment="train_world:WordWorld",
        evaluator=f"train_world:{evaluator}",
        tasks=20,
        seed=1,
        split=Split(share=0.2),
    )


def _until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _child_of(pid: int) -> int | None:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else None


def test_a_job_returns_its_result_and_reports_on_the_way(runner: JobRunner) -> None:
    heard: list[dict[str, Any]] = []
    result = runner.run("one", _spec("by_folder_name"), timeout_s=60, on_progress=heard.append)
    assert result["scores"] == {"champion": [0.0] * 20, "candidate": [1.0] * 20}
    assert all(Split(share=0.2).side(task) == "heldout" for task in result["clusters"])
    assert len(set(result["clusters"])) == 20
    assert [(h["stage"], h["model"]) for h in heard] == [("evaluate", "champion"), ("evaluate", "candidate")]
    again = runner.run("two", _spec("by_folder_name"), timeout_s=60)
    assert again["clusters"] == result["clusters"]


@pytest.mark.parametrize(
    ("evaluator", "said"),
    [
        ("failing", "RuntimeError: the evaluator broke"),
        ("short", "expected 20 finite scores for champion, got 1"),
        ("absent", "evaluator 'train_world:absent' cannot be loaded"),
    ],
)
def test_what_went_wrong_inside_is_said_outside(runner: JobRunner, evaluator: str, said: str) -> None:
    with pytest.raises(JobFailed, match=said) as failed:
        runner.run("bad", _spec(evaluator), timeout_s=60)
    assert failed.value.log is not None
    assert failed.value.log.exists()
    # the runner goes on
    assert runner.run("good", _spec("by_folder_name"), timeout_s=60)["scores"]


def test_a_job_that_is_killed_is_reported_with_its_last_words(runner: JobRunner) -> None:
    with pytest.raises(JobFailed, match=r"was killed by signal 9 .* last words"):
        runner.run("killed", _spec("suicidal"), timeout_s=60)


def test_a_job_ends_when_its_time_is_up(runner: JobRunner) -> None:
    with pytest.raises(JobTimedOut, match="not done after 3 s"):
        runner.run("slow", _spec("sleepy"), timeout_s=3)
    assert runner.run("next", _spec("by_folder_name"), timeout_s=60)["scores"]


@pytest.mark.parametrize(("evaluator", "limit_gb"), [("hungry", 0.3), ("hungry_children", 0.5), ("stubborn", 0.3)])
def test_a_job_that_takes_too_much_memory_ends_with_all_it_started_and_the_next_one_runs(
    runner: JobRunner, evaluator: str, limit_gb: float
) -> None:
    runner.warm()
    nursery = runner._nursery
    assert nursery is not None
    with pytest.raises(
        JobTooLarge, match=rf"took 0\.\d+ GB .* have {limit_gb:.2f} GB: raise memory_gb, or make it smaller"
    ):
        runner.run("hungry", _spec(evaluator), timeout_s=60, memory_gb=limit_gb)
    assert _child_of(nursery.pid) is None
    result = runner.run("next", _spec("by_folder_name"), timeout_s=60, memory_gb=limit_gb)
    assert 0 < result["peak_memory_mb"] < limit_gb * 1000
    assert runner._nursery is nursery


@pytest.mark.parametrize(
    ("evaluator", "error", "said"),
    [
        ("no_memory", JobTooLarge, "MemoryError: cannot have it: there was not enough memory: make it smaller"),
        ("no_room", DiskFull, "No space left on device: the disk is full; `treadle job prune`"),
    ],
)
def test_what_the_machine_lacks_is_told_from_what_is_broken(
    runner: JobRunner, evaluator: str, error: type[JobFailed], said: str
) -> None:
    with pytest.raises(error, match=said):
        runner.run("poor", _spec(evaluator), timeout_s=60)


def test_a_job_does_not_begin_beside_one_that_outlived_its_service(runner: JobRunner) -> None:
    runner.prepare("next")
    with locked(runner.root / "running.lock"), pytest.raises(JobTimedOut):  # as a job process holds it
        runner.run("next", _spec("by_folder_name"), timeout_s=1)
    assert not (runner.root / "next" / "result.json").exists()
    assert runner.run("next", _spec("by_folder_name"), timeout_s=60)["scores"]


def test_what_an_earlier_job_left_behind_ends_before_the_next_one_begins(runner: JobRunner) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    stray, other = (
        subprocess.Popen(command, env={**os.environ, "TREADLE_JOBS": str(root)}, start_new_session=True)
        for root in (runner.root, runner.root.parent / "another")
    )
    try:
        runner.run("next", _spec("by_folder_name"), timeout_s=60)
        assert stray.wait(20) == -signal.SIGKILL
        assert f"ended process {stray.pid}" in (runner.root / "next" / "log.txt").read_text()
        assert other.poll() is None
    finally:
        for process in (stray, other):
            process.kill()
            process.wait()


def test_a_job_ends_when_its_caller_wants_to(runner: JobRunner) -> None:
    runner.warm()
    nursery = runner._nursery
    assert nursery is not None
    job: list[int] = []

    def stop() -> bool:
        found = _child_of(nursery.pid)
        if found is not None:
            job.append(found)
        return bool(job)

    with pytest.raises(JobStopped):
        runner.run("stopped", _spec("sleepy"), timeout_s=60, should_stop=stop)
    assert not _alive(job[0])
    assert runner.run("next", _spec("by_folder_name"), timeout_s=60)["scores"]
    assert runner._nursery is nursery  # what it has imported is not lost


def test_two_runners_on_one_device_take_turns(runner: JobRunner, tmp_path: Path) -> None:
    with JobRunner(tmp_path / "jobs", preload=False) as other:
        refused: list[str] = []

        def try_the_other(_: dict[str, Any]) -> None:
            with pytest.raises(JobStopped, match="waited for the device") as stopped:
                other.run("two", _spec("by_folder_name"), timeout_s=60, should_stop=lambda: True)
            refused.append(str(stopped.value))

        runner.run("one", _spec("by_folder_name"), timeout_s=60, on_progress=try_the_other)
        assert refused
        assert other.run("two", _spec("by_folder_name"), timeout_s=60)["scores"]


def test_the_death_of_the_nursery_is_noticed_and_survived(runner: JobRunner) -> None:
    runner.warm()
    nursery = runner._nursery
    assert nursery is not None
    job: list[int] = []

    def kill_nursery() -> bool:
        found = _child_of(nursery.pid) if not job else None
        if found is not None:
            job.append(found)
            os.kill(nursery.pid, signal.SIGKILL)
        return False

    with pytest.raises(JobFailed, match="the process that starts jobs died"):
        runner.run("orphan", _spec("sleepy"), timeout_s=60, should_stop=kill_nursery)
    _until(lambda: not _alive(job[0]))
    assert runner.run("next", _spec("by_folder_name"), timeout_s=60)["scores"]


_CALLER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from treadle_schemas import Split
    from treadle_trainer.jobs import EnvironmentSpec, JobRunner

    runner = JobRunner(Path(sys.argv[1]), preload=False)
    runner.warm()
    print(runner._nursery.pid, flush=True)
    runner.run("long", EnvironmentSpec(
        models={"a": "x"}, environment="train_world:WordWorld", evaluator="train_world:sleepy", tasks=5, seed=1, split=Split(share=0.2),
    ), timeout_s=600)
    """
)


def test_nothing_is_left_when_the_caller_is_killed(tmp_path: Path) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", _CALLER, str(tmp_path / "jobs")], stdout=subprocess.PIPE, text=True
    )
    assert caller.stdout is not None
    try:
        nursery = int(caller.stdout.readline())
        _until(lambda: _child_of(nursery) is not None)
        job = _child_of(nursery)
        assert job is not None
        caller.kill()
        _until(lambda: not _alive(nursery) and not _alive(job))
    finally:
        caller.kill()
        caller.wait()
        caller.stdout.close()


def test_services_and_guard_never_import_torch() -> None:
    code = (
        "import sys, treadle_trainer.service, treadle_trainer.guard, treadle_trainer.turn, treadle_trainer.commands.services;"
        "print([m for m in ('torch', 'transformers', 'trl', 'deeplake') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
