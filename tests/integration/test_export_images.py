"""Images of an export reach TRL's collator for vision-language models, and a random tiny one takes a step."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from treadle.cli import main
from treadle_corpus import CorpusWriter, Policy
from treadle_corpus.testing import SelectAll, graded

from .token_world import make_tokenizer

SIDE = 28
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def picture(colour: str) -> dict[str, Any]:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), COLOURS[colour]).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "corpus"
    rows = [
        graded(
            colour,
            messages=[
                {"role": "user", "content": [picture(colour), {"type": "text", "text": "which colour"}]},
                {"role": "assistant", "content": f"it is {colour}"},
            ],
        )
        for colour in COLOURS
    ]
    rows.append(graded("text", messages=[{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]))
    with CorpusWriter.open(path, workspace="w", policy=Policy()) as writer:
        writer.apply(rows, {0: len(rows)}, 1000)
        writer.finish(SelectAll())
    return path


def export(corpus: Path, out: Path) -> Any:
    args = ["corpus", "export", str(corpus), "--view", "sft", "--form", "trl", "--out", str(out)]
    return CliRunner().invoke(main, args)


@pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own
def test_images_reach_the_vision_language_collator(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch
    from datasets import Image, List, disable_progress_bars, load_dataset
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    out = tmp_path / "train.parquet"
    assert export(corpus, out).exit_code == 0
    dataset = load_dataset("parquet", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    dataset = dataset.cast_column("images", List(Image()))
    assert [len(row["images"]) for row in dataset] == [1, 1, 1, 0]

    tokenizer = make_tokenizer(["user assistant which colour it is red green blue hello hi"] * 3, TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=SIDE, patch_size=14, projection_dim=16),
        text_config=LlamaConfig(**small, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
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
    trainer = SFTTrainer(
        model=LlavaForConditionalGeneration(config), args=args, processing_class=processor, train_dataset=dataset
    )
    batch = trainer.data_collator([dict(dataset[n]) for n in range(4)])
    assert batch["pixel_values"].shape == (3, 3, SIDE, SIDE)
    # each picture's own colour is the brightest channel, so pictures and answers belong together
    assert [int(image.mean((1, 2)).argmax()) for image in batch["pixel_values"]] == [2, 1, 0]
    learned = [tokenizer.decode([token for token in row if token != -100]) for row in batch["labels"].tolist()]
    assert [text.removesuffix("<|im_end|>") for text in learned] == ["it is blue", "it is green", "it is red", "hi"]
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0


def test_lines_of_json_cannot_hold_images(corpus: Path, tmp_path: Path) -> None:
    done = export(corpus, tmp_path / "train.jsonl")
    assert done.exit_code == 2
    assert "ends with .parquet" in done.stderr
    assert list(tmp_path.iterdir()) == []
