"""The demo's numbers: folded from records, judged without mercy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from treadle.log import Record
from treadle_demo.clock import EventClock
from treadle_demo.ledger import Ledger
from treadle_demo.report import Drill, GuardDrill, Heldout, Report, Turn, draw_chart, problems, turn_report
from treadle_schemas import Grade, GradedRow, Provenance, ReleaseEvent, SnapshotRecord
from treadle_schemas.codec import GRADED, INTERACTION, RELEASE, SNAPSHOT, encode, make_headers, to_json
from treadle_trainer.cycle import Turn as Timed

CORPUS = "/corpora/shop/main"


def record(kind: str, value: Any, at_ms: int, offset: int = 0) -> Record:
    headers: list[tuple[str, bytes | str | None]] = [(k, v) for k, v in make_headers(kind, "shop", source="test")]
    return Record("t", 0, offset, at_ms, None, encode(value), headers)


def interaction(ident: str, turn: int, release: str, at_ms: int) -> Record:
    return record(INTERACTION, {"interaction_id": ident, "release": release, "tags": {"turn": turn}}, at_ms)


def graded(ident: str, revision: int, reward: float | None, at_ms: int, *, settled: bool = True) -> Record:
    row = GradedRow(
        episode_id=ident,
        interaction_id=ident,
        interaction={},
        grade=Grade(metrics={}, reward=reward, completeness=1.0, settled=settled, grading_version=1),
        split="train",
        split_group=ident,
        provenance=Provenance(
            revision=revision, graded_at="", append_ms=0, interaction_offset=0, partition=0, outcome_ids=[]
        ),
    )
    return record(GRADED, to_json(row), at_ms)


def snapshot(version: int, at_ms: int) -> Record:
    made = SnapshotRecord(
        corpus=CORPUS,
        version=version,
        content_hash="",
        rows=2,
        new_rows=2,
        added=2,
        updated=0,
        removed=0,
        created_at="",
    )
    return record(SNAPSHOT, to_json(made), at_ms)


def released(event: Any, version: int, at_ms: int) -> Record:
    verdict = {"champion": 0.2, "candidate": 0.5, "low": 0.2, "high": 0.4}
    evidence = {
        "corpus": CORPUS,
        "version": version,
        "gate": verdict,
        "seconds": {"train": 3.0, "evaluate": 1.0},
    }
    made = ReleaseEvent(
        event=event,
        slot="main",
        release="shop/main/r1",
        champion="shop/main/r1",
        actor="trainer",
        reason="better",
        at="",
        sequence=1,
        evidence=evidence,
    )
    return record(RELEASE, to_json(made), at_ms)


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger()
    ledger.take([interaction("a", 1, "shop/main/r0", 1_000), interaction("b", 1, "shop/main/r0", 2_000)])
    ledger.take([graded("a", 1, 1.0, 4_000), graded("b", 1, 0.0, 5_000), snapshot(1, 6_000)])
    ledger.take([released("promoted", 1, 11_000)])
    return ledger


def test_a_turn_has_the_librarys_stages_and_what_it_took_to_play(ledger: Ledger) -> None:
    timed = Timed(
        corpus=CORPUS,
        version=1,
        slot="main",
        rows=2,
        new_rows=2,
        release="shop/main/r1",
        decision="promoted",
        reason="better",
        began_ms=2_000,
        snapshot_ms=6_000,
        decided_ms=11_000,
        served_ms=12_500,
        seconds={"settle": 3.0, "snapshot": 1.0, "train": 5.0, "serve": 1.5},
    )
    turn = turn_report(ledger, 1, ledger.snapshots[0], ledger.releases[0], timed)
    assert turn.seconds == {
        "capture": 1.0,
        "settle": 3.0,
        "snapshot": 1.0,
        "train": 5.0,
        "serve": 1.5,
        "cycle": 10.5,
    }
    assert turn.live_success == 0.5
    assert turn.heldout == Heldout(champion=0.2, candidate=0.5, low=0.2, high=0.4)


def test_a_turn_whose_release_served_nothing_has_no_cycle(ledger: Ledger) -> None:
    assert "cycle" not in turn_report(ledger, 1, ledger.snapshots[0], ledger.releases[0]).seconds


def test_the_last_revision_counts_whatever_order_topics_are_read_in() -> None:
    records = [
        graded("a", 2, 0.0, 9_000),
        graded("a", 1, 1.0, 4_000),
        interaction("a", 1, "shop/main/r0", 1_000),
        interaction("a", 1, "shop/main/r0", 900),
    ]
    for order in (records, records[::-1]):
        ledger = Ledger()
        ledger.take(order)
        assert ledger.live_success(1) == 0.0
        assert ledger.rows["a"].append_ms == 900


def test_a_row_without_reward_does_not_count_as_a_failure(ledger: Ledger) -> None:
    ledger.take([interaction("c", 1, "shop/main/r0", 2_000), graded("c", 1, None, 5_000)])
    assert ledger.live_success(1) == 0.5


def good_report(ledger: Ledger) -> Report:
    turn = turn_report(ledger, 1, ledger.snapshots[0], ledger.releases[0])
    return Report(
        seed=0,
        workspace="shop",
        environment="e",
        turns=[turn],
        final_live_success=0.5,
        poisoned=Drill(decision="rejected", reason="worse"),
        guard=GuardDrill(rolled_back=True, after_rows=9),
    )


def test_a_wheel_that_turned_has_no_problems(ledger: Ledger) -> None:
    assert problems(good_report(ledger), 1) == []


def broken_turn(turn: Turn, **changes: Any) -> Turn:
    return msgspec.structs.replace(turn, **changes)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("poisoned", None, "broken grader"),
        ("poisoned", Drill(decision="promoted", reason=""), "broken grader"),
        ("guard", None, "guard"),
        ("guard", GuardDrill(rolled_back=False, after_rows=None), "guard"),
        ("turns", [], "0 of 1 turns"),
    ],
)
def test_each_missing_control_is_named(ledger: Ledger, field: str, value: Any, words: str) -> None:
    report = good_report(ledger)
    setattr(report, field, value)
    assert words in "; ".join(problems(report, 1))


def test_a_run_without_any_promotion_or_outcome_is_a_problem(ledger: Ledger) -> None:
    report = good_report(ledger)
    report.turns = [broken_turn(report.turns[0], decision="failed", live_success=None, reason="out of memory")]
    found = "; ".join(problems(report, 1))
    assert "no candidate was promoted" in found
    assert "no outcome reached a row" in found
    assert "out of memory" in found


def test_report_and_chart_are_written(ledger: Ledger, tmp_path: Path) -> None:
    report = good_report(ledger)
    report.write(tmp_path / "new" / "demo.json")
    back = msgspec.json.decode((tmp_path / "new" / "demo.json").read_bytes(), type=Report)
    assert back == report
    assert draw_chart(report, tmp_path / "success.png").read_bytes().startswith(b"\x89PNG")


def test_the_event_clock_begins_in_the_past_and_makes_a_day_a_turn() -> None:
    clock = EventClock()
    assert clock.start_of(2) - clock.start_of(1) == 24 * 3600 * 1_000_000
    assert clock.cut(1) == clock.start_of(2)
    assert replace(clock) == clock
