"""Supervised fine-tuning of a vision-language model, by TRL's SFTTrainer and its collator for images.

Image and text are tokenised while training, by the processor of the model. Only answers are trained on: TRL masks the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from treadle_corpus import Corpus, CorpusRef
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from treadle_trainer.data.pictures import ImageColumns, build_images
from treadle_trainer.errors import DataRefused
from treadle_trainer.jobs._spec import TrainSpec
from treadle_trainer.methods._columns import beside_or_in
from treadle_trainer.methods._trl import Data, fit, load_model, lora_of, training_settings

__all__ = ["sees_images", "train_pictures"]


def sees_images(folder: str) -> bool:
    """Whether the model in a folder is made for images as well as text."""
    return getattr(AutoConfig.from_pretrained(folder, local_files_only=True), "vision_config", None) is not None


def train_pictures(spec: TrainSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Train `spec.base` on the answers of the train rows, images in their prompts included. Raises DataRefused, JobStopped."""
    if spec.mixture is not None:
        raise DataRefused("mixture: a vision-language model learns from one corpus; take the sources out of the policy")
    if spec.packed:
        raise DataRefused("packed=True: rows with images are not packed; use padded batches")
    torch.manual_seed(spec.seed)
    processor = AutoProcessor.from_pretrained(spec.base, local_files_only=True)
    columns = _columns(spec)
    counts = _counts(columns)
    progress(stage="pictures", **counts)
    model = load_model(spec.base, AutoModelForImageTextToText)
    trainer = SFTTrainer(
        model=model,
        args=training_settings(
            SFTConfig, spec, model.num_parameters(), max_length=None, ignore_data_skip=False, loss_type="nll"
        ),
        processing_class=processor,
        train_dataset=columns.dataset(),
        peft_config=lora_of(spec),
    )
    return fit(trainer, Data(processor, None, None, counts), None, spec, progress)


def _columns(spec: TrainSpec) -> ImageColumns:
    with Corpus.open(CorpusRef(Path(spec.corpus), spec.version)) as corpus:

        def made(root: Path | None) -> ImageColumns:
            return build_images(corpus, where=spec.rows, newest_rows=spec.newest_rows, root=root)

        columns = beside_or_in(spec, made)
        if not len(columns):
            raise DataRefused(
                f"{corpus}: nothing is left to train on: {columns.meta.made} examples, left out {columns.meta.left_out}"
            )
    return columns


def _counts(columns: ImageColumns) -> dict[str, int]:
    meta = columns.meta
    return {
        "rows": meta.rows,
        "examples": meta.made - sum(meta.left_out.values()),
        "sequences": meta.lines,
        "images": meta.images,
        "too_long": 0,
    }
