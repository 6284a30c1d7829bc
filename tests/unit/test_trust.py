"""Whose labels the gate believes: what a row says of them, how a pin changes, and that only the audit log holds it."""

from __future__ import annotations

from pathlib import Path

import pytest
from treadle_corpus import CorpusRow
from treadle_corpus.testing import corpus_row, graded
from treadle_schemas import SettingError
from treadle_trainer.gate import LabelPin, grader_versions, read_grader
from treadle_trainer.policy import TrainingPolicy
from treadle_trainer.registry import Registry
from treadle_trainer.trust import pinned, trust


def _row(name: str, *outcomes: str, grading: int = 1) -> CorpusRow:
    return corpus_row(graded(name, split="heldout", grading_version=grading, outcome_ids=outcomes))


def test_a_row_says_which_graders_spoke_and_in_which_order() -> None:
    ids = ["01a", "grader/judge/1/ff", "grader/style/b.2/00", "grader/judge/2/ff", "grader/judge/1/fe"]
    assert grader_versions(ids) == [("judge", "1"), ("style", "b.2"), ("judge", "2")]


def test_the_first_pin_is_what_the_newest_grading_version_has() -> None:
    rows = [
        _row("a", "grader/judge/1/a", grading=1),
        _row("b", "grader/judge/2/b", grading=2),
        _row("c", "x", grading=2),
    ]
    assert LabelPin.of(rows) == LabelPin(grading=2, graders={"judge": ["2"]})
    assert LabelPin.of([]) is None


@pytest.mark.parametrize(
    ("outcomes", "grading", "strangers"),
    [
        ((), 1, []),
        (("01a", "grader/judge/1/x"), 1, []),
        (("grader/judge/1/x", "grader/judge/2/x"), 1, ["grader judge@2"]),
        (("grader/other/1/x",), 2, ["grading version 2", "grader other@1"]),
    ],
)
def test_one_label_of_a_stranger_leaves_a_row_out(
    outcomes: tuple[str, ...], grading: int, strangers: list[str]
) -> None:
    assert LabelPin(grading=1, graders={"judge": ["1"]}).strangers(_row("a", *outcomes, grading=grading)) == strangers


def test_a_newer_version_is_trusted_beside_the_older_and_naming_the_older_goes_back() -> None:
    first = LabelPin(grading=1, graders={"judge": ["1"]})
    second = first.trusting(grading=None, graders=[("judge", "2")], dropped=[])
    assert second.graders == {"judge": ["1", "2"]}
    assert second.trusting(grading=3, graders=[("judge", "1")], dropped=[]) == LabelPin(
        grading=3, graders={"judge": ["1"]}
    )
    assert second.trusting(grading=None, graders=[], dropped=["judge"]).graders == {}
    with pytest.raises(SettingError, match="'style' is not trusted now; those that are: judge"):
        second.trusting(grading=None, graders=[], dropped=["style"])


@pytest.mark.parametrize("text", ["judge", "@2", "judge@"])
def test_a_grader_is_named_with_its_version(text: str) -> None:
    assert read_grader("a@b@2") == ("a@b", "2")
    with pytest.raises(SettingError, match="NAME@VERSION"):
        read_grader(text)


def test_the_audit_log_alone_holds_the_pin(tmp_path: Path) -> None:
    registry = Registry(tmp_path, "shop")
    assert pinned(registry) is None
    trust(registry, LabelPin(grading=1), actor="trainer", reason="the first")
    event = trust(registry, LabelPin(grading=2), actor="kim", reason="reward in cents")
    assert pinned(Registry(tmp_path, "shop")) == LabelPin(grading=2)
    assert (event.event, event.actor, event.evidence["before"]) == ("trusted", "kim", {"grading": 1, "graders": {}})
    for setting in ("gate.labels", "gate.grading", "gate.graders"):
        with pytest.raises(SettingError):
            TrainingPolicy().changed({setting: "2"})
