"""Reinforcement learning from logged groups of attempts: nothing is sampled, what agents did is weighed.

For the attempts at one task, with rewards r,

    A_i = (r_i - mean(r)) / (std(r) + 1e-4)                                    (Shao et al. 2024, DeepSeekMath, 4.1.2)
    rho_t = pi(a_t) / mu(a_t)        mu: the probability that was logged when a_t was sampled
    loss = - mean_t min(rho_t A, clip(rho_t, 1 - c, 1 + c) A) + beta mean_t k3_t           (Schulman et al. 2017, eq. 7)
    k3_t = exp(ref_t - pi_t) - (ref_t - pi_t) - 1, in log-probabilities            (Shao et al. 2024, eq. 4)

over the tokens of responses. A token without a logged probability counts as sampled by the model itself: its ratio is 1 at every step, and
only its gradient follows. A group whose attempts all have one reward teaches nothing but to stay near the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from treadle_trainer.data.columns import Columns
from treadle_trainer.data.stream import Batch
from treadle_trainer.errors import DataRefused
from treadle_trainer.jobs._spec import TrainSpec
from treadle_trainer.methods._sft import OwnLossTrainer, response_logps, sft_trainer
from treadle_trainer.methods._trl import data_of, fit, reference_of

__all__ = ["advantages", "clipped_loss", "train_rl"]

LEAST_STD = 1e-4


class _GroupTrainer(OwnLossTrainer):
    clip = 0.2
    beta = 0.0
    reference: Any = None

    def loss_of(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        logps, counted = response_logps(model, inputs)
        reference = None
        if self.beta:
            with torch.no_grad():
                if self.reference is not None:
                    reference, _ = response_logps(self.reference, inputs)
                else:
                    with self.accelerator.unwrap_model(model).disable_adapter():
                        reference, _ = response_logps(model, inputs)
        return clipped_loss(
            logps, counted, inputs["logged"], inputs["advantages"], clip=self.clip, beta=self.beta, reference=reference
        )


def train_rl(spec: TrainSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Train `spec.base` on the groups of the train rows with `clip` and `beta`. Raises DataRefused, TemplateRefused, JobStopped."""
    data = data_of(spec, progress)
    of_member = torch.from_numpy(advantages(data.columns))
    if not of_member.any():
        raise DataRefused(
            f"{spec.corpus}@v{spec.version}: in each of its {len(data.columns)} groups all attempts have the same reward, so none is "
            "better than another"
        )
    trainer = sft_trainer(spec, data.tokenizer, _GroupTrainer)
    trainer.clip, trainer.beta = spec.clip, spec.beta
    trainer.reference = reference_of(spec, trainer.accelerator.device) if spec.beta else None

    def form(batch: Batch) -> dict[str, Any]:
        ids = batch.tensors["input_ids"]
        logged = torch.full(ids.shape, torch.nan, device=ids.device) if batch.logprobs is None else batch.logprobs
        return {**batch.tensors, "advantages": of_member[batch.places].to(ids.device), "logged": logged[:, 1:]}

    return fit(trainer, data, form, spec, progress)


def advantages(columns: Columns) -> NDArray[np.float32]:
    """For each member of the columns, how much better its attempt was than the others of its group; pieces of one attempt alike.

    A long attempt is several sequences, but one attempt: only its first piece counts in mean and deviation.
    """
    firsts = set(columns.conversations[:, 0].tolist())
    is_first = np.fromiter((int(sequence) in firsts for sequence in columns.members), bool, len(columns.members))
    out = np.zeros(len(columns.members), np.float32)
    for begin, end in zip(columns.member_bounds[:-1].tolist(), columns.member_bounds[1:].tolist(), strict=True):
        rewards = columns.value[begin:end]
        attempts = rewards[is_first[begin:end]]
        if len(attempts):
            out[begin:end] = (rewards - attempts.mean()) / (attempts.std() + LEAST_STD)
    return out


def clipped_loss(
    logps: torch.Tensor,
    counted: torch.Tensor,
    logged: torch.Tensor,
    advantage: torch.Tensor,
    *,
    clip: float,
    beta: float,
    reference: torch.Tensor | None,
) -> torch.Tensor:
    """The loss of the module. `logps`, `counted`, `logged` (NaN: none) and `reference` are [rows, tokens], `advantage` is [rows]."""
    ratio = torch.exp(logps - torch.where(logged.isnan(), logps.detach(), logged))
    gain = torch.minimum(ratio * advantage[:, None], ratio.clamp(1 - clip, 1 + clip) * advantage[:, None])
    loss = -gain
    if reference is not None:
        apart = reference - logps
        loss = loss + beta * (torch.exp(apart) - apart - 1)
    mean: torch.Tensor = (loss * counted).sum() / counted.sum().clamp(min=1)
    return mean
