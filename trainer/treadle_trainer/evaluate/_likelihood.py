"""Evaluation on logged rows (inside a job process): how likely a model finds the responses that succeeded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from treadle_corpus.images import has_images

from treadle_trainer.data import read_examples
from treadle_trainer.data.rendering import Encoded, encode
from treadle_trainer.evaluate.player import load
from treadle_trainer.jobs._spec import LikelihoodSpec

__all__ = ["score_rows"]


def score_rows(spec: LikelihoodSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """By model: the mean log-likelihood a response token of each row, in nats (higher is better).

    Rows that are too long, or hold images, are left out for all.
    """
    examples = read_examples(Path(spec.rows))
    scores: dict[str, list[float]] = {}
    kept: set[int] | None = None
    by_model: dict[str, dict[int, float]] = {}
    for name, folder in spec.models.items():
        model, tokenizer = load(folder)
        encoded = {
            i: e
            for i, x in enumerate(examples)
            if not has_images(x["messages"])
            and len((e := encode(tokenizer, x["messages"], x["response"], x["tools"])).input_ids) <= spec.max_length
            and any(e.trained)
        }
        by_model[name] = _likelihoods(model, encoded, spec.batch)
        kept = set(encoded) if kept is None else kept & set(encoded)
        progress(stage="evaluate", model=name, rows=len(encoded))
    rows = sorted(kept or ())
    for name, values in by_model.items():
        scores[name] = [values[i] for i in rows]
    return {"scores": scores, "rows": rows}


@torch.inference_mode()
def _likelihoods(model: Any, encoded: dict[int, Encoded], batch: int) -> dict[int, float]:
    out: dict[int, float] = {}
    order = sorted(encoded, key=lambda i: len(encoded[i].input_ids))  # little padding
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
        ids, attention, trained = (x.to(model.device) for x in (ids, attention, trained))
        logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
        chosen = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        counted = trained[:, 1:]
        means = (chosen * counted).sum(1) / counted.sum(1).clamp(min=1)
        out |= dict(zip(chunk, means.tolist(), strict=True))
    return out
