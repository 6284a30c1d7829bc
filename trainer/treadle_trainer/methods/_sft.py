"""Supervised fine-tuning by TRL's SFTTrainer: on successful rows alike, or by how successful they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import selective_log_softmax

from treadle_trainer.data.columns import Columns
from treadle_trainer.data.mixture import MixedColumns
from treadle_trainer.data.stream import IGNORED, Batch
from treadle_trainer.errors import DataRefused
from treadle_trainer.jobs._spec import TrainSpec
from treadle_trainer.methods._pictures import sees_images, train_pictures
from treadle_trainer.methods._trl import Streamed, data_of, fit, load_model, lora_of, placeholder, training_settings

__all__ = ["OwnLossTrainer", "response_logps", "train_rwsft", "train_sft"]


class _SftTrainer(Streamed, SFTTrainer):  # type: ignore[misc,unused-ignore]  # trl is not typed here
    """Reads token columns."""


def train_sft(spec: TrainSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Train `spec.base` on the responses of the train rows, save model and tokenizer to `spec.out`.

    The same spec gives the same weights on the same machine and thread count, also where it went on from a checkpoint.
    A vision-language model learns from images as well. Raises DataRefused, TemplateRefused, JobStopped.
    """
    if sees_images(spec.base):
        return train_pictures(spec, progress)
    data = data_of(spec, progress)
    return fit(sft_trainer(spec, data.tokenizer, _SftTrainer), data, lambda batch: dict(batch.tensors), spec, progress)


def train_rwsft(spec: TrainSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Reward-weighted fine-tuning: a sequence counts by its reward.

        loss = sum_i w_i nll_i / sum_i w_i n_i,    w_i = max(reward_i, 0)

    over the sequences of a batch, nll_i being the sum over the n_i tokens to train on: reward-weighted regression (Peters & Schaal 2007,
    eq. 8) with rewards as weights. A demonstration weighs as much as the greatest reward of the version that it is from, and what an
    anchor set holds without any reward as much as the greatest of the corpus. Raises as `train_sft`, and DataRefused where no reward is
    above zero.
    """
    data = data_of(spec, progress)
    of_member = torch.from_numpy(_weights(data.columns))

    def form(batch: Batch) -> dict[str, Any]:
        return {**batch.tensors, "weights": of_member[batch.places].to(batch.value.device)}

    return fit(sft_trainer(spec, data.tokenizer, _WeightedTrainer), data, form, spec, progress)


def sft_trainer(spec: TrainSpec, tokenizer: Any, kind: Any, **more: Any) -> Any:
    """A trainer of the kind for `spec.base`, all weights or an adapter."""
    model = load_model(spec.base)
    settings = training_settings(
        SFTConfig,
        spec,
        model.num_parameters(),
        max_length=None,  # long trajectories were split at turns, none is cut
        dataset_kwargs={"skip_prepare_dataset": True},
        **more,
    )
    return kind(
        model=model,
        args=settings,
        processing_class=tokenizer,
        train_dataset=placeholder(input_ids=[0], labels=[0]),
        peft_config=lora_of(spec),
    )


class OwnLossTrainer(Streamed, SFTTrainer):  # type: ignore[misc,unused-ignore]
    """For losses that TRL does not have: `loss_of` gives the loss of a batch, averaged over it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["args"].loss_type = "nll"  # keeps the model's own forward, which gives logits
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = (
            False  # the loss is an average: the trainer divides it by the batches of a step
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one batch."""
        del num_items_in_batch
        loss = self.loss_of(model, inputs)
        return (loss, None) if return_outputs else loss

    def loss_of(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """The loss of one batch, averaged over it."""
        raise NotImplementedError


class _WeightedTrainer(OwnLossTrainer):
    def loss_of(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        logps, counted = response_logps(model, inputs)
        weights = inputs["weights"][:, None] * counted
        total: torch.Tensor = -(weights * logps).sum() / weights.sum().clamp(min=1e-8)
        return total


def response_logps(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token given those before it, [rows, width - 1], and a bool mask of those to train on."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits[
        :, :-1
    ]
    logps: torch.Tensor = selective_log_softmax(logits, inputs["input_ids"][:, 1:])
    return logps, inputs["labels"][:, 1:] != IGNORED


def _weights(columns: Columns) -> NDArray[np.float32]:
    """The weight of each member; of a mixture by the rewards of its source."""
    out = np.array(columns.value, np.float32)
    parts = (
        [columns.members_of(n) for n in range(len(columns.sources))]
        if isinstance(columns, MixedColumns)
        else [slice(None)]
    )
    first: float | None = None
    for n, part in enumerate(parts):
        own = out[part]
        known = own[own > 0]  # NaN is not
        if not len(known) and (first is None or not np.isnan(own).all()):
            path = columns.sources[n].path if isinstance(columns, MixedColumns) else columns.path
            raise DataRefused(f"{path}: no reward is above zero, so nothing has a weight")
        greatest = float(known.max()) if len(known) else float(first or 0.0)
        first = greatest if first is None else first
        out[part] = np.clip(np.nan_to_num(own, nan=greatest), 0, None)
    return out
