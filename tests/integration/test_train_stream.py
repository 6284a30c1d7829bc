"""A training job reads token columns: its masks are theirs, it goes on where it was stopped, and a broken checkpoint stops nobody."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from treadle_corpus import Corpus
from treadle_corpus.testing import graded
from treadle_trainer.data.columns import FOLDER
from treadle_trainer.data.rendering import encode
from treadle_trainer.data.stream import IGNORED, TokenStream
from treadle_trainer.errors import DataRefused, JobStopped
from treadle_trainer.jobs import TrainSpec

from .model_world import save_model, write_corpus

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


def conversation(n: int) -> list[dict[str, Any]]:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": f'{{"n":{n}}}'}}
    return [
        {"role": "system", "content": "word desk"},
        {"role": "user", "content": " ".join(WORDS[: n % 9 + 1])},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": WORDS[n % 12]},
        {"role": "assistant", "content": f"{WORDS[n % 12]} {n}"},
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus"
    rows = [graded(f"{n:03}", messages=conversation(n), response=[2, 4], reward=float(n % 3 > 0)) for n in range(60)]
    return write_corpus(path, rows)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    return save_model(folder, [conversation(n) for n in range(60)])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def spec(corpus: Path, base: Path, tmp_path: Path) -> Callable[..., TrainSpec]:
    def make(name: str = "one", **given: Any) -> TrainSpec:
        (tmp_path / name).mkdir(exist_ok=True)
        places = {"out": str(tmp_path / name / "model"), "work": str(tmp_path / name)}
        plain = {"method": "sft", "steps": 6, "lr": 5e-3, "batch": 8, "max_length": 128, "seed": 1, **places, **given}
        return TrainSpec(base=str(base), corpus=str(corpus), version=1, **plain)

    return make


def trained(spec: TrainSpec, hear: Callable[..., None] = lambda **_: None) -> dict[str, Any]:
    from treadle_trainer.methods import train

    return train(spec, hear)


def weights(spec: TrainSpec) -> bytes:
    return (Path(spec.out) / "model.safetensors").read_bytes()


def test_what_the_trainer_learns_is_what_the_interactions_marked(
    spec: Callable[..., TrainSpec], corpus: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer
    from treadle_trainer.methods import _sft

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    seen: dict[tuple[int, ...], list[int]] = {}
    really = _sft._SftTrainer.compute_loss

    def listening(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        for ids, labels, on in zip(inputs["input_ids"], inputs["labels"], inputs["attention_mask"], strict=True):
            seen[tuple(ids[on].tolist())] = labels[on].tolist()
            assert (labels[~on] == IGNORED).all()
        return really(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(_sft._SftTrainer, "compute_loss", listening)
    result = trained(spec())
    rows = [row for row in Corpus.open(corpus).rows("train") if row.grade.reward]
    assert (result["rows"], result["examples"], result["steps"]) == (60, len(rows), 6)
    for row in rows:
        wanted = encode(tokenizer, row.interaction["messages"], [2, 4])
        labels = [token if on else IGNORED for token, on in zip(wanted.input_ids, wanted.trained, strict=True)]
        assert seen.pop(tuple(wanted.input_ids)) == labels
    assert not seen
    assert result["last_loss"] < result["first_loss"]
    assert not (Path(spec().work) / "checkpoints").exists()


def test_columns_are_made_on_first_use_and_read_ever_after(spec: Callable[..., TrainSpec], corpus: Path) -> None:
    def names() -> set[str]:
        return {str(path.relative_to(corpus)) for path in (corpus / FOLDER).glob("*/v1-sft-*")}

    trained(spec("one", steps=1))
    before = names()
    trained(spec("two", steps=1, seed=2))
    assert names() == before
    trained(spec("three", steps=1, rows="all"))
    assert len(names()) == len(before) + 1


def test_a_training_that_was_stopped_ends_with_the_same_weights(spec: Callable[..., TrainSpec]) -> None:
    whole, cut = spec("whole", steps=9), spec("cut", steps=9, save_steps=3)
    trained(whole)

    def stop_in_the_middle(stage: str, step: int = 0, **_: Any) -> None:
        if stage == "train" and step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(JobStopped, match="stopped after step 7 of 9; its checkpoint is kept"):
        trained(cut, stop_in_the_middle)
    checkpoints = Path(cut.work) / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir() if path.is_dir()) == ["checkpoint-6", "checkpoint-7"]
    # the newest one loses its end, as on a machine that lost its power
    torn = checkpoints / "checkpoint-7" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:-100])
    heard: list[dict[str, Any]] = []
    result = trained(cut, lambda **said: heard.append(said))
    skipped = next(said for said in heard if said["stage"] == "skipped")
    assert skipped["checkpoint"] == "checkpoint-7"
    assert "optimizer.pt has" in skipped["reason"]
    assert (result["resumed_at"], result["steps"]) == (6, 9)
    assert weights(cut) == weights(whole)


@pytest.mark.parametrize("broken", ["unsealed", "another training", "flipped"])
def test_a_checkpoint_that_cannot_be_trusted_is_not_gone_on_from(spec: Callable[..., TrainSpec], broken: str) -> None:
    cut = spec("cut", steps=3)

    def stop(stage: str, step: int = 0, **_: Any) -> None:
        if stage == "train" and step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(JobStopped):
        trained(cut, stop)
    folder = Path(cut.work) / "checkpoints" / "checkpoint-2"
    reason = "it was not finished"
    if broken == "unsealed":
        (folder / "treadle.json").unlink()
    elif broken == "flipped":
        file = folder / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        reason = "model.safetensors has other bytes than were written"
    else:
        cut = msgspec.structs.replace(cut, lr=1e-3)
        reason = "it is of another training"
    heard: list[dict[str, Any]] = []
    assert trained(cut, lambda **said: heard.append(said))["resumed_at"] is None
    assert [said["reason"] for said in heard if said["stage"] == "skipped"] == [reason]


def test_packed_rows_and_accumulated_batches_train_as_well(spec: Callable[..., TrainSpec]) -> None:
    result = trained(spec(packed=True, batch=2, accumulate=2, steps=8))
    assert (result["steps"], result["last_loss"] < result["first_loss"]) == (8, True)


def test_an_accumulated_step_is_the_step_of_its_batches_together(spec: Callable[..., TrainSpec]) -> None:
    from safetensors.torch import load

    one, two = spec("one", steps=2, batch=40), spec("two", steps=2, batch=20, accumulate=2)
    trained(one)
    trained(two)
    for name, whole in load(weights(one)).items():
        assert torch.allclose(whole, load(weights(two))[name], atol=2e-4), name


def test_where_the_corpus_cannot_be_written_columns_lie_in_the_job(
    spec: Callable[..., TrainSpec], corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle_trainer.data import building

    really = building.publish

    def read_only(folder: Path, write: Any) -> None:
        if corpus in folder.parents:
            raise OSError(errno.EROFS, "Read-only file system", str(folder))
        really(folder, write)

    monkeypatch.setattr(building, "publish", read_only)
    job = spec(steps=1, max_length=100)
    assert trained(job)["steps"] == 1
    assert list((Path(job.work) / FOLDER).glob("*/v1-sft-*"))


def test_a_corpus_without_anything_to_learn_says_what_is_missing(
    spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    with pytest.raises(DataRefused, match="turns do not fit into max_length 4 tokens"):
        trained(spec(max_length=4, rows="all"))
    path = write_corpus(tmp_path / "lost", [graded("a", reward=0.0)])
    with pytest.raises(DataRefused, match="none of its 1 train rows has a reward above zero"):
        trained(msgspec.structs.replace(spec(), corpus=str(path)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_reach_a_device_ahead_of_the_step(spec: Callable[..., TrainSpec], corpus: Path, base: Path) -> None:
    from transformers import AutoTokenizer
    from treadle_trainer.data.building import build

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    columns = build(Corpus.open(corpus), tokenizer, "sft", max_length=128)
    here, there = (TokenStream(columns, columns.meta.identity, batch=8, seed=1, device=at) for at in (None, "cuda"))
    for one, two in zip(here, there, strict=True):
        assert one.tensors["input_ids"].is_pinned()
        assert {tensor.device.type for tensor in (*two.tensors.values(), two.value)} == {"cuda"}
        for name, tensor in one.tensors.items():
            assert torch.equal(tensor, two.tensors[name].cpu())
    assert here.state_dict() == there.state_dict()
    assert trained(spec(steps=4))["device"] == "cuda"
