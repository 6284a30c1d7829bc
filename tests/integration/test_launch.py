"""Several processes train one model: the result of one process with a batch as large, and a checkpoint that goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from treadle_corpus.testing import graded
from treadle_schemas import SettingError
from treadle_trainer.errors import JobStopped, LaunchRefused
from treadle_trainer.jobs import JobRunner, TrainSpec
from treadle_trainer.launch import Launch
from treadle_trainer.policy import TrainingPolicy

from .model_world import save_model, write_corpus

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own

EXACT = ("grpo", "dpo", "reward")
"""Losses that are a mean over the examples or tokens of a step: two processes make of half the batch each what one makes of the whole.
Those of rwsft and rl are means over what weighs in a batch, that of kto compares within a batch: there two halves are no whole."""
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


def talk(n: int) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": " ".join(WORDS[: n % 9 + 1])},
        {"role": "assistant", "content": f"{WORDS[n % 12]} {n}"},
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus"
    rows = [graded(f"{n:03}", messages=talk(n), response=[1]) for n in range(57)]
    return write_corpus(path, rows)


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two attempts at each task, the first of which is better."""
    rows = []
    for n in range(24):
        asked, said = talk(n)
        worse = {**said, "content": WORDS[(n + 5) % 12]}
        rows += [
            graded(f"{n:02}{place}", task_id=f"t{n}", reward=1.0 - place, messages=[asked, answer], response=[1])
            for place, answer in enumerate((said, worse))
        ]
    return write_corpus(tmp_path_factory.mktemp("attempts") / "corpus", rows)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    return save_model(folder, [talk(n) for n in range(57)])


@pytest.fixture(scope="module", autouse=True)
def _worlds_on_the_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobRunner]:
    with JobRunner(tmp_path_factory.mktemp("jobs"), preload=False) as made:
        yield made


@pytest.mark.long
def test_two_processes_train_what_one_does_with_twice_the_batch_also_from_a_checkpoint(
    corpus: Path, base: Path, runner: JobRunner
) -> None:
    import torch
    from safetensors.torch import load_file

    def spec(name: str, batch: int, **given: Any) -> TrainSpec:
        work = runner.prepare(name)
        plain: dict[str, Any] = {"method": "sft", "steps": 60, "lr": 1e-3, "max_length": 128, "seed": 1, "rows": "all"}
        places = {"base": str(base), "corpus": str(corpus), "out": str(work / "model"), "work": str(work)}
        return TrainSpec(version=1, batch=batch, **plain, **places, **given)

    # 57 examples in batches of 28: the third batch of each epoch is one example, and one of the two processes has none
    one, two = spec("one", 28), spec("two", 14, launch=Launch(processes=2))
    alone = runner.run("one", one, timeout_s=200)
    steps: list[int] = []

    def hear(values: dict[str, Any]) -> None:
        if values["stage"] == "train":
            steps.append(values["step"])

    with pytest.raises(JobStopped):
        runner.run("two", two, timeout_s=200, on_progress=hear, should_stop=lambda: bool(steps) and steps[-1] >= 2)
    kept = [path.name for path in (Path(two.work) / "checkpoints").glob("checkpoint-*")]
    assert len(kept) == 1
    together = runner.run("two", two, timeout_s=200)
    assert (together["processes"], together["strategy"], together["steps"]) == (2, "ddp", 60)
    assert f"checkpoint-{together['resumed_at']}" == kept[0]
    assert together["last_loss"] == pytest.approx(alone["last_loss"], rel=1e-3)
    assert not (Path(two.work) / "checkpoints").exists()
    wanted, found = (load_file(Path(s.out) / "model.safetensors") for s in (one, two))
    start = load_file(base / "model.safetensors")
    assert wanted.keys() == found.keys()
    for name, weight in wanted.items():
        assert torch.allclose(weight, found[name], atol=2e-4), name
    assert max((wanted[name] - start[name]).abs().max() for name in wanted) > 1e-2


@pytest.mark.long
@pytest.mark.parametrize("method", ["rwsft", "dpo", "kto", "reward", "rl", "grpo"])
def test_each_method_trains_in_two_processes(attempts: Path, base: Path, runner: JobRunner, method: str) -> None:
    import torch
    from safetensors.torch import load_file

    def spec(name: str, batch: int, **given: Any) -> TrainSpec:
        work = runner.prepare(f"{method}-{name}")
        plain: dict[str, Any] = {"method": method, "steps": 4, "lr": 1e-3, "max_length": 128, "seed": 1, "group": 4}
        places = {"base": str(base), "corpus": str(attempts), "out": str(work / "model"), "work": str(work)}
        if method == "grpo":
            given["reward_function"] = "sampling_world:evenly"
        return TrainSpec(version=1, batch=batch, **plain, **places, **given)

    two = spec("two", 8, launch=Launch(processes=2))
    together = runner.run(f"{method}-two", two, timeout_s=200)
    assert (together["processes"], together["steps"]) == (2, 4)
    found = load_file(Path(two.out) / "model.safetensors")
    start = load_file(base / "model.safetensors")
    assert max((found[name] - start[name]).abs().max() for name in start) > 1e-4
    if method in EXACT:
        one = spec("one", 16)
        alone = runner.run(f"{method}-one", one, timeout_s=200)
        wanted = load_file(Path(one.out) / "model.safetensors")
        for name, weight in wanted.items():
            assert torch.allclose(weight, found[name], atol=2e-4), name
        if method == "grpo":
            assert together["first_reward"] == pytest.approx(alone["first_reward"])
            assert together["flat_groups"] == alone["flat_groups"]


def test_fsdp_without_devices_is_refused_instead_of_becoming_ddp(
    corpus: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from treadle_trainer.launch._run import check_machine

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(LaunchRefused, match="shows none: on CPU it would silently become ddp"):
        check_machine(Launch(processes=2, strategy="fsdp"))
    check_machine(Launch(processes=2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_machine(Launch(processes=2, strategy="fsdp"))
    with pytest.raises(LaunchRefused, match="this machine has 2 CUDA devices"):
        check_machine(Launch(processes=4))


def test_what_transformers_makes_of_the_settings_of_fsdp(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    launch = Launch(processes=2, strategy="fsdp", wrap=["LlamaDecoderLayer"], reshard=False, offload=True).checked()
    given = launch.arguments(cuda=True, checkpointing=True)
    assert given.pop("ddp_backend") == "nccl"
    made = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)
    assert made.fsdp_plugin_args == {
        "fsdp_version": 2,
        "cpu_offload": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_cls_names_to_wrap": "LlamaDecoderLayer",
        "cpu_ram_efficient_loading": False,
        "state_dict_type": "FULL_STATE_DICT",
        "activation_checkpointing": True,
        "reshard_after_forward": False,
    }
    assert not made.gradient_checkpointing


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"launch.processes": 0}, "launch processes=0: expected at least 1"),
        ({"launch.strategy": "fsdp"}, r"launch\.processes is 1"),
        ({"launch.processes": 2, "launch.offload": True}, "offload=True: is for strategy fsdp, not for ddp"),
        ({"launch.strategy": "deepspeed"}, "deepspeed"),
        ({"launch.processes": 2, "backend.command": "t {rows} {out}"}, "policy launch: is for training here"),
    ],
)
def test_a_launch_that_makes_no_sense_is_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        TrainingPolicy().changed(settings)


def test_a_policy_names_its_processes_with_dotted_settings() -> None:
    policy = TrainingPolicy().changed({"launch.processes": "2"})
    assert policy.launch == Launch(processes=2)
    assert policy.fingerprint != TrainingPolicy().fingerprint
