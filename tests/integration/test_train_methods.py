"""Each method trains a tiny model on a corpus, and learns what the interactions marked: token by token, tool answers left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from treadle_corpus import Corpus
from treadle_corpus.testing import graded
from treadle_trainer.data.building import build
from treadle_trainer.data.rendering import encode
from treadle_trainer.data.stream import TokenStream
from treadle_trainer.errors import DataRefused
from treadle_trainer.jobs import TrainSpec

from .model_world import save_model, write_corpus

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own

COLOURS = {"sky": "blue", "grass": "green", "blood": "red", "snow": "white"}
TASKS = 24


def conversation(kind: str, word: str) -> list[dict[str, Any]]:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": f'{{"at":"{kind}"}}'}}
    return [
        {"role": "system", "content": "colour desk"},
        {"role": "user", "content": f"what is {kind} like"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": f"seen {kind}"},
        {"role": "assistant", "content": word},
    ]


def rows() -> list[Any]:
    """Two attempts at each task: the right word has reward 1, a wrong one 0; the call of the right one was marked too."""
    out = []
    for n in range(TASKS):
        kind = sorted(COLOURS)[n % 4]
        wrong = sorted(set(COLOURS.values()) - {COLOURS[kind]})[n % 3]
        common = {"task_id": f"t{n}", "response": [2, 4]}
        out.append(graded(f"{n:02}a", reward=1.0, messages=conversation(kind, COLOURS[kind]), **common))
        out.append(graded(f"{n:02}b", reward=0.0, messages=conversation(kind, wrong), **common))
    return out


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus"
    made = rows()
    return write_corpus(path, made)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    return save_model(folder, [conversation(kind, word) for kind in COLOURS for word in COLOURS.values()])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def spec(corpus: Path, base: Path, tmp_path: Path) -> Callable[..., TrainSpec]:
    def make(method: str, **given: Any) -> TrainSpec:
        places = {"out": str(tmp_path / "model"), "work": str(tmp_path)}
        plain = {"steps": 25, "lr": 5e-3, "batch": 8, "max_length": 128, "seed": 1, **places, **given}
        return TrainSpec(method=method, base=str(base), corpus=str(corpus), version=1, **plain)

    return make


def trained(spec: TrainSpec) -> dict[str, Any]:
    from treadle_trainer.methods import train

    return train(spec, lambda **_: None)


def preference(folder: Path | str) -> float:
    """By how many nats a model finds the right words likelier than the wrong ones, on average over the kinds."""
    from treadle_demo.model import load

    model, tokenizer = load(Path(folder))
    total = 0.0
    for kind, right in COLOURS.items():
        found = {}
        for word in COLOURS.values():
            encoded = encode(tokenizer, conversation(kind, word), [4])
            ids = torch.tensor([encoded.input_ids])
            with torch.inference_mode():
                logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            picked = logps.gather(-1, ids[0, 1:, None])[:, 0]
            found[word] = float(picked[torch.tensor(encoded.trained[1:])].sum())
        total += found.pop(right) - max(found.values())
    return total / len(COLOURS)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("rwsft", {"rows": "all"}),
        ("dpo", {}),
        ("dpo", {"lora_rank": 8, "lr": 2e-2}),
        ("kto", {}),
        ("rl", {"beta": 0.02, "accumulate": 2}),
        ("rl", {"lora_rank": 8, "lr": 2e-2, "beta": 0.02}),
        ("sft", {"lora_rank": 8, "lr": 3e-2, "steps": 40}),
    ],
)
def test_a_method_makes_right_answers_likelier(
    spec: Callable[..., TrainSpec], base: Path, method: str, given: dict[str, Any]
) -> None:
    job = spec(method, **given)
    before = preference(base)
    result = trained(job)
    assert (result["rows"], result["steps"]) == (2 * TASKS, job.steps)
    assert preference(job.out) > max(before, 0.0) + 0.5, (before, preference(job.out), result)
    names = {path.name for path in Path(job.out).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not names & {"adapter_config.json", "training_args.bin"}


def test_a_reward_model_ranks_right_answers_above_wrong_ones(spec: Callable[..., TrainSpec]) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    job = spec("reward", lr=2e-3)
    result = trained(job)
    assert result["examples"] == TASKS
    model = AutoModelForSequenceClassification.from_pretrained(job.out, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(job.out, local_files_only=True)

    def score(kind: str, word: str) -> float:
        with torch.inference_mode():
            ids = encode(tokenizer, conversation(kind, word), [4]).input_ids
            return float(model(input_ids=torch.tensor([ids])).logits[0, 0])

    for kind, right in COLOURS.items():
        wrong = set(COLOURS.values()) - {right}
        assert score(kind, right) > max(score(kind, word) for word in wrong)


# -- masks -----------------------------------------------------------------------------------------------------------------


def wanted(tokenizer: Any, messages: list[dict[str, Any]], response: list[int]) -> tuple[list[int], list[int]]:
    """Token ids and completion mask, by the one place that knows."""
    encoded = encode(tokenizer, messages, response)
    return encoded.input_ids, [int(on) for on in encoded.trained]


def seen_by(monkeypatch: pytest.MonkeyPatch, trainer: Any) -> list[dict[str, Any]]:
    batches: list[dict[str, Any]] = []
    really = trainer.compute_loss

    def listening(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        batches.append({name: tensor.clone() for name, tensor in inputs.items()})
        return really(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", listening)
    return batches


def unpadded(batch: dict[str, Any], n: int, prefix: str = "") -> tuple[list[int], list[int]]:
    size = int(batch[f"{prefix}attention_mask"][n].sum())
    assert not batch[f"{prefix}completion_mask"][n, size:].any()
    return batch[f"{prefix}input_ids"][n, :size].tolist(), batch[f"{prefix}completion_mask"][n, :size].tolist()


def test_dpo_counts_marked_tokens_only(
    spec: Callable[..., TrainSpec], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer
    from treadle_trainer.methods import _preferences

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    batches = seen_by(monkeypatch, _preferences._DpoTrainer)
    trained(spec("dpo", steps=3))
    by_task = {
        row.interaction_id: wanted(tokenizer, row.interaction["messages"], [2, 4])
        for row in Corpus.open(Path(spec("dpo").corpus)).rows()
    }
    pairs = [(by_task[f"{n:02}a"], by_task[f"{n:02}b"]) for n in range(TASKS)]
    for batch in batches:
        half = len(batch["input_ids"]) // 2
        for n in range(half):
            pair = (unpadded(batch, n), unpadded(batch, half + n))
            assert pair in pairs
            # the tool's answer follows the call that was chosen, and counts for nothing
            text = tokenizer.decode([t for t, on in zip(*pair[0], strict=True) if on])
            assert "seen" not in text
            assert text.count("<|end|>") == 2
    assert len(batches) == 3


def test_kto_counts_marked_tokens_only_and_pairs_prompts_with_other_answers(
    spec: Callable[..., TrainSpec], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer
    from treadle_trainer.methods import _preferences

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    batches = seen_by(monkeypatch, _preferences._KtoTrainer)
    trained(spec("kto", steps=6))
    rewards = {}
    for row in Corpus.open(Path(spec("kto").corpus)).rows():
        ids, mask = wanted(tokenizer, row.interaction["messages"], [2, 4])
        rewards[tuple(ids), tuple(mask)] = row.grade.reward
    seen = 0
    for batch in batches:
        for n in range(len(batch["input_ids"])):
            ids, mask = unpadded(batch, n)
            assert rewards[tuple(ids), tuple(mask)] == float(batch["label"][n])
            other, other_mask = unpadded(batch, n - 1 if n else len(batch["input_ids"]) - 1)
            start, other_start = mask.index(1), other_mask.index(1)
            expected = (ids[:start] + other[other_start:], mask[:start] + other_mask[other_start:])
            assert unpadded(batch, n, "KL_") == expected
            seen += 1
    assert seen == 2 * TASKS


# -- reinforcement learning ------------------------------------------------------------------------------------------------


def test_the_loss_of_rl_is_the_clipped_one() -> None:
    from treadle_trainer.methods._rl import clipped_loss

    new = torch.tensor([[-1.0, -1.0, -1.0]], requires_grad=True)
    logged = torch.tensor([[-1.5, -1.0, float("nan")]])
    counted = torch.tensor([[True, True, True]])
    ratios = np.exp([0.5, 0.0, 0.0])
    for advantage in (2.0, -2.0):
        loss = clipped_loss(new, counted, logged, torch.tensor([advantage]), clip=0.2, beta=0.0, reference=None)
        gains = [min(r * advantage, min(max(r, 0.8), 1.2) * advantage) for r in ratios]
        assert loss.item() == pytest.approx(-np.mean(gains), rel=1e-6)
        (slope,) = torch.autograd.grad(loss, new)
        # beyond the clip nothing pulls a good token further; a bad one is still pushed down
        assert slope[0].tolist() == pytest.approx(
            [0.0 if advantage > 0 else -ratios[0] * advantage / 3, -advantage / 3, -advantage / 3]
        )
    apart = torch.tensor([[-2.0, -1.0, -0.5]])
    held = clipped_loss(new, counted, logged, torch.tensor([0.0]), clip=0.2, beta=0.5, reference=apart)
    assert held.item() == pytest.approx(0.5 * np.mean([np.exp(d) - d - 1 for d in (-1.0, 0.0, 0.5)]), rel=1e-6)


def test_attempts_are_weighed_within_their_group_and_long_ones_once(tmp_path: Path, base: Path) -> None:
    from transformers import AutoTokenizer
    from treadle_trainer.methods._rl import advantages

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    long = [m for _ in range(8) for m in conversation("sky", "blue")]
    made = [
        graded(
            "a",
            task_id="t",
            reward=3.0,
            messages=long,
            response=[n for n, m in enumerate(long) if m["role"] == "assistant"],
        ),
        graded("b", task_id="t", reward=1.0, messages=conversation("sky", "blue"), response=[4]),
        graded("c", task_id="u", reward=1.0, messages=conversation("sky", "red"), response=[4]),
        graded("d", task_id="u", reward=1.0, messages=conversation("sky", "green"), response=[4]),
    ]
    columns = build(Corpus.open(write_corpus(tmp_path / "c", made)), tokenizer, "rl", max_length=80)
    found = advantages(columns)
    pieces = len(columns.members) - 3
    assert pieces > 2
    groups = [found[a:b].tolist() for a, b in zip(columns.member_bounds[:-1], columns.member_bounds[1:], strict=True)]
    assert sorted(map(len, groups)) == [2, pieces + 1]
    one, two = sorted(groups, key=len)
    assert one == [0.0, 0.0]
    assert sorted(two) == pytest.approx([-1.0] + [1.0] * pieces, abs=1e-3)
    (batch,) = TokenStream(columns, columns.meta.identity, batch=8, seed=1)
    assert sorted(columns.value[batch.places].tolist()) == sorted(batch.value.tolist())


def test_rl_needs_attempts_that_differ(spec: Callable[..., TrainSpec], tmp_path: Path) -> None:
    made = [
        graded(f"{n}", task_id="t", reward=1.0, messages=conversation("sky", word), response=[4])
        for n, word in enumerate(COLOURS.values())
    ]
    job = msgspec.structs.replace(spec("rl"), corpus=str(write_corpus(tmp_path / "same", made)))
    with pytest.raises(DataRefused, match="all attempts have the same reward"):
        trained(job)
    with pytest.raises(DataRefused, match="makes a pair with another"):
        trained(msgspec.structs.replace(job, method="dpo"))
    with pytest.raises(DataRefused, match="batch=1: kto pairs"):
        trained(spec("kto", batch=1))
