"""Evaluation on logged rows (inside a job process): how likely a model finds the responses that succeeded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from treadle_corpus.images import has_images

from treadle_trainer.data import read_examples
from treadle_trainer.data.rendering import encode
from treadle_trainer.evaluate.likelihood import likelihoods
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
        by_model[name] = likelihoods(model, encoded, spec.batch)
        kept = set(encoded) if kept is None else kept & set(encoded)
        progress(stage="evaluate", model=name, rows=len(encoded))
    rows = sorted(kept or ())
    for name, values in by_model.items():
        scores[name] = [values[i] for i in rows]
    return {"scores": scores, "rows": rows}
