"""What MLflow should say of a release: a pure function of manifest, audit log, aliases and scorecards."""

from __future__ import annotations

import math
from typing import Any

import pytest
from treadle_schemas import ReleaseEvent, ReleaseManifest, SettingError
from treadle_trainer.mirror import Facts, aliases_of, checked_uri, facts_of, flat
from treadle_trainer.registry import Aliases
from treadle_trainer.scorecard import Metric, Scorecard, Slice

MANIFEST = ReleaseManifest(
    release="shop/main/r3",
    parent="shop/main/r2",
    base="/models/base",
    corpus="tickets",
    corpus_version=7,
    corpus_hash="c0ffee",
    method="sft",
    config={"lr": 2e-3, "steps": 80, "label": "", "lora_rank": None, "training": {"last_loss": 0.5, "trl": "1.13.0"}},
    evaluation={"accuracy": 0.75},
    sampling={"temperature": 0.2},
    code_version="0.1.0",
    created_at="2026-11-30T10:00:00.000000Z",
)


def event(kind: Any, sequence: int, **fields: Any) -> ReleaseEvent:
    given = {"release": "shop/main/r3", "actor": "trainer", "reason": f"why {sequence}", **fields}
    return ReleaseEvent(
        event=kind, slot="main", sequence=sequence, at=f"2026-11-30T10:00:{sequence:02}.000000Z", **given
    )


def facts(*events: ReleaseEvent, aliases: Aliases | None = None, **more: Any) -> Facts:
    return facts_of(MANIFEST, "hash", events, aliases or Aliases(), **more)


def test_what_was_chosen_is_a_parameter_and_what_was_measured_a_metric() -> None:
    gate = {"decision": "promote", "effect": 0.1, "low": None, "checks": [{"name": "tier=gold", "low": -0.2}]}
    found = facts(event("registered", 4), event("promoted", 5, evidence={"gate": gate, "seconds": {"train": 12.5}}))
    assert found.params == {
        "method": "sft",
        "base": "/models/base",
        "kind": "model",
        "lr": "0.002",
        "steps": "80",
        "label": "",
        "sampling.temperature": "0.2",
        "training.trl": "1.13.0",
    }
    assert {(p.name, p.value, p.step) for p in found.points} == {
        ("training.last_loss", 0.5, 0),
        ("evaluation.accuracy", 0.75, 0),
        ("gate.effect", 0.1, 5),
        ("gate.checks.tier_gold.low", -0.2, 5),
        ("seconds.train", 12.5, 5),
    }


def test_the_tags_tell_lineage_and_the_last_decision() -> None:
    events = [event("registered", 4), event("admitted", 5), event("withdrawn", 6, actor="guard"), event("pinned", 7)]
    found = facts(*events, aliases=Aliases(quarantined={"3": "worse"}, pins={"3": "in the paper"}))
    assert found.tags == {
        "treadle.release": "shop/main/r3",
        "treadle.manifest": "hash",
        "treadle.corpus": "tickets@v7",
        "treadle.corpus_hash": "c0ffee",
        "treadle.parent": "shop/main/r2",
        "treadle.code_version": "0.1.0",
        "treadle.registered": "why 4",
        "treadle.decision": "withdrawn",
        "treadle.reason": "why 6",
        "treadle.actor": "guard",
        "treadle.decided_at": "2026-11-30T10:00:06.000000Z",
        "treadle.quarantined": "worse",
        "treadle.pinned": "in the paper",
        "treadle.files": "kept",
    }
    assert found.name == "main/r3"


def test_a_pin_that_ended_is_taken_back() -> None:
    assert facts(event("registered", 4)).tags["treadle.pinned"] == ""


def test_each_scorecard_is_a_step_of_its_metrics() -> None:
    def card(value: float) -> Scorecard:
        metric = Metric(name="exact", n=10, groups=5, candidate=value, champion=0.5, effect=value - 0.5)
        return Scorecard(
            candidate="shop/main/r3",
            champion="shop/main/r2",
            corpus="tickets",
            version=7,
            content_hash="c0ffee",
            rows=10,
            pairs=0,
            slices=[Slice(name="tier=gold", rows=10, metrics=[metric])],
            created_at="2026-11-30T11:00:00.000000Z",
        )

    points = [p for p in facts(cards=[card(0.5), card(0.75)]).points if p.name.startswith("scorecard")]
    assert [(p.name, p.value, p.step) for p in points if p.name.endswith("candidate")] == [
        ("scorecard.tier_gold.exact.candidate", 0.5, 0),
        ("scorecard.tier_gold.exact.candidate", 0.75, 1),
    ]


def test_the_digest_changes_with_what_is_said_and_with_nothing_else() -> None:
    first = facts(event("registered", 4))
    assert first.digest == facts(event("registered", 4)).digest
    assert first.digest != facts(event("registered", 4), event("rejected", 5)).digest
    assert first.digest != facts(event("registered", 4), collected=True).digest


@pytest.mark.parametrize(
    ("value", "leaves"),
    [
        ({"a": {"b": [1, 2.5]}, "c": None, "d": {}, "e": []}, [("x.a.b.0", 1.0), ("x.a.b.1", 2.5)]),
        ({"on": True, "why": "so"}, [("x.on", "True"), ("x.why", "so")]),
        ({"rows": [{"name": "one", "n": 1}]}, [("x.rows.one.name", "one"), ("x.rows.one.n", 1.0)]),
        ({"a/b=c": 1, "ä": 2}, [("x.a_b_c", 1.0), ("x.ä", 2.0)]),
        ({"nan": math.nan, "big": 10**400}, [("x.nan", "nan"), ("x.big", str(10**400))]),
    ],
)
def test_nested_values_become_leaves_with_names_that_mlflow_takes(value: Any, leaves: list[Any]) -> None:
    assert list(flat("x", value)) == leaves


def test_aliases_follow_the_roles() -> None:
    roles = Aliases(champion=3, history=(0, 1), quarantined={"1": "bad"}, canary=4, canary_share=0.1)
    assert aliases_of(roles) == {"champion": 3, "canary": 4, "previous": 0, "control": None}


@pytest.mark.parametrize(
    "uri", ["sqlite:////tmp/x.db", "postgresql+psycopg2://u:p@h/db", "http://h:5000", "databricks"]
)
def test_stores_with_aliases_are_taken(uri: str) -> None:
    assert checked_uri(uri) == uri


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "/tmp/mlruns", "mlruns", "ftp://u:secret@h", ""])
def test_stores_without_aliases_are_refused_and_no_password_shown(uri: str) -> None:
    with pytest.raises(SettingError, match="not a store that MLflow keeps aliases in") as err:
        checked_uri(uri)
    assert "secret" not in str(err.value)
