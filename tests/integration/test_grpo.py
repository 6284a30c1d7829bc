"""GRPO: a model trains on what it samples itself, and on nothing that the world said."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from treadle_corpus.testing import graded
from treadle_schemas import SettingError, Split
from treadle_trainer.errors import DataRefused, JobStopped, RewardFailed, TemplateRefused
from treadle_trainer.jobs import JobRunner, TrainSpec
from treadle_trainer.policy import TrainingPolicy
from treadle_trainer.registry import Registry
from treadle_trainer.turn import run_turn

from .model_world import write_corpus

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own

SPLIT = Split(share=0.2)


@pytest.fixture(scope="module", autouse=True)
def _threads(world_on_the_path: None) -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that answers with a colour, and has no idea which."""
    from train_world import ANSWERS, WordWorld, make_base, said  # type: ignore[import-not-found]

    root, rng = tmp_path_factory.mktemp("base"), random.Random(1)
    make_base(root / "random")
    rows = [
        graded(f"{n:03}", task_id=f"t{n}", messages=said(task, rng.choice(sorted(ANSWERS.values()))), response=[1])
        for n, task in enumerate(WordWorld().tasks(200, 2))
    ]
    places = {"base": str(root / "random"), "corpus": str(write_corpus(root / "corpus", rows))}
    places |= {"out": str(root / "model"), "work": str(root)}
    plain: dict[str, Any] = {"steps": 25, "lr": 1e-2, "batch": 16, "max_length": 64, "seed": 1, "rows": "all"}
    trained(TrainSpec(method="sft", version=1, **places, **plain))
    return root / "model"


def question(kind: str, number: int) -> dict[str, Any]:
    return {"role": "user", "content": f"{kind} {number}"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve tasks, each tried twice, the second time a minute later with another question; the last three are held out."""
    kinds = ["sky", "grass", "blood", "snow"]
    rows = [
        graded(
            f"{task:02}{attempt}",
            task_id=f"t{task}",
            reward=None,
            split="heldout" if task >= 9 else "train",
            messages=[question(kinds[task % 4], 10 * task + attempt), {"role": "assistant", "content": "red"}],
            response=[1],
            tags={"kind": kinds[task % 4]},
            started_at="2026-01-01T00:00:00Z",
            ended_at=f"2026-01-01T00:0{attempt}:00Z",
        )
        for task in range(12)
        for attempt in range(2)
    ]
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus", rows)


@pytest.fixture
def spec(corpus: Path, base: Path, tmp_path: Path) -> Callable[..., TrainSpec]:
    def make(name: str = "one", **given: Any) -> TrainSpec:
        work = tmp_path / name
        work.mkdir()
        if given.setdefault("reward_function", "sampling_world:right_word") is None:
            given.setdefault("split", SPLIT)
        plain = {"steps": 4, "lr": 2e-3, "batch": 16, "max_length": 128, "seed": 1, "max_new_tokens": 4, "group": 8}
        places = {"out": str(work / "model"), "work": str(work)}
        return TrainSpec(method="grpo", base=str(base), corpus=str(corpus), version=1, **{**plain, **places, **given})

    return make


def trained(spec: TrainSpec, progress: Callable[..., None] = lambda **_: None) -> dict[str, Any]:
    from treadle_trainer.methods import train

    return train(spec, progress)


def weights(spec: TrainSpec) -> bytes:
    return (Path(spec.out) / "model.safetensors").read_bytes()


# -- attempts as sequences -------------------------------------------------------------------------------------------------


def writer(base: Path, max_length: int = 128) -> Any:
    from treadle_trainer.evaluate.player import load
    from treadle_trainer.methods._rollouts import Writer

    model, tokenizer = load(base)
    return Writer(model=model, tokenizer=tokenizer, temperature=0.7, max_length=max_length, on_token=lambda: None)


def noise(turn: int) -> torch.Tensor:
    return torch.rand(12, 6, generator=torch.Generator().manual_seed(turn))


def test_an_attempt_is_what_was_sampled_token_by_token_with_what_the_world_said_in_between(base: Path) -> None:
    from sampling_world import ANSWERS, LookWorld  # type: ignore[import-not-found]
    from treadle_trainer.methods._rollouts import perform

    world, pen = LookWorld(), writer(base.parent / "random")  # which hardly ever comes to an end by itself
    tasks = list(world.tasks(12, 3))
    made = perform(pen, world, "LookWorld", tasks, noise, 6)
    tokenizer = pen.tokenizer
    cut = 0
    for task, attempt in zip(tasks, made, strict=True):
        assert attempt.prompt_ids == tokenizer.apply_chat_template(
            list(task.messages), add_generation_prompt=True, return_dict=False
        )
        # what the model says of exactly this sequence is what it was sampled with: nothing was rendered anew
        whole = torch.tensor([attempt.prompt_ids + attempt.completion_ids])
        with torch.inference_mode():
            logps = (pen.model(input_ids=whole).logits[0, :-1] / 0.7).log_softmax(-1)
        found = logps.gather(-1, whole[0, 1:, None])[len(attempt.prompt_ids) - 1 :, 0]
        mask = torch.tensor(attempt.sampled)
        assert torch.allclose(found[mask], torch.tensor(attempt.logprobs)[mask], atol=1e-4)
        told = [token for token, own in zip(attempt.completion_ids, attempt.sampled, strict=True) if not own]
        colour = ANSWERS[task.data["kind"]]
        text = tokenizer.decode(told)
        said = [f"<|tool|>seen {colour} {turn}<|end|><|assistant|>" for turn in (0, 1)]
        # a turn that was cut is ended by the world
        assert text.replace("<|end|><|tool|>", "<|tool|>").removeprefix("<|end|>") == "".join(said)
        cut += text.count("<|end|>") - 2
        assert attempt.sampled[0]
        assert attempt.sampled[-1]
    assert cut > 0
    assert {attempt.reward for attempt in made} == {0.0, 1.0}


def test_an_attempt_that_grows_too_long_ends_there(base: Path) -> None:
    from sampling_world import LookWorld
    from treadle_trainer.methods._rollouts import perform

    tasks = list(LookWorld().tasks(12, 3))
    limit = 24
    made = perform(writer(base, limit), LookWorld(), "LookWorld", tasks, noise, 6)
    assert all(len(one.prompt_ids) + len(one.completion_ids) <= limit for one in made)
    assert any(one.cut for one in made)
    with pytest.raises(DataRefused, match=r"task .* begins with .* tokens, and with 6 new ones that is more than"):
        perform(writer(base, 8), LookWorld(), "LookWorld", tasks, noise, 6)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("qwen2_5", "<|im_end|>"),
        ("qwen3", "<|im_end|>"),
        ("qwen3_instruct_2507", "<|im_end|>"),
        ("llama3_1", "<|eot_id|>"),
        ("gemma3", "<end_of_turn>"),
        ("phi3", "<|end|>"),
    ],
)
def test_what_comes_between_two_turns_is_what_a_published_template_writes(base: Path, name: str, end: str) -> None:
    from treadle_trainer.data.continuing import between
    from treadle_trainer.evaluate.player import load

    _, tokenizer = load(base)
    tokenizer.chat_template = files("trl").joinpath("chat_templates", f"{name}.jinja").read_text()
    tokenizer.add_special_tokens({"additional_special_tokens": [end, "<|other|>"]})
    messages = [question("sky", 1), {"role": "assistant", "content": "blue"}, question("grass", 2)]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    behind = whole.rpartition("blue")[2]
    assert behind.startswith(end)
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in (end, "<|other|>")}
    ends = set(ids.values())

    def said(last: int) -> str:
        return str(tokenizer.decode(between(tokenizer, messages, 1, None, last=last, ends=ends)))

    assert said(ids[end]) == behind.removeprefix(end)
    assert said(ids["<|other|>"]) == behind.removeprefix(end)
    assert said(0) == behind  # the turn was cut: the world ends it


def test_a_template_that_rewrites_its_turns_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from treadle_trainer.data.continuing import between
    from treadle_trainer.evaluate.player import load

    _, tokenizer = load(base)
    last_only = "{% for m in messages %}{% if loop.last %}!{% endif %}{{ m['content'] }}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", last_only)
    messages = [question("sky", 1), {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(TemplateRefused, match="writes message 1 differently once another follows"):
        between(tokenizer, messages, 1, None, last=5, ends={5})


# -- training --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"reward_function": None, "environment": "train_world:WordWorld"},
        {"accumulate": 2, "batch": 32},
        {"lora_rank": 8, "lr": 2e-2, "steps": 25},
    ],
    ids=["environment", "reward function", "adapter"],
)
def test_what_is_rewarded_becomes_likelier(spec: Callable[..., TrainSpec], given: dict[str, Any]) -> None:
    job = spec(**{"steps": 40, "lr": 5e-3, "batch": 64, "beta": 0.1, **given})
    heard: list[dict[str, Any]] = []
    result = trained(job, lambda **said: heard.append(said))
    assert (result["steps"], result["group"], result["first_invalid"]) == (job.steps, 8, 0.0)
    attempts = job.steps * 64
    assert (result["attempts"], result["groups"]) == (attempts, attempts // 8)
    assert 0 <= result["flat_groups"] < result["groups"]
    assert attempts <= result["sampled_tokens"] <= attempts * job.max_new_tokens
    assert result["last_reward"] > result["first_reward"] + 0.2, result
    assert [said for said in heard if said["stage"] == "train"][-1]["reward"] == result["last_reward"]
    names = {path.name for path in Path(job.out).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"adapter_config.json", "training_args.bin"}


def test_a_loss_counts_what_was_sampled_and_nothing_else(
    spec: Callable[..., TrainSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sampling_world import LookWorld
    from treadle_trainer.methods import _grpo, _rollouts

    made: list[Any] = []
    seen: list[dict[str, Any]] = []
    really, play = _grpo._GrpoTrainer._compute_loss, _rollouts.perform

    def listening(self: Any, model: Any, inputs: Any) -> Any:
        seen.append({name: tensor.clone() for name, tensor in inputs.items() if isinstance(tensor, torch.Tensor)})
        return really(self, model, inputs)

    def playing(*args: Any) -> Any:
        made.extend(found := play(*args))
        return found

    monkeypatch.setattr(_grpo._GrpoTrainer, "_compute_loss", listening)
    monkeypatch.setattr(_grpo, "perform", playing)
    LookWorld.started.clear()
    job = spec(reward_function=None, environment="sampling_world:LookWorld", steps=2, max_new_tokens=6, accumulate=2)
    trained(job)
    assert LookWorld.started
    assert all(SPLIT.side(task) == "train" for task in LookWorld.started)
    wanted = {
        (tuple(one.prompt_ids), tuple(one.completion_ids), tuple(n for n, own in enumerate(one.sampled) if own)): one
        for one in made
    }
    rows = 0
    for batch in seen:
        mask = (batch["completion_mask"] * batch["tool_mask"]).bool()
        for n in range(len(mask)):
            prompt = batch["prompt_ids"][n][batch["prompt_mask"][n].bool()].tolist()
            completion = batch["completion_ids"][n][batch["completion_mask"][n].bool()].tolist()
            assert (tuple(prompt), tuple(completion), tuple(mask[n].nonzero()[:, 0].tolist())) in wanted
            rows += 1
    assert rows == len(made) == 64
    for at in range(0, len(made), 8):  # a group is eight attempts at one task
        assert len({tuple(one.prompt_ids) for one in made[at : at + 8]}) == 1


def test_a_training_that_was_stopped_ends_with_the_same_weights(spec: Callable[..., TrainSpec]) -> None:
    whole, cut = spec("whole", steps=6), spec("cut", steps=6)
    trained(whole)

    def stop(stage: str, step: int = 0, **_: Any) -> None:
        if stage == "train" and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    # the next step has begun to sample: it is left, and the checkpoint is that of the step before
    with pytest.raises(JobStopped, match="stopped after step 3 of 6; its checkpoint is kept"):
        trained(cut, stop)
    result = trained(cut)
    assert (result["resumed_at"], result["steps"]) == (3, 6)
    assert weights(cut) == weights(whole)
    assert result["attempts"] == 6 * 16


def test_a_training_is_stopped_in_the_middle_of_an_attempt(spec: Callable[..., TrainSpec]) -> None:
    from sampling_world import Interrupting

    given = {"reward_function": None, "max_new_tokens": 6, "steps": 3}
    whole = spec("whole", environment="sampling_world:Interrupting", **given)
    Interrupting.acted = 1000
    trained(whole)
    cut = msgspec.structs.replace(whole, work=str(Path(whole.work).parent), out=str(Path(whole.work).parent / "cut"))
    Interrupting.acted = 0  # a step has 16 attempts of 3 turns
    with pytest.raises(JobStopped, match="stopped after step 1 of 3"):
        trained(cut)
    assert trained(cut)["resumed_at"] == 1
    assert weights(cut) == weights(whole)


def test_groups_with_one_reward_are_counted_and_so_is_what_nobody_could_score(
    spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    result = trained(spec(reward_function="sampling_world:alike", steps=3))
    assert (result["groups"], result["flat_groups"], result["unscored"]) == (6, 6, 0)
    assert (result["first_reward"], result["last_reward"]) == (0.5, 0.5)
    rows = [
        graded(
            f"{n}",
            task_id=f"t{n}",
            messages=[question("sky", n), {"role": "assistant", "content": "red"}],
            response=[1],
            tags={"kind": "unsayable" if n else "sky"},
        )
        for n in range(2)
    ]
    job = msgspec.structs.replace(spec("two", steps=2), corpus=str(write_corpus(tmp_path / "c", rows)))
    assert trained(job)["unscored"] == 2 * 8


def test_a_turn_trains_in_the_environment_and_is_judged_on_its_held_out_tasks(
    base: Path, corpus: Path, runner: JobRunner, tmp_path: Path
) -> None:
    registry = Registry(tmp_path / "registry", "shop")
    registry.promote(registry.register(base, reason="what runs today"), expect=None, reason="what runs today")
    policy = TrainingPolicy().changed(
        {"method": "grpo", "environment": "train_world:WordWorld", "steps": 40, "lr": 5e-3, "batch": 64}
        | {"max_new_tokens": 4, "eval_tasks": 100, "gate.min_tasks": 50, "scorecard": None, "timeout_s": 240}
    )
    report = run_turn(corpus, policy, registry, split=SPLIT, runner=runner)
    assert (report.decision, registry.champion) == ("promoted", report.candidate), report.reason
    gate, training = report.evidence["gate"], report.evidence["training"]
    assert gate["candidate"] > gate["champion"] + 0.2
    assert training["last_reward"] > training["first_reward"] + 0.2
    manifest = registry.verify(report.candidate)
    assert (manifest.method, manifest.corpus_version, manifest.config["group"]) == ("grpo", 1, 8)
    assert manifest.config["environment"] == "train_world:WordWorld"


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demos_model_gets_better_at_booking_rooms_by_trying(tmp_path: Path, seed: int) -> None:
    from treadle_demo import RoomDesk
    from treadle_demo.warmstart import warm_start
    from treadle_trainer.evaluate._environment import heldout_tasks
    from treadle_trainer.evaluate.player import evaluate

    world = RoomDesk()
    warm_start(world, tmp_path / "r0", seed=seed, split=SPLIT)
    plain: dict[str, Any] = {"steps": 60, "lr": 2e-3, "batch": 128, "max_length": 256, "seed": seed, "beta": 0.1}
    places = {"base": str(tmp_path / "r0"), "corpus": "none", "out": str(tmp_path / "r1"), "work": str(tmp_path)}
    trained(TrainSpec(method="grpo", version=1, environment="treadle_demo:RoomDesk", split=SPLIT, **places, **plain))
    tasks = heldout_tasks(world, 512, 99, SPLIT)
    before, after = (
        sum(one["score"] for one in evaluate(str(tmp_path / name), world, tasks, 7)) / len(tasks)
        for name in ("r0", "r1")
    )
    assert after > before + 0.1, (before, after)


# -- what makes no sense ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"reward_function": "sampling_world:raising"}, "reward function sampling_world:raising: KeyError: 'colour'"),
        ({"reward_function": "sampling_world:one_short"}, "one_short: 15 values for 16 answers"),
        ({"reward_function": "sampling_world:endless"}, "endless: expected finite numbers or None, got inf"),
        ({"reward_function": "sampling_world:wordy"}, "wordy: expected numbers or None, got 'good'"),
        ({"environment": "sampling_world:Stubborn"}, "Stubborn: start of task .* raised ConnectionError: the shop is"),
        ({"environment": "sampling_world:Mute"}, "Mute: act of task .* did not append the assistant's message first"),
        ({"environment": "sampling_world:Boundless"}, "Boundless: success of task .* is inf, no finite number"),
    ],
)
def test_what_scores_attempts_is_named_where_it_fails(
    spec: Callable[..., TrainSpec], given: dict[str, Any], said: str
) -> None:
    with pytest.raises(RewardFailed, match=said):
        trained(spec(**{"reward_function": None, **given}))


def test_a_job_says_so_too_and_names_the_log_with_the_traceback(
    spec: Callable[..., TrainSpec], runner: JobRunner
) -> None:
    with pytest.raises(RewardFailed, match="broken: reward function sampling_world:raising: KeyError") as failed:
        runner.run("broken", spec(reward_function="sampling_world:raising"), timeout_s=120)
    assert failed.value.log is not None
    assert 'raise KeyError("colour")' in failed.value.log.read_text()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"reward_function": "sampling_world:absent"}, SettingError, "cannot be imported"),
        ({"reward_function": None, "environment": "sampling_world:Absent"}, SettingError, "cannot be loaded"),
        ({"reward_function": None}, SettingError, "wants a reward function or an environment"),
        ({"group": 5}, SettingError, "16 x 1 x 1 = 16 attempts, which are no whole groups"),
        ({"max_new_tokens": 126}, DataRefused, "18 train rows give no prompt: same_task 9, too_long 9"),
        (
            {"reward_function": None, "environment": "sampling_world:LookWorld", "max_new_tokens": 126},
            DataRefused,
            "give nothing to train on: heldout .*, too_long",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(
    spec: Callable[..., TrainSpec], given: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        trained(spec(**given))


# -- prompts ---------------------------------------------------------------------------------------------------------------


def test_there_is_one_prompt_a_task_that_of_its_newest_train_row(spec: Callable[..., TrainSpec]) -> None:
    from treadle_trainer.evaluate.player import load
    from treadle_trainer.methods._prompts import find_prompts

    job = spec()
    _, tokenizer = load(job.base)
    found = find_prompts(job, tokenizer)
    assert sorted(prompt.messages[0]["content"].split()[1] for prompt in found.items) == sorted(
        str(10 * task + 1) for task in range(9)
    )
    assert {prompt.task_id for prompt in found.items} == {f"t{n}" for n in range(9)}
    assert (found.rows, found.used, found.left_out) == (18, 18, {"same_task": 9})
    assert all(prompt.logged == {"role": "assistant", "content": "red"} for prompt in found.items)
    every = find_prompts(msgspec.structs.replace(job, prompts="row"), tokenizer)
    assert (len(every.items), every.left_out) == (18, {})
    newest = find_prompts(msgspec.structs.replace(job, newest_rows=3), tokenizer)
    assert {prompt.task_id for prompt in newest.items} == {"t6", "t7", "t8"}


def test_a_step_takes_each_prompt_once_before_any_twice() -> None:
    from treadle_trainer.methods._prompts import places

    taken = [place for step in range(10) for place in places(step, 3, 7, 5)]
    assert len(taken) == 30
    for epoch in range(4):
        assert sorted(taken[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert taken[:7] != taken[7:14]
    assert places(4, 3, 7, 5) == taken[12:15]
    assert places(4, 3, 7, 6) != taken[12:15]


def test_a_dry_run_shows_prompts_and_samples_nothing(
    corpus: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from click.testing import CliRunner
    from treadle.cli import main

    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    given = [f"{corpus}@v1", "--method", "grpo", "--from", str(base), "--dry-run", "--batch", "16", "--steps", "9"]

    def said(*more: str) -> Any:
        return CliRunner().invoke(main, ["train", *given, *more])

    shown = said("--reward-function", "sampling_world:right_word", "--max-new-tokens", "4")
    assert shown.exit_code == 0, shown.output
    assert "grpo on 9 prompts from 18 of 18 train rows" in shown.output
    assert "left out: same_task 9" in shown.output
    assert (
        "8 attempts at each of 2 prompts, at most 4 tokens a turn, scored by sampling_world:right_word" in shown.output
    )
    assert "see each prompt 2 times" in shown.output
    assert "<|assistant|>" in shown.output
    plan = json.loads(said("--reward-function", "sampling_world:right_word", "--json").output)
    assert plan["sampling"]["prompts"] == 2


# -- settings --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "wants what scores its attempts, reward_function=.* or environment="),
        ({"environment": "a:B", "packed": True}, "packed=True: grpo trains on what it samples"),
        ({"environment": "a:B", "group": 1}, "group=1: expected at least 2"),
        ({"environment": "a:B", "group": 7}, "32 x 1 x 1 = 32 attempts, which are no whole groups"),
        ({"environment": "a:B", "temperature": 0}, "temperature=0.0: expected above 0"),
        ({"environment": "a:B", "max_new_tokens": 0}, "max_new_tokens=0: expected at least 1"),
        (
            {"environment": "a:B", "launch.processes": 2, "launch.strategy": "fsdp"},
            "fsdp'?: grpo samples with a whole model in each process",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        TrainingPolicy().changed({"method": "grpo", **settings})


def test_settings_of_sampling_shape_a_job_and_their_defaults_do_not() -> None:
    policy = TrainingPolicy()
    # of the version before these settings were there
    assert policy.fingerprint == "f958ba7f6434a4f92c3c8aa83e17f2118b6e2aba76edc0aee67469e80f8fb54d"
    for name, value in (("group", 4), ("temperature", 0.7), ("max_new_tokens", 9), ("prompts", "row")):
        assert policy.changed({name: value}).fingerprint != policy.fingerprint
