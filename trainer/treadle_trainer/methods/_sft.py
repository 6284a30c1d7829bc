"""Supervised fine-tuning on successful rows, by TRL's SFTTrainer.

Sequences are tokenised here, not by TRL, since only the messages marked as response count: TRL masks all assistant turns or none. It
then takes `input_ids` and `labels` as they are (`skip_prepare_dataset`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from treadle_corpus.images import has_images
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from treadle_trainer.data import read_examples
from treadle_trainer.data.sequences import render
from treadle_trainer.errors import DataRefused
from treadle_trainer.jobs._spec import TrainSpec

__all__ = ["train_sft"]

IGNORED = -100
WARMUP_STEPS = 5
SMALL_PARAMETERS = 3_000_000
"""Below this, a second thread costs more than it brings."""
LARGE_PARAMETERS = 100_000_000
"""From here on a GPU trains in bf16; below, rounding costs more than it saves."""


def train_sft(spec: TrainSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Train `spec.base` on the responses in `spec.rows`, save model and tokenizer to `spec.out`.

    The same spec gives the same weights on the same machine and thread count. Raises DataRefused, TemplateRefused.
    """
    torch.manual_seed(spec.seed)
    tokenizer = AutoTokenizer.from_pretrained(spec.base, local_files_only=True)
    dataset, counts = _dataset(spec, tokenizer)
    progress(stage="tokenised", **counts)
    cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        spec.base, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    # on two cores a step of 0.95M parameters takes 114 ms with one thread and 134 ms with two; at 5.3M it is even
    threads = 1 if model.num_parameters() < SMALL_PARAMETERS else os.cpu_count() or 1
    torch.set_num_threads(min(threads, int(os.environ.get("OMP_NUM_THREADS") or threads)))
    bf16 = cuda and model.num_parameters() >= LARGE_PARAMETERS
    args = SFTConfig(
        output_dir=str(Path(spec.out).with_name("trl")),
        max_steps=spec.steps,
        learning_rate=spec.lr,
        lr_scheduler_type="linear",
        warmup_steps=min(WARMUP_STEPS, spec.steps - 1),
        weight_decay=0.0,
        per_device_train_batch_size=spec.batch,
        max_length=None,  # long trajectories were split at turns, none is cut
        dataset_kwargs={"skip_prepare_dataset": True},
        use_cpu=not cuda,
        bf16=bf16,
        gradient_checkpointing=bf16,
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
        save_strategy="no",
        report_to=[],
        logging_steps=max(1, spec.steps // 20),
        disable_tqdm=True,
        seed=spec.seed,
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=dataset,
        callbacks=[_Report(progress)],
    )
    trainer.train()
    trainer.save_model(spec.out)
    tokenizer.save_pretrained(spec.out)
    (Path(spec.out) / "training_args.bin").unlink(missing_ok=True)  # a pickle, which no release should carry
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        **counts,
        "steps": trainer.state.global_step,
        "parameters": model.num_parameters(),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "device": "cuda" if cuda else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__},
    }


class _Report(TrainerCallback):  # type: ignore[misc,unused-ignore]  # transformers is not typed here
    def __init__(self, progress: Callable[..., None]) -> None:
        self._progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._progress(stage="train", step=state.global_step, steps=state.max_steps, loss=logs["loss"])


def _dataset(spec: TrainSpec, tokenizer: Any) -> tuple[Any, dict[str, int]]:
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    examples = images = too_long = step_tokens = 0
    for example in read_examples(Path(spec.rows)):
        if example["split"] != "train":  # checked again at the last door
            raise DataRefused(f"row {example['interaction_id']} is {example['split']}: training takes train rows only")
        if has_images(example["messages"]):
            images += 1
            continue
        rendered = render(
            tokenizer,
            example["messages"],
            example["response"],
            example["tools"],
            max_length=spec.max_length,
            steps=example.get("steps", ()),
        )
        too_long += rendered.too_long
        examples += bool(rendered.sequences)
        step_tokens += rendered.step_tokens
        for sequence in rendered.sequences:
            ids.append(sequence.ids)
            masked = [IGNORED] * len(sequence.ids)
            for start, stop in sequence.spans:
                masked[start:stop] = sequence.ids[start:stop]
            labels.append(masked)
    if not ids:
        raise DataRefused(
            f"nothing is left to train on: {images} examples hold images, which this method does not learn from, and {too_long} turns "
            f"do not fit into max_length {spec.max_length} tokens with what they answer"
        )
    counts = {
        "examples": examples,
        "sequences": len(ids),
        "too_long": too_long,
        "images": images,
        "tokens": sum(map(len, ids)),
        "trained_tokens": sum(t != IGNORED for row in labels for t in row),
        "step_tokens": step_tokens,
    }
    return Dataset.from_dict({"input_ids": ids, "labels": labels}), counts
