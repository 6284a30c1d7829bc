"""Images of an export reach TRL's collator for vision-language models, and a random tiny one takes a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from treadle.cli import main
from treadle_corpus.testing import graded

from .model_world import write_corpus
from .picture_world import COLOURS, SIDE, shown, tiny_llava


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "corpus"
    rows = [graded(colour, messages=shown(colour)) for colour in COLOURS]
    rows.append(graded("text", messages=[{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]))
    return write_corpus(path, rows)


def export(corpus: Path, out: Path) -> Any:
    args = ["corpus", "export", str(corpus), "--view", "sft", "--form", "trl", "--out", str(out)]
    return CliRunner().invoke(main, args)


@pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own
def test_images_reach_the_vision_language_collator(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import Image, List, disable_progress_bars, load_dataset
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    out = tmp_path / "train.parquet"
    assert export(corpus, out).exit_code == 0
    dataset = load_dataset("parquet", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    dataset = dataset.cast_column("images", List(Image()))
    assert [len(row["images"]) for row in dataset] == [1, 1, 1, 0]

    model, processor = tiny_llava()
    args = SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        per_device_train_batch_size=4,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        max_length=None,
        dataloader_pin_memory=False,
    )
    trainer = SFTTrainer(model=model, args=args, processing_class=processor, train_dataset=dataset)
    batch = trainer.data_collator([dict(dataset[n]) for n in range(4)])
    assert batch["pixel_values"].shape == (3, 3, SIDE, SIDE)
    # each picture's own colour is the brightest channel, so pictures and answers belong together
    assert [int(image.mean((1, 2)).argmax()) for image in batch["pixel_values"]] == [2, 1, 0]
    learned = [
        processor.tokenizer.decode([token for token in row if token != -100]) for row in batch["labels"].tolist()
    ]
    assert [text.removesuffix("<|im_end|>") for text in learned] == ["it is blue", "it is green", "it is red", "hi"]
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0


def test_lines_of_json_cannot_hold_images(corpus: Path, tmp_path: Path) -> None:
    done = export(corpus, tmp_path / "train.jsonl")
    assert done.exit_code == 2
    assert "ends with .parquet" in done.stderr
    assert list(tmp_path.iterdir()) == []
