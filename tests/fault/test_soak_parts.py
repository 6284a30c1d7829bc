"""The harness of the real faults can fail: its verdict finds what is planted, and its history has every kind of event."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from treadle.log import Record
from treadle_schemas import codec

sys.path.append(str(Path(__file__).resolve().parent.parent))

from soak.faults import FAULTS
from soak.history import KINDS, POISON, History
from soak.verdict import Seen, Truth, compare

Grade = dict[str, Any]
GOOD: Grade = {"reward": 1.0, "settled": True}


def _record(event_type: str, value: Any, **headers: str) -> Record:
    sent: list[tuple[str, bytes | str | None]] = [
        ("ce_type", event_type.encode()),
        *((k, v.encode()) for k, v in headers.items()),
    ]
    return Record(
        topic="t", partition=0, offset=0, timestamp_ms=0, key=b"e", value=json.dumps(value).encode(), headers=sent
    )


def _graded(revision: int, grade: Grade) -> Record:
    return _record(codec.GRADED, {"grade": grade, "provenance": {}}, row_id="r", revision=str(revision))


def _progress(grade: Grade) -> Record:
    return _record(codec.PROGRESS, {"grade": grade}, row_id="r")


def _dead(offset: int) -> Record:
    return _record(codec.DEAD_LETTER, {}, reason="conflict", topic="t", partition="0", offset=str(offset))


def _all_well(seen: Seen) -> None:
    seen.take("graded", _graded(1, {"reward": 0.5, "settled": True}))
    seen.take("graded", _graded(2, GOOD))
    seen.take("progress", _progress(GOOD))
    seen.take("dead-letter", _dead(5))


def _lose_the_row(seen: Seen) -> None:
    del seen.rows["r"]


def _lose_the_dead_letter(seen: Seen) -> None:
    seen.dead.clear()


def _grade_otherwise(seen: Seen) -> None:
    seen.take("graded", _graded(3, {"reward": 0.0, "settled": True}))
    seen.take("progress", _progress({"reward": 0.0, "settled": True}))


def _repeat_the_revision(seen: Seen) -> None:
    seen.take("graded", _graded(2, GOOD))


def _repeat_the_dead_letter(seen: Seen) -> None:
    seen.take("dead-letter", _dead(5))


def _never_settle(seen: Seen) -> None:
    seen.take("progress", _progress(GOOD | {"settled": False}))


TRUTH = Truth(rows={"r": {"grade": GOOD}}, captured=1, dead={("conflict", "{}")})


def test_a_history_without_fault_is_found_well() -> None:
    seen = Seen()
    _all_well(seen)
    assert not compare(TRUTH, seen)


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        (_lose_the_row, "lost"),
        (_lose_the_dead_letter, "lost"),
        (_grade_otherwise, "wrong"),
        (_repeat_the_revision, "duplicate"),
        (_repeat_the_dead_letter, "duplicate"),
        (_never_settle, "unsettled"),
    ],
)
def test_what_is_planted_is_found(planted: Callable[[Seen], None], found: str) -> None:
    seen = Seen()
    _all_well(seen)
    planted(seen)
    assert getattr(compare(TRUTH, seen), found)


def test_a_history_has_every_kind_of_event_and_repeats_from_its_seed() -> None:
    one, other = History(3), History(3)
    made = [one.next() for _ in range(1_500)]
    assert made == [other.next() for _ in range(1_500)]
    assert one.counts.keys() == KINDS.keys()
    assert KINDS.keys() >= POISON
    episodes = {e.data["episode_id"] for entries in made for e in entries if e.event_type == codec.EPISODE_END}
    closed = {e.key for e in one.last() if e.event_type == codec.EPISODE_END}
    assert closed >= episodes, "so that every row can settle"


def test_a_worker_can_be_stopped_after_each_step_with_and_without_events() -> None:
    from treadle_streams.worker._faults import STEPS

    assert {f"stopped after {step}{more}" for step in STEPS for more in ("", ", timers only")} <= FAULTS.keys()
