"""Which rows of a corpus version are trained on and evaluated on."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from treadle_corpus import Corpus, CorpusRow
from treadle_corpus.reader import SplitChoice
from treadle_corpus.views import every_row, rewarded
from treadle_schemas.moments import to_micros

from treadle_trainer.errors import DataRefused

__all__ = ["newest", "only_train", "selection", "side_rows"]

Where = Callable[[CorpusRow], bool]


SELECTIONS: Final[Mapping[str, Where]] = {"rewarded": rewarded, "all": every_row}
"""Which rows an sft view learns from, by the names that settings have for it."""


def only_train(rows: Iterable[CorpusRow]) -> Iterable[CorpusRow]:
    """The rows themselves. Raises DataRefused at the first that is not of the train side."""
    for row in rows:
        if row.split != "train":
            raise DataRefused(
                f"row {row.episode_id}/{row.interaction_id} is on the {row.split} side of the split: training takes train rows only"
            )
        yield row


def selection(where: str) -> Where:
    """The selection of that name. Raises DataRefused for any other."""
    if where not in SELECTIONS:
        raise DataRefused(f"where={where!r}: expected one of {', '.join(SELECTIONS)}")
    return SELECTIONS[where]


def side_rows(corpus: Corpus, split: SplitChoice, newest_rows: int | None) -> Iterable[CorpusRow]:
    """The rows of one side of a version, or the newest of them. Raises DataRefused where the train side has another's."""
    rows = only_train(corpus.rows("train")) if split == "train" else corpus.rows(split)
    return rows if newest_rows is None else newest(rows, newest_rows)


def newest(rows: Iterable[CorpusRow], limit: int | None) -> list[CorpusRow]:
    """At most `limit` rows, the newest by ended_at (then by id). Holds no more than that in memory."""
    if limit is None:
        return list(rows)
    return heapq.nlargest(limit, rows, key=_recency)


def _recency(row: CorpusRow) -> tuple[int, str, str]:
    return (to_micros(row.interaction["ended_at"], "$.ended_at"), row.episode_id, row.interaction_id)
