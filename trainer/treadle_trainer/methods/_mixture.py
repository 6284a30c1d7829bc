"""The columns of a job's mixture: of its corpus and of each further source, without what the corpus or its workspace holds out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from treadle_corpus import Corpus
from treadle_corpus.heldout import HeldOut

from treadle_trainer.backends import VIEW_OF
from treadle_trainer.data.anchors import read_anchor_set
from treadle_trainer.data.building import build, build_anchor
from treadle_trainer.data.columns import Columns
from treadle_trainer.data.mixture import MixedColumns
from treadle_trainer.data.sources import version_of
from treadle_trainer.errors import DataRefused
from treadle_trainer.jobs._spec import TrainSpec
from treadle_trainer.methods._columns import beside_or_in, columns_of, corpus_version
from treadle_trainer.mixture import Mixture, Source

__all__ = ["SourceCounts", "all_columns", "source_counts"]


class SourceCounts(TypedDict):
    """One source of a mixture, the corpus itself first: what it has, and what of it is trained on."""

    source: str
    weight: float
    """The share that was asked for."""
    share: float
    """The share of the examples that were read."""
    rows: int
    dropped: dict[str, int]
    """Rows (of an anchor set lines) in no example, by reason."""
    left_out: dict[str, int]
    examples: int
    tokens: int
    trained_tokens: int
    read: int
    """Examples that were read, those that were read again included."""
    epochs: float
    """How often each example was read."""


def all_columns(spec: TrainSpec, tokenizer: Any, progress: Callable[..., None]) -> Columns:
    """The columns of the spec's version, or of its mixture. Raises as `columns_of`, and DataRefused, SettingError naming a source."""
    main = columns_of(spec, tokenizer, progress)
    if spec.mixture is None:
        return main
    with Corpus.open(corpus_version(spec)) as corpus:
        heldout = HeldOut(corpus, spec.mixture.split)
    others = [_columns(spec, source, tokenizer, heldout) for source in spec.mixture.sources]
    for source, columns in zip(spec.mixture.sources, others, strict=True):
        progress(stage="source", source=str(source), rows=columns.meta.rows, examples=len(columns))
    return MixedColumns([main, *others], spec.mixture.weights)


def source_counts(spec: TrainSpec, mixture: Mixture, columns: MixedColumns, read: Sequence[int]) -> list[SourceCounts]:
    """What is said of each source; `read` are the examples of each that a training reads."""
    names = [f"{spec.corpus}@v{spec.version}", *map(str, mixture.sources)]
    total = max(1, sum(read))
    return [
        SourceCounts(
            source=name,
            weight=round(weight, 6),
            share=round(count / total, 6),
            rows=one.meta.rows,
            dropped=one.meta.dropped,
            left_out=left_out(one),
            examples=len(one),
            tokens=one.meta.tokens,
            trained_tokens=one.meta.trained_tokens,
            read=count,
            epochs=round(count / len(one), 2),
        )
        for name, weight, one, count in zip(names, mixture.weights, columns.sources, read, strict=True)
    ]


def left_out(columns: Columns) -> dict[str, int]:
    """Examples that could have been made and were not, by reason."""
    meta = columns.meta
    found = {**meta.left_out, "too_long": sum(meta.too_long.values()), "images": meta.images}
    return {name: count for name, count in found.items() if count}


def _columns(spec: TrainSpec, source: Source, tokenizer: Any, heldout: HeldOut) -> Columns:
    view = VIEW_OF[spec.method]
    if source.kind == "anchor":
        path = Path(source.path)
        data = read_anchor_set(path, source.content_hash)

        def made(root: Path | None) -> Columns:
            return build_anchor(
                path,
                data,
                source.content_hash,
                tokenizer,
                view,
                without=heldout,
                max_length=spec.max_length,
                root=Path(spec.corpus) if root is None else root,
            )

        columns = beside_or_in(spec, made)
    else:
        with version_of(source) as corpus:
            columns = beside_or_in(
                spec,
                lambda root: build(
                    corpus,
                    tokenizer,
                    view,
                    max_length=spec.max_length,
                    without=heldout,
                    root=root,
                    **spec.view_options(view),
                ),
            )
    if not len(columns):
        reasons = {**columns.meta.dropped, **left_out(columns)}
        said = ", ".join(f"{name} {count}" for name, count in reasons.items()) or "it has none"
        raise DataRefused(f"mixture: {source} has no {view} example to train on, of {columns.meta.rows} rows ({said})")
    return columns
