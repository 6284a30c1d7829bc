"""What a training would learn from, without training: counts, and one example with its mask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from transformers import AutoTokenizer

from treadle_trainer.data.columns import Columns
from treadle_trainer.data.mixture import MixedColumns
from treadle_trainer.data.stream import TokenStream
from treadle_trainer.jobs._spec import TrainSpec
from treadle_trainer.methods import SAMPLES
from treadle_trainer.methods._columns import logged_tokens
from treadle_trainer.methods._mixture import SourceCounts, all_columns, left_out, source_counts
from treadle_trainer.methods._prompt_plan import prompt_plan

__all__ = ["Plan", "Sampling", "Segment", "plan"]

UNITS = {"sft": "sequences", "dpo": "pairs", "reward": "pairs", "kto": "labelled answers", "rl": "groups"}


class Segment(TypedDict):
    """A run of text whose tokens are all trained on, or none."""

    text: str
    trained: bool


class Sampling(TypedDict):
    """What a step of a method that samples does: `group` attempts at each of `prompts`, at most `max_new_tokens` a turn."""

    source: str
    scored_by: str
    prompts: int
    group: int
    max_new_tokens: int


class Plan(TypedDict):
    """`dropped` counts rows by reason, `left_out` examples. `epochs` is how often each example is seen."""

    rows: int
    used: int
    dropped: dict[str, int]
    left_out: dict[str, int]
    unit: str
    examples: int
    sequences: int
    tokens: int
    trained_tokens: int
    logged_tokens: int
    longest: int
    epochs: float
    example: list[list[Segment]]
    """The sequences of the first example: one, of a pair chosen and rejected, of a group all attempts."""
    values: list[float | None]
    """Of each of them the reward, label or margin."""
    sampling: NotRequired[Sampling]
    """Where the method samples: then examples are prompts or tasks, rows what they were taken from, and `trained_tokens` is 0."""
    sources: NotRequired[list[SourceCounts]]
    """Of a mixture every source, the corpus first; the other counts are the corpus's alone."""


def plan(spec: TrainSpec) -> Plan:
    """The plan of a training. Makes its token columns, which stay for the training itself.

    Raises DataRefused where nothing would be left to train on, TemplateRefused, OSError.
    """
    Path(spec.work).mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(spec.base, local_files_only=True)
    if spec.method in SAMPLES:
        return prompt_plan(spec, tokenizer)
    every = all_columns(spec, tokenizer, lambda **_: None)
    columns = every.sources[0] if isinstance(every, MixedColumns) else every
    meta = columns.meta
    first = columns.members[: columns.member_bounds[1]].tolist()
    taken = spec.steps * spec.accumulate * spec.batch
    sources = _sources(spec, every)
    per_epoch = len(columns) if not spec.packed else meta.tokens / spec.max_length
    made = Plan(
        rows=meta.rows,
        used=meta.used,
        dropped=meta.dropped,
        left_out=left_out(columns),
        unit=UNITS[meta.view],
        examples=len(columns),
        sequences=meta.sequences,
        tokens=meta.tokens,
        trained_tokens=meta.trained_tokens,
        logged_tokens=logged_tokens(columns),
        longest=int(columns.lengths.max()),
        epochs=sources[0]["epochs"] if sources else round(taken / per_epoch, 2),
        example=[list(_segments(columns, sequence, tokenizer)) for sequence in first],
        values=[None if value != value else round(float(value), 4) for value in columns.value[: len(first)]],
    )
    if sources:
        made["sources"] = sources
    return made


def _sources(spec: TrainSpec, columns: Columns) -> list[SourceCounts]:
    """What the steps of the training read of each source of a mixture."""
    if spec.mixture is None or not isinstance(columns, MixedColumns):
        return []
    stream = TokenStream(
        columns,
        columns.meta.identity,
        batch=spec.batch,
        seed=spec.seed,
        ranks=1 if spec.launch is None else spec.launch.processes,
        together=True,
        packed=spec.max_length if spec.packed else None,
        prefetch=0,
    )
    return source_counts(spec, spec.mixture, columns, stream.taken(spec.steps * spec.accumulate))


def _segments(columns: Columns, sequence: int, tokenizer: Any) -> Iterator[Segment]:
    tokens, at = columns.tokens(sequence).tolist(), 0
    for start, stop in columns.trained(sequence).tolist():
        if start > at:
            yield Segment(text=tokenizer.decode(tokens[at:start]), trained=False)
        yield Segment(text=tokenizer.decode(tokens[start:stop]), trained=True)
        at = stop
    if at < len(tokens):
        yield Segment(text=tokenizer.decode(tokens[at:]), trained=False)
