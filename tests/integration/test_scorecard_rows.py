"""Which rows of a real version a scorecard is measured on, and by which of them the gate decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from treadle_corpus import Corpus, CorpusRow
from treadle_corpus.testing import graded
from treadle_trainer.scorecard import EvalRow, select_rows

QUESTION = {"role": "user", "content": "please"}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        from model_world import write_corpus  # type: ignore[import-not-found]

    rows = [
        graded(f"r{n}", reward=float(n % 2), task_id=f"t{n}", split="heldout", tags={"tier": "gold"} if n > 1 else {})
        for n in range(4)
    ]
    # an episode whose first step failed and whose second succeeded
    first, second = [QUESTION, answer("hm")], [QUESTION, answer("hm"), QUESTION, answer("done")]
    for n, (messages, reward) in enumerate(((first, 0.0), (second, 1.0))):
        rows.append(
            graded(
                f"s{n}",
                episode_id="e",
                reward=reward,
                task_id="long",
                split="heldout",
                messages=messages,
                response=[len(messages) - 1],
                step=n,
                model="m",
            )
        )
    rows.append(graded("learnt", task_id="other", split="train"))
    return Corpus.open(write_corpus(tmp_path_factory.mktemp("corpus") / "c", rows))


def uses(rows: list[EvalRow]) -> dict[tuple[str, ...], tuple[bool, bool]]:
    """Answers that are measured -> whether the row is on the card, whether it decides."""
    return {tuple(row.messages[n]["content"] for n in row.response): (row.on_card, row.decides) for row in rows}


def test_a_row_that_counts_on_the_card_and_decides_is_measured_once(corpus: Corpus) -> None:
    measured = select_rows(corpus, 10, deciding=10, labels=["tier", "task", "model"])
    assert uses(measured.rows) == {
        ("done r0",): (True, False),
        ("done r1",): (True, True),
        ("done r2",): (True, False),
        ("done r3",): (True, True),
        # on the card with all its steps, decided by the one that succeeded
        ("hm", "done"): (True, False),
        ("done",): (False, True),
    }
    labels = {row.messages[row.response[-1]]["content"]: row.labels for row in measured.rows if row.decides}
    assert labels == {
        "done r1": {"tier": "", "task": "t1", "model": ""},
        "done r3": {"tier": "gold", "task": "t3", "model": ""},
        "done": {"tier": "", "task": "long", "model": "m"},
    }
    assert len(select_rows(corpus, 0, deciding=2).rows) == 2
    assert not any(row.decides for row in select_rows(corpus, 10).rows)


def test_a_label_that_is_not_believed_decides_nothing(corpus: Corpus) -> None:
    def doubted(row: CorpusRow) -> bool:
        return row.interaction_id != "r3"

    measured = select_rows(corpus, 10, deciding=10, believed=doubted)
    assert uses(measured.rows)["done r3",] == (True, False)
    rewards = {row.messages[-1]["content"]: row.reward for row in measured.rows if row.on_card}
    assert (rewards["done r1"], rewards["done r3"]) == (1.0, None)
