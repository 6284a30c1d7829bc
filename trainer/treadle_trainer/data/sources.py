"""The examples of one source: of a corpus version, or of an anchor set, without what the corpus that is trained on holds out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from treadle_corpus import Corpus, CorpusRef
from treadle_corpus.heldout import Foreign, HeldOut
from treadle_corpus.reader import SplitChoice
from treadle_corpus.views import VIEWS, View

from treadle_trainer.data._selection import selection, side_rows
from treadle_trainer.data.anchors import anchor_view, read_anchor_set
from treadle_trainer.errors import DataRefused
from treadle_trainer.mixture import Source

__all__ = ["examples_of", "source_view", "version_of"]


def source_view(
    corpus: Corpus,
    view: str,
    *,
    split: SplitChoice = "train",
    newest_rows: int | None = None,
    without: HeldOut | None = None,
    **options: Any,
) -> View[Any]:
    """A view of a version with options as settings have them. What `without` takes out is counted among the dropped rows."""
    given = {name: selection(value) if name == "where" else value for name, value in options.items()}
    rows = side_rows(corpus, split, newest_rows)
    if without is None:
        return VIEWS[view](rows, split=split, **given)
    found = list(rows)
    reasons = without.judge(
        Foreign(row.split_group, [row.interaction["messages"]], (row.episode_id, row.interaction_id)) for row in found
    )
    gone = Counter(reason for reason in reasons if reason is not None)
    made = VIEWS[view](
        (row for row, reason in zip(found, reasons, strict=True) if reason is None), split=split, **given
    )
    dropped = dict(sorted((Counter(made.dropped) + gone).items()))
    return replace(made, rows=len(found), dropped=dropped)


def version_of(source: Source) -> Corpus:
    """The version that a corpus of a mixture names. Raises DataRefused where it has other content than when the job was made."""
    corpus = Corpus.open(CorpusRef(Path(source.path), source.version))
    if corpus.manifest.content_hash != source.content_hash:
        found = corpus.manifest.content_hash
        corpus.close()
        raise DataRefused(
            f"{source}: has content hash {found}, and {source.content_hash} when this job was made: it was made anew, or something was "
            "erased in it. With what it holds now it is another job"
        )
    return corpus


def examples_of(source: Source, view: str, heldout: HeldOut, options: Mapping[str, Any]) -> View[Any]:
    """The view of a further source. Raises DataRefused, SettingError, CorpusError."""
    if source.kind == "anchor":
        path = Path(source.path)
        return anchor_view(path, read_anchor_set(path, source.content_hash), view, heldout)
    with version_of(source) as corpus:
        return source_view(corpus, view, without=heldout, **options)
