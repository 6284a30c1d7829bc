"""Views over a corpus on disk: what they are made of comes back from it."""

from __future__ import annotations

from pathlib import Path

from treadle_corpus import Corpus, CorpusWriter, Policy
from treadle_corpus.testing import SelectAll, graded
from treadle_schemas.records import Feedback

PREFERRED = Feedback(
    kind="preference", name="better", outcome_id="o1", observed_at="2024-05-16T00:00:00Z", over="b", source="desk"
)


def test_what_was_said_late_makes_a_version_and_leaves_the_content_hash_as_it_was(tmp_path: Path) -> None:
    said = Feedback(
        kind="demonstration",
        name="right",
        outcome_id="o2",
        observed_at="2024-05-16T00:00:00Z",
        messages=[{"role": "assistant", "content": "better"}],
    )
    path = tmp_path / "corpus"
    with CorpusWriter.open(path, workspace="w", policy=Policy()) as corpus:
        corpus.apply([graded("a"), graded("b", reward=0.0)], {0: 2}, 1000)
        first = corpus.finish(SelectAll())
        corpus.apply([graded("a", revision=2, feedback=[said])], {0: 3}, 1000)
        second = corpus.finish(SelectAll())
        corpus.apply([graded("a", revision=3, feedback=[said])], {0: 4}, 1000)
        assert corpus.finish(SelectAll()) is None
    assert first is not None
    assert second is not None
    assert (second.added, second.updated, second.removed) == (0, 1, 0)
    assert second.content_hash == first.content_hash
    one, two = Corpus.open(f"{path}@v1"), Corpus.open(f"{path}@v2")
    assert [list(row.feedback) for row in one.rows()] == [[], []]
    assert [list(row.feedback) for row in two.rows()] == [[said], []]
    assert [(change.interaction_id, change.changed) for change in one.diff(two).updated] == [("a", ["feedback"])]
    two.verify()


def test_what_was_said_of_a_row_comes_back_with_it(tmp_path: Path) -> None:
    with CorpusWriter.open(tmp_path / "corpus", workspace="w", policy=Policy()) as corpus:
        corpus.apply([graded("a", feedback=[PREFERRED]), graded("b", reward=0.0)], {0: 2}, 1000)
        corpus.finish(SelectAll())
    first, second = Corpus.open(tmp_path / "corpus").rows("train")
    assert list(first.feedback) == [PREFERRED]
    assert list(second.feedback) == []
