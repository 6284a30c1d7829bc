"""Learning from what was better than what: DPO, KTO and reward models, by TRL's trainers.

TRL counts everything after the prompt as the completion, tool answers included. Here the completion mask of every batch is the mask of the
token columns: exactly the messages that the interactions marked as their responses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from treadle_trainer.data.stream import IGNORED, Batch
from treadle_trainer.errors import DataRefused
from treadle_trainer.jobs._spec import TrainSpec
from treadle_trainer.methods._trl import (
    Streamed,
    data_of,
    fit,
    load_model,
    lora_of,
    placeholder,
    reference_of,
    training_settings,
)

__all__ = ["kto_form", "pair_form", "train_dpo", "train_kto", "train_reward"]

KL_LEAST_BATCH = 2
"""KTO's estimate of the divergence pairs each prompt with the answer of another."""


class _DpoTrainer(Streamed, DPOTrainer):  # type: ignore[misc,unused-ignore]  # trl is not typed here
    """Reads token columns."""


class _KtoTrainer(Streamed, KTOTrainer):  # type: ignore[misc,unused-ignore]
    """Reads token columns."""


class _RewardTrainer(Streamed, RewardTrainer):  # type: ignore[misc,unused-ignore]
    """Reads token columns."""


def train_dpo(spec: TrainSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7) with `beta`, against the model that it begins with.

    Raises DataRefused, TemplateRefused, JobStopped.
    """
    data = data_of(spec, progress)
    model = load_model(spec.base)
    trainer = _DpoTrainer(
        model=model,
        ref_model=reference_of(spec),
        args=training_settings(DPOConfig, spec, model.num_parameters(), max_length=None, beta=spec.beta),
        processing_class=data.tokenizer,
        train_dataset=placeholder(prompt="", chosen="", rejected=""),
        peft_config=lora_of(spec),
    )
    return fit(trainer, data, pair_form, spec, progress)


def train_kto(spec: TrainSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, eq. 7 and 8) with `beta`, against the model that it begins with.

    Raises DataRefused (also for batches of one), TemplateRefused, JobStopped.
    """
    if spec.batch < KL_LEAST_BATCH:
        raise DataRefused(
            f"batch={spec.batch}: kto pairs each prompt with the answer of another, so a batch has at least 2"
        )
    data = data_of(spec, progress)
    model = load_model(spec.base)
    trainer = _KtoTrainer(
        model=model,
        ref_model=reference_of(spec),
        args=training_settings(
            KTOConfig,
            spec,
            model.num_parameters(),
            max_length=None,
            beta=spec.beta,
            train_sampling_strategy="sequential",
        ),
        processing_class=data.tokenizer,
        train_dataset=placeholder(prompt="", completion="", label=True),
        peft_config=lora_of(spec),
    )
    pad = int(data.tokenizer.pad_token_id)
    return fit(trainer, data, lambda batch: kto_form(batch, pad), spec, progress)


def train_reward(spec: TrainSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """A reward model: one number for a conversation, greater for the chosen of each pair (Bradley-Terry; Ouyang et al. 2022, eq. 1).

    `spec.out` becomes a folder for AutoModelForSequenceClassification with one label. Raises DataRefused, TemplateRefused, JobStopped.
    """
    data = data_of(spec, progress)
    model = load_model(spec.base, AutoModelForSequenceClassification, num_labels=1)
    trainer = _RewardTrainer(
        model=model,
        args=training_settings(RewardConfig, spec, model.num_parameters(), max_length=None),
        processing_class=data.tokenizer,
        train_dataset=placeholder(chosen_ids=[0], rejected_ids=[0]),
        peft_config=lora_of(spec, "SEQ_CLS"),
    )

    def form(batch: Batch) -> dict[str, Any]:
        return {name: batch.tensors[name] for name in ("input_ids", "attention_mask")}

    return fit(trainer, data, form, spec, progress)


def pair_form(batch: Batch) -> dict[str, Any]:
    """What DPOTrainer takes: all chosen rows, then all rejected ones."""
    given = batch.tensors
    return {
        "input_ids": given["input_ids"],
        "attention_mask": given["attention_mask"].long(),
        "completion_mask": (given["labels"] != IGNORED).long(),
    }


def kto_form(batch: Batch, pad: int) -> dict[str, Any]:
    """What KTOTrainer takes, its KL examples included: the prompt of each row with the answer of the one before it.

    A prompt is all before the first token to train on; the answer is the rest, of which the same tokens count.
    """
    plain = pair_form(batch)
    ids, attention, mask = (plain[name] for name in ("input_ids", "attention_mask", "completion_mask"))
    lengths, starts = attention.sum(1).tolist(), mask.argmax(1).tolist()
    rows = []
    for n in range(len(ids)):
        other = n - 1  # of the first row: the last one
        begin, end = starts[other], lengths[other]
        rows.append(
            (
                torch.cat([ids[n, : starts[n]], ids[other, begin:end]]),
                torch.cat([torch.zeros_like(mask[n, : starts[n]]), mask[other, begin:end]]),
            )
        )

    def padded(found: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=value)

    return {
        **plain,
        "KL_input_ids": padded([row for row, _ in rows], pad),
        "KL_attention_mask": padded([torch.ones_like(row) for row, _ in rows], 0),
        "KL_completion_mask": padded([counted for _, counted in rows], 0),
        "label": batch.value > 0,
    }
