"""Images of a corpus become a column, reach TRL's collator for vision-language models, and are forgotten with the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from treadle_corpus import Corpus
from treadle_corpus.testing import graded
from treadle_trainer.data.columns import FOLDER, META, forget
from treadle_trainer.data.pictures import ImageColumns, build_images
from treadle_trainer.errors import ColumnsDamaged, ColumnsMissing, DataRefused
from treadle_trainer.jobs import TrainSpec

from .model_world import write_corpus
from .picture_world import COLOURS, SIDE, png, shown, tiny_llava

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [graded(colour, messages=shown(colour)) for colour in COLOURS]
    rows.append(graded("text", messages=[{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]))
    rows.append(graded("linked", messages=shown("red", "https://example.org/red.png")))
    rows.append(graded("lost", reward=0.0, messages=shown("blue")))
    rows.append(graded("heldout", split="heldout", task_id="h", messages=[*shown("green"), *shown("red")]))
    return write_corpus(tmp_path / "corpus", rows)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_column_holds_the_bytes_that_the_agent_saw(path: Path) -> None:
    columns = build_images(Corpus.open(path))
    assert (len(columns), columns.meta.images, columns.meta.left_out) == (4, 3, {"remote_image": 1})
    assert columns.meta.dropped == {"not_selected": 1}
    by_answer = {row["completion"][0]["content"][0]["text"]: row for row in columns.dataset()}
    assert set(by_answer) == {"it is red", "it is green", "it is blue", "hi"}
    for colour, value in COLOURS.items():
        row = by_answer[f"it is {colour}"]
        assert row["prompt"] == [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "which colour"}]}
        ]
        (image,) = row["images"]
        assert image.convert("RGB").getpixel((3, 3)) == value
        assert png(colour) in (columns.path / "rows.arrow").read_bytes()
    assert by_answer["hi"]["images"] == []
    again = build_images(Corpus.open(path))
    assert again.path == columns.path
    assert columns[0]["completion"] == again[0]["completion"]


def test_images_are_forgotten_with_the_tokens(path: Path) -> None:
    build_images(Corpus.open(path))

    def holders() -> list[Path]:
        inside = [file for file in (path / FOLDER).rglob("*") if file.is_file()]
        return [file for file in inside if png("red") in file.read_bytes()]

    assert holders()
    forget(path)
    assert not (path / FOLDER).exists()


def test_what_was_cut_short_is_made_again_and_never_read(path: Path) -> None:
    columns = build_images(Corpus.open(path))
    file = columns.path / "rows.arrow"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ColumnsDamaged, match=r"rows\.arrow has \d+ bytes"):
        ImageColumns.open(columns.path)
    assert len(build_images(Corpus.open(path))) == 4
    (columns.path / META).unlink()
    with pytest.raises(ColumnsMissing):
        ImageColumns.open(columns.path)
    with pytest.raises(DataRefused, match="where='some'"):
        build_images(Corpus.open(path), where="some")


def test_a_vision_language_model_learns_from_the_images_of_a_corpus(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle_trainer.methods import train
    from trl import SFTTrainer

    for part in tiny_llava():
        part.save_pretrained(tmp_path / "base")
    seen: list[dict[str, Any]] = []
    really = SFTTrainer.compute_loss

    def listening(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append({name: value.clone() for name, value in inputs.items()})
        return really(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "compute_loss", listening)
    spec = TrainSpec(
        method="sft",
        base=str(tmp_path / "base"),
        corpus=str(path),
        version=1,
        out=str(tmp_path / "model"),
        work=str(tmp_path),
        steps=12,
        lr=1e-2,
        batch=4,
        max_length=128,
        seed=1,
    )
    result = train(spec, lambda **_: None)
    assert (result["rows"], result["examples"], result["images"], result["steps"]) == (6, 4, 3, 12)
    assert result["last_loss"] < result["first_loss"]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    batch = seen[0]
    assert batch["pixel_values"].shape == (3, 3, SIDE, SIDE)
    texts = [tokenizer.decode([token for token in row if token != -100]) for row in batch["labels"].tolist()]
    answers = [text.removesuffix("<|im_end|>") for text in texts if "it is" in text]
    # each picture's own colour is its brightest channel: pictures and answers belong together
    channels = [int(image.mean((1, 2)).argmax()) for image in batch["pixel_values"]]
    assert answers == [f"it is {['red', 'green', 'blue'][channel]}" for channel in channels]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {f.name for f in (tmp_path / "model").iterdir()}
