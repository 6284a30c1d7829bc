"""From a job's spec to the columns that it trains on: made on first use, kept beside the corpus, read from there ever after."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from treadle_corpus import Corpus, CorpusRef

from treadle_trainer.backends import VIEW_OF
from treadle_trainer.data.building import SPLIT_VIEWS, build
from treadle_trainer.data.columns import Columns
from treadle_trainer.errors import DataRefused
from treadle_trainer.jobs._spec import TrainSpec

__all__ = ["beside_or_in", "columns_of", "corpus_version", "counts_of", "logged_tokens"]

T = TypeVar("T")

TOLD_EVERY: Final = 1000
_READ_ONLY: Final = (errno.EROFS, errno.EACCES, errno.EPERM)


def columns_of(spec: TrainSpec, tokenizer: Any, progress: Callable[..., None]) -> Columns:
    """The token columns of the spec's version, view and options, for this tokenizer.

    They lie beside the corpus, or, where that cannot be written to, in the job's folder. Raises DataRefused where nothing is left to
    train on, TemplateRefused, OSError.
    """
    view = VIEW_OF[spec.method]
    with Corpus.open(corpus_version(spec)) as corpus:

        def told(done: int) -> None:
            if done % TOLD_EVERY == 0:
                progress(stage="tokens", examples=done)

        def made(root: Path | None) -> Columns:
            return build(
                corpus,
                tokenizer,
                view,
                max_length=spec.max_length,
                newest_rows=spec.newest_rows,
                root=root,
                on_progress=told,
                **spec.view_options(view),
            )

        columns = beside_or_in(spec, made)
        if not len(columns):
            raise DataRefused(f"{corpus}: {_why_nothing(columns, spec)}")
    return columns


def corpus_version(spec: TrainSpec) -> CorpusRef:
    """The version that the spec trains on."""
    return CorpusRef(Path(spec.corpus), spec.version)


def beside_or_in(spec: TrainSpec, made: Callable[[Path | None], T]) -> T:
    """What `made` makes beside the corpus, or, where that cannot be written to, in the job's folder."""
    try:
        return made(None)
    except OSError as err:
        if err.errno not in _READ_ONLY:
            raise
        return made(Path(spec.work))


def logged_tokens(columns: Columns) -> int:
    """Tokens whose log-probability was logged."""
    return 0 if columns.logprobs is None else int(np.count_nonzero(~np.isnan(columns.logprobs)))


def counts_of(columns: Columns) -> dict[str, int]:
    """What a result says of its data: rows of the version, examples of the view, and what became of them."""
    meta = columns.meta
    counts = {
        "rows": meta.rows,
        "examples": meta.made - meta.images - meta.too_long["examples"],
        "sequences": meta.sequences,
        "too_long": sum(meta.too_long.values()),
        "images": meta.images,
        "tokens": meta.tokens,
        "trained_tokens": meta.trained_tokens,
        "step_tokens": meta.step_tokens,
    }
    if columns.meta.view == "rl":
        counts |= {"logged_tokens": logged_tokens(columns), "unaligned": meta.unaligned}
    return counts


def _why_nothing(columns: Columns, spec: TrainSpec) -> str:
    meta = columns.meta
    if meta.made:
        return (
            f"nothing is left to train on: {meta.images} examples hold images, which a model of text does not learn from, and "
            f"{sum(meta.too_long.values())} {'turns' if meta.view in SPLIT_VIEWS else 'answers'} do not fit into max_length "
            f"{spec.max_length} tokens with what they answer"
        )
    lack = {
        "sft": "has a reward above zero" if spec.rows == "rewarded" else "has a turn of the assistant",
        "dpo": "makes a pair with another: two attempts at one task with different rewards, a preference or a demonstration",
        "kto": "has a reward",
        "rl": "has a second attempt with a reward at its task",
    }[meta.view if meta.view != "reward" else "dpo"]
    goal = "imitate" if meta.view == "sft" else "learn from"
    return f"none of its {meta.rows} train rows {lack}, so there is nothing to {goal}"
