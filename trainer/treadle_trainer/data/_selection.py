"""What a corpus version gives to training and to evaluation on logged rows: the newest rows, as examples of a view, in a file."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from treadle_corpus import Corpus, CorpusRow
from treadle_corpus.views import every_row, jsonl, rewarded, sft
from treadle_schemas.moments import to_micros
from treadle_schemas.split import Side

from treadle_trainer.errors import DataRefused

__all__ = ["Selection", "heldout_examples", "newest", "only_train", "read_examples", "select_training"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What was written for a job: how many rows were considered, and the examples made of them."""

    path: Path
    rows: int
    examples: int
    groups: tuple[str, ...]
    """The split group of each example."""


def select_training(
    corpus: Corpus, path: Path, *, newest_rows: int | None, which: Literal["rewarded", "all"] = "rewarded"
) -> Selection:
    """Write the sft examples of the newest train rows of a version to `path`, one JSON line each.

    `rewarded` takes rows with a reward above zero, `all` whatever the version holds. Raises DataRefused where nothing is left to train
    on, or a row is not of the train side.
    """
    rows = newest(only_train(corpus.rows("train")), newest_rows)
    selection = _write(rows, path, rewarded if which == "rewarded" else every_row, "train")
    if not selection.examples:
        lack = "has a reward above zero" if which == "rewarded" else "has a turn of the assistant"
        raise DataRefused(f"{corpus}: none of its {len(rows)} train rows {lack}, so there is nothing to imitate")
    return selection


def heldout_examples(corpus: Corpus, path: Path, *, newest_rows: int) -> Selection:
    """Write the newest successful held-out rows of a version to `path`: to evaluate on, never to train on."""
    return _write(
        newest((row for row in corpus.rows("heldout") if rewarded(row)), newest_rows), path, rewarded, "heldout"
    )


def only_train(rows: Iterable[CorpusRow]) -> Iterable[CorpusRow]:
    """The rows themselves. Raises DataRefused at the first that is not of the train side."""
    for row in rows:
        if row.split != "train":
            raise DataRefused(
                f"row {row.episode_id}/{row.interaction_id} is on the {row.split} side of the split: training takes train rows only"
            )
        yield row


def newest(rows: Iterable[CorpusRow], limit: int | None) -> list[CorpusRow]:
    """At most `limit` rows, the newest by ended_at (then by id). Holds no more than that in memory."""
    if limit is None:
        return list(rows)
    return heapq.nlargest(limit, rows, key=_recency)


def read_examples(path: Path) -> list[dict[str, Any]]:
    """The examples that `select_training` or `heldout_examples` wrote."""
    from treadle_schemas.canonical import loads

    with path.open("rb") as file:
        return [loads(line, f"{path.name}:{n}") for n, line in enumerate(file, 1)]


def _write(rows: list[CorpusRow], path: Path, where: Callable[[CorpusRow], bool], split: Side) -> Selection:
    group_of = {(row.episode_id, row.interaction_id): row.split_group for row in rows}
    examples = sft(rows, where, split=split)
    with path.open("wb") as file:
        file.writelines(jsonl(examples))
    groups = tuple(group_of[example["episode_id"], example["interaction_id"]] for example in examples)
    return Selection(path=path, rows=len(rows), examples=len(examples), groups=groups)


def _recency(row: CorpusRow) -> tuple[int, str, str]:
    return (to_micros(row.interaction["ended_at"], "$.ended_at"), row.episode_id, row.interaction_id)
