"""An external trainer: a real command that reads rows and leaves a model folder, which goes on as any candidate does."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from treadle.cli import main
from treadle_corpus import Corpus
from treadle_corpus.testing import graded
from treadle_schemas import Split
from treadle_trainer.backends import Backend
from treadle_trainer.errors import BackendFailed, DataRefused, FolderRefused, JobFailed, JobStopped, JobTimedOut
from treadle_trainer.jobs import JobRunner, TrainSpec
from treadle_trainer.policy import TrainingPolicy
from treadle_trainer.registry import Registry

from .model_world import save_model, write_corpus

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own

HERE = Path(__file__).parent
TRAINER = HERE / "small_trainer.py"


def answer(n: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"sky {n}"}, {"role": "assistant", "content": ("blue", "red")[n % 2]}]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("it's a place") / "corpus"  # a quote and blanks, for the command to survive
    rows = [graded(f"{n:02}", messages=answer(n), response=[1], reward=float(n % 2 == 0)) for n in range(40)]
    return write_corpus(path, rows)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base model") / "m"
    return save_model(folder, [answer(n) for n in range(40)])


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobRunner]:
    with JobRunner(tmp_path_factory.mktemp("jobs"), preload=False) as made:
        yield made


@pytest.fixture
def spec(corpus: Path, base: Path, runner: JobRunner, tmp_path: Path) -> Callable[..., TrainSpec]:
    def make(command: str, form: Any = "axolotl", config: str | None = None, **given: Any) -> TrainSpec:
        plain: dict[str, Any] = {"method": "sft", "steps": 12, "lr": 1e-2, "batch": 8, "max_length": 64, "seed": 3}
        return TrainSpec(
            base=str(base),
            corpus=str(corpus),
            version=1,
            out=str(tmp_path / "a model"),
            work=str(runner.prepare("job")),
            backend=Backend(command=command, form=form, config=config),
            **{**plain, **given},
        )

    return make


def command(*more: str) -> str:
    return f"'{sys.executable}' '{TRAINER}' {{rows}} {{base}} {{out}} --steps {{steps}} --lr {{lr}} --seed {{seed}} {' '.join(more)}"


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ("--without config.json", "config.json is missing"),
        ("--without model.safetensors", r"model\.safetensors is missing \(the weights\)"),
        ("--without tokenizer.json", "its tokenizer "),
        ("--without chat_template.jinja", "its tokenizer has no chat template"),
        ("--pickle", r"pytorch_model\.bin is a pickle"),
        ("--torn", r"model\.safetensors has \d+ bytes instead of \d+"),
        ("--adapter", "this is an adapter; merge it"),
        ("--code", "has an auto_map"),
    ],
)
def test_what_is_no_model_is_refused_by_name(base: Path, tmp_path: Path, left: str, said: str) -> None:
    from treadle_trainer.backends._folder import check_folder

    sys.path.insert(0, str(HERE))
    try:
        from small_trainer import leave  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(HERE))
    import shutil

    out = tmp_path / "out"
    shutil.copytree(base, out)
    assert check_folder(out)["weights"] == ["model.safetensors"]
    leave(out, left.split())
    with pytest.raises(FolderRefused, match=said):
        check_folder(out)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("no-such-program {rows} {out}", "no-such-program: cannot be started: No such file"),
        (
            f"'{sys.executable}' -c 'import sys; print(\"no GPU\"); sys.exit(4)' {{rows}} {{out}}",
            "ended with code 4; .*no GPU",
        ),
        (
            f"'{sys.executable}' -c 'import os; os.kill(os.getpid(), 9)' {{rows}} {{out}}",
            r"was killed by signal 9 \(SIGKILL\)",
        ),
    ],
)
def test_a_command_that_fails_says_why(spec: Callable[..., TrainSpec], runner: JobRunner, run: str, said: str) -> None:
    with pytest.raises(BackendFailed, match=said) as failed:
        runner.run("job", spec(run), timeout_s=60)
    assert failed.value.log is not None


def test_a_command_that_leaves_nothing_fails(spec: Callable[..., TrainSpec], runner: JobRunner) -> None:
    with pytest.raises(JobFailed, match="is no model folder to go on with: the folder is not there"):
        runner.run("job", spec("true {rows} {out}"), timeout_s=60)


def test_nothing_to_train_on_is_said_before_the_command_runs(spec: Callable[..., TrainSpec], runner: JobRunner) -> None:
    with pytest.raises(DataRefused, match="no dpo example is left of its 40 train rows"):
        runner.run("job", spec(command(), method="dpo"), timeout_s=60)


_FLEEING = (
    "import os,subprocess,sys,time;"
    "p=subprocess.Popen([sys.executable,'-c','import time; time.sleep(600)'],start_new_session=True);"
    "open(os.path.join(sys.argv[1],'pids'),'w').write(f'{os.getpid()} {p.pid} ');"
    "time.sleep(float(sys.argv[2]))"
)


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("how", ["time", "stop", "end"])
def test_nothing_of_a_command_outlives_its_job(spec: Callable[..., TrainSpec], runner: JobRunner, how: str) -> None:
    seconds = 0 if how == "end" else 600
    code = _FLEEING.replace("{", "{{").replace("}", "}}")
    job = spec(f"'{sys.executable}' -c \"{code}\" {{work}} {seconds} {{rows}} {{out}}")
    pids = Path(job.work) / "pids"
    pids.unlink(missing_ok=True)

    def written() -> bool:
        return pids.exists() and pids.read_text().count(" ") == 2

    wanted = {"time": JobTimedOut, "stop": JobStopped, "end": JobFailed}[how]
    with pytest.raises(wanted):
        runner.run("job", job, timeout_s=4 if how == "time" else 60, should_stop=written if how == "stop" else bool)
    assert written()
    deadline = time.monotonic() + 10
    for pid in map(int, pids.read_text().split()):
        while not _gone(pid):
            assert time.monotonic() < deadline, f"{pid} lives on"
            time.sleep(0.02)


def test_a_config_file_is_filled_and_its_own_braces_stay(
    spec: Callable[..., TrainSpec], runner: JobRunner, tmp_path: Path
) -> None:
    config = tmp_path / "template.yaml"
    config.write_text(
        "datasets: [{path: '{rows}', type: chat_template}]\noutput_dir: '{out}'\nseed: {seed}\nother: {a: 1}\n"
    )
    job = spec("cat {config}", config=str(config))
    with pytest.raises(JobFailed, match="the folder is not there"):
        runner.run("job", job, timeout_s=60)
    work = Path(job.work)
    text = f"datasets: [{{path: '{work / 'rows.jsonl'}', type: chat_template}}]\noutput_dir: '{job.out}'\nseed: 3\nother: {{a: 1}}\n"
    assert (work / "config.yaml").read_text() == (work / "backend.log").read_text() == text


@pytest.mark.long
def test_a_command_trains_and_what_it_leaves_is_a_candidate(
    runner: JobRunner, corpus: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle_trainer.evaluate.player import load
    from treadle_trainer.turn import run_turn

    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    registry = Registry(tmp_path / "registry", "w")
    registry.promote(registry.register(base, reason="what runs today"), expect=None, reason="what runs today")
    policy = TrainingPolicy(
        environment="train_world:WordWorld",
        evaluator="train_world:by_folder_name",
        eval_tasks=20,
        steps=12,
        lr=1e-2,
        backend=Backend(command=command(), form="axolotl"),
        scorecard=None,
    ).checked()
    heard: list[dict[str, Any]] = []
    with JobRunner(tmp_path / "jobs", preload=False) as own:
        report = run_turn(corpus, policy, registry, split=Split(share=0.2), runner=own, on_progress=heard.append)
        assert not list(own.root.rglob("rows.jsonl"))
    assert [h["stage"] for h in heard][:2] == ["rows", "backend"]
    training = report.evidence["training"]
    assert (training["rows"], training["examples"], training["lines"], training["form"]) == (40, 20, 20, "axolotl")
    assert training["removed"] == ["checkpoint-12/", "training_args.bin"]
    manifest = registry.verify(report.candidate)
    assert manifest.config["training"]["command"].endswith("--seed 1")
    assert manifest.corpus_hash == Corpus.open(corpus).manifest.content_hash
    assert {"config.json", "model.safetensors", "tokenizer.json", "told.json"} <= set(manifest.files)
    assert "training_args.bin" not in manifest.files
    folder = registry.folder(report.candidate)
    told = json.loads((folder / "told.json").read_bytes())
    marked = [answer(0)[0] | {"train": False}, answer(0)[1] | {"train": True}]
    assert told == {"rows": 20, "first": {"messages": marked}}
    (model, tokenizer), (old, _) = load(folder), load(base)
    ids = tokenizer.apply_chat_template(answer(0), return_dict=False, return_tensors="pt").to(model.device)
    assert model(ids, labels=ids).loss < old(ids, labels=ids).loss


@pytest.mark.long
def test_treadle_train_takes_a_command(corpus: Path, base: Path, tmp_path: Path) -> None:
    args = ["--home", str(tmp_path), "train", f"{corpus}@v1", "--from", str(base), "--steps", "2"]
    args += ["--out", str(tmp_path / "m"), "--backend-command", command(), "--backend-form", "trl"]
    done = CliRunner().invoke(main, [*args, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["lines"] == 20
    assert (tmp_path / "m" / "model.safetensors").exists()


def test_treadle_train_refuses_a_command_that_makes_no_sense(corpus: Path, base: Path, tmp_path: Path) -> None:
    args = ["--home", str(tmp_path), "train", f"{corpus}@v1", "--from", str(base), "--backend-command"]
    refused = CliRunner().invoke(main, [*args, "x {rows} {nowhere}"])
    assert refused.exit_code == 2
    assert "{nowhere} is no place" in refused.output
