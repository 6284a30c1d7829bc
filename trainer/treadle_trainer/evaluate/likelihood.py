"""How likely models find what was said: batched, padded little, over the tokens of the responses (needs torch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from treadle_trainer.data.rendering import Encoded

__all__ = ["divergences", "likelihoods"]


def likelihoods(model: Any, encoded: dict[int, Encoded], batch: int) -> dict[int, float]:
    """The mean log-likelihood a response token of each conversation, in nats."""
    out: dict[int, float] = {}
    for chunk, ids, attention, counted in _batches(model, encoded, batch):
        chosen = _logprobs(model, ids, attention).gather(-1, ids[:, 1:, None])[..., 0]
        out |= dict(zip(chunk, _means(chosen, counted), strict=True))
    return out


def divergences(model: Any, reference: Any, encoded: dict[int, Encoded], batch: int) -> dict[int, float]:
    """KL(model || reference) a response token, in nats. Both take the same tokens."""
    out: dict[int, float] = {}
    for chunk, ids, attention, counted in _batches(model, encoded, batch):
        ours, theirs = _logprobs(model, ids, attention), _logprobs(reference, ids, attention)
        out |= dict(zip(chunk, _means((ours.exp() * (ours - theirs)).sum(-1), counted), strict=True))
    return out


def _batches(
    model: Any, encoded: dict[int, Encoded], batch: int
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Indices, token ids and attention (rows, width), and which of the next tokens count (rows, width - 1)."""
    order = sorted(encoded, key=lambda i: len(encoded[i].input_ids))
    for first in range(0, len(order), batch):
        chunk = order[first : first + batch]
        width = max(len(encoded[i].input_ids) for i in chunk)
        ids = torch.zeros((len(chunk), width), dtype=torch.long)
        attention = torch.zeros((len(chunk), width), dtype=torch.long)
        trained = torch.zeros((len(chunk), width), dtype=torch.bool)
        for row, i in enumerate(chunk):
            size = len(encoded[i].input_ids)
            ids[row, :size] = torch.tensor(encoded[i].input_ids)
            attention[row, :size] = 1
            trained[row, :size] = torch.tensor(encoded[i].trained)
        yield chunk, ids.to(model.device), attention.to(model.device), trained[:, 1:].to(model.device)


@torch.inference_mode()
def _logprobs(model: Any, ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
    return logits.float().log_softmax(-1)


def _means(values: torch.Tensor, counted: torch.Tensor) -> list[float]:
    means: list[float] = ((values * counted).sum(1) / counted.sum(1).clamp(min=1)).tolist()
    return means
