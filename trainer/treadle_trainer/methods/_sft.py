"""Supervised fine-tuning on successful rows, by TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoTokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from treadle_trainer.jobs._spec import TrainSpec
from treadle_trainer.methods._columns import columns_of, counts_of
from treadle_trainer.methods._trl import Feed, Streamed, fit, load_model, placeholder, stream_of, training_settings

__all__ = ["train_sft"]


class _SftTrainer(Streamed, SFTTrainer):  # type: ignore[misc,unused-ignore]  # trl is not typed here
    """Reads token columns."""


def train_sft(spec: TrainSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Train `spec.base` on the responses of the train rows, save model and tokenizer to `spec.out`.

    The same spec gives the same weights on the same machine and thread count, also where it went on from a checkpoint.
    Raises DataRefused, TemplateRefused, JobStopped.
    """
    torch.manual_seed(spec.seed)
    tokenizer = AutoTokenizer.from_pretrained(spec.base, local_files_only=True)
    columns = columns_of(spec, tokenizer, progress)
    counts = counts_of(columns)
    progress(stage="tokenised", reused=columns.meta.reused, **counts)
    model = load_model(spec.base)
    trainer = _SftTrainer(
        model=model,
        args=training_settings(SFTConfig, spec, model.num_parameters(), dataset_kwargs={"skip_prepare_dataset": True}),
        processing_class=tokenizer,
        train_dataset=placeholder("input_ids", "labels"),
    )
    feed = Feed(stream_of(columns, spec, tokenizer), lambda batch: dict(batch.tensors))
    return {**counts, **fit(trainer, feed, spec, tokenizer, progress)}
