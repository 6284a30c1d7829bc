"""Views over a corpus on disk: what they are made of comes back from it."""

from __future__ import annotations

from pathlib import Path

from treadle_corpus import Corpus, CorpusWriter, Policy
from treadle_corpus.testing import SelectAll, graded
from treadle_schemas.records import Feedback

PREFERRED = Feedback(
    kind="preference", name="better", outcome_id="o1", observed_at="2024-05-16T00:00:00Z", over="b", source="desk"
)


def test_what_was_said_of_a_row_comes_back_with_it(tmp_path: Path) -> None:
    with CorpusWriter.open(tmp_path / "corpus", workspace="w", policy=Policy()) as corpus:
        corpus.apply([graded("a", feedback=[PREFERRED]), graded("b", reward=0.0)], {0: 2}, 1000)
        corpus.finish(SelectAll())
    first, second = Corpus.open(tmp_path / "corpus").rows("train")
    assert list(first.feedback) == [PREFERRED]
    assert list(second.feedback) == []
