"""The training policy of a slot: written, read, changed, and refused where it makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest
from treadle_schemas import SettingError
from treadle_trainer.policy import GuardPolicy, ScorecardPolicy, TrainingPolicy, policy_path


def test_a_saved_policy_comes_back(tmp_path: Path) -> None:
    policy = TrainingPolicy(steps=40, environment="a.b:C", guard=GuardPolicy(age_s=3.0))
    policy.save(tmp_path, "shop", "planner")
    assert TrainingPolicy.load(tmp_path, "shop", "planner") == policy
    assert TrainingPolicy.load(tmp_path, "shop", "main") is None


def test_dotted_names_change_a_copy() -> None:
    policy = TrainingPolicy()
    changed = policy.changed({"gate.alpha": "0.01", "environment": "a.b:C", "newest_rows": "null", "steps": 7})
    assert (changed.gate.alpha, changed.environment, changed.newest_rows, changed.steps) == (0.01, "a.b:C", None, 7)
    assert policy == TrainingPolicy()
    assert policy.changed({"guard": "null"}).changed({"guard.age_s": "5"}).guard == GuardPolicy(age_s=5.0)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("steps", "0", "steps=0: expected at least 1"),
        ("gate.alpha", "0.7", "gate.alpha=0.7: expected between 0 and 0.5"),
        ("stps", "3", "stps"),
        ("gate.nothing.more", "3", "gate.nothing.more: there is no such setting"),
        ("guard.min_baseline", "1000", "at most baseline_rows"),
        ("lr", "fast", "lr"),
        ("scorecard.rows", "0", "scorecard.rows=0: expected at least 1"),
        ("scorecard.evaluators", '["kl=a:b"]', "'kl' is the name of another metric"),
        ("scorecard.evaluators", '["polite"]', "expected NAME="),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        TrainingPolicy().changed({name: value})


def test_a_broken_file_names_itself(tmp_path: Path) -> None:
    path = policy_path(tmp_path, "shop", "main")
    path.parent.mkdir(parents=True)
    path.write_text('{"steps": "many"}')
    with pytest.raises(SettingError, match=r"policy\.json.*steps"):
        TrainingPolicy.load(tmp_path, "shop", "main")
    path.write_text("{")
    with pytest.raises(SettingError, match=r"policy\.json: not JSON"):
        TrainingPolicy.load(tmp_path, "shop", "main")


def test_trigger_and_guard_do_not_make_another_job() -> None:
    policy = TrainingPolicy()
    assert policy.changed({"min_new_rows": "50", "guard.age_s": "9", "corpus": "/x"}).fingerprint == policy.fingerprint
    assert policy.changed({"seed": "2"}).fingerprint != policy.fingerprint


def test_a_scorecard_makes_another_job_only_where_the_gate_names_metrics() -> None:
    policy = TrainingPolicy()
    assert policy.changed({"scorecard": "null"}).fingerprint == policy.fingerprint
    assert policy.changed({"scorecard.rows": "9"}).fingerprint == policy.fingerprint
    guarded = policy.changed({"gate.guards.format": {}})
    assert guarded.changed({"scorecard.rows": "9"}).fingerprint != guarded.fingerprint
    assert policy.changed({"scorecard": "null"}).changed({"scorecard.rows": "9"}).scorecard == ScorecardPolicy(rows=9)


@pytest.mark.parametrize(
    ("mixture", "said"),
    [
        ('[{"weight": 0.1}]', r"mixture\[0\]: expected either a corpus or an anchor"),
        ('[{"weight": 0.1, "corpus": "/c", "anchor": "/a"}]', r"mixture\[0\]: expected either a corpus or an anchor"),
        ('[{"weight": 0, "corpus": "/c"}]', r"mixture\[0\]\.weight=0\.0: expected a share between 0 and 1"),
        ('[{"weight": 0.5, "corpus": "/c"}, {"weight": 0.5, "corpus": "/d"}]', "add up to 1: expected less than 1"),
        ('[{"weight": 0.1, "corpus": "/c"}, {"weight": 0.2, "corpus": "/c"}]', r"mixture\[1\]: '/c' is named twice"),
        ('[{"weight": 0.1, "anchor": "a.jsonl"}]', r"anchor='a\.jsonl': expected an absolute path"),
        ('[{"weight": 0.1, "corpus": " "}]', r"mixture\[0\]: expected a path"),
        ('[{"wait": 0.1, "corpus": "/c"}]', "wait"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused_by_name(mixture: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        TrainingPolicy().changed({"mixture": mixture})


def test_a_mixture_is_part_of_the_job_and_none_is_not(tmp_path: Path) -> None:
    plain = TrainingPolicy()
    mixed = plain.changed({"mixture": '[{"weight": 0.1, "corpus": "/c@v3"}, {"weight": 0.2, "anchor": "/a.jsonl"}]'})
    assert plain.changed({"mixture": "[]"}).fingerprint == plain.fingerprint
    assert mixed.fingerprint != plain.fingerprint
    mixed.save(tmp_path, "shop", "main")
    assert TrainingPolicy.load(tmp_path, "shop", "main") == mixed
