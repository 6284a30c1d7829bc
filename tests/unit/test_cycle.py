"""Turns recounted from records: stages add up, each belongs to the version that waited for it, the bottleneck is named."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from treadle.log import Record
from treadle_schemas import Grade, ReleaseEvent, SnapshotRecord
from treadle_schemas.codec import INTERACTION, OUTCOME, PROGRESS, RELEASE, SNAPSHOT, encode, make_headers, to_json
from treadle_schemas.errors import SettingError
from treadle_schemas.records import Progress
from treadle_trainer.cycle import STAGES, Judged, Prices, Window, bottleneck, costs, turns_of, windows

CORPUS = "/corpora/shop/main"


def record(kind: str, value: Any, at_ms: int) -> Record:
    headers: list[tuple[str, bytes | str | None]] = [(k, v) for k, v in make_headers(kind, "shop", source="test")]
    return Record("t", 0, 0, at_ms, None, encode(to_json(value)), headers)


def snapshot(version: int, last_append_ms: int, at_ms: int, corpus: str = CORPUS) -> Record:
    made = SnapshotRecord(
        corpus=corpus,
        version=version,
        content_hash="",
        rows=2 * version,
        new_rows=2,
        added=2,
        updated=0,
        removed=0,
        created_at="",
        last_append_ms=last_append_ms,
        written_bytes=1_000 * version,
    )
    return record(SNAPSHOT, made, at_ms)


def decided(
    event: Any, version: int, release: str, at_ms: int, *, low: float = 0.3, devices: int = 0, slot: str = "main"
) -> Record:
    made = ReleaseEvent(
        event=event,
        slot=slot,
        release=release,
        actor="trainer",
        reason="because",
        at="",
        sequence=version,
        evidence={
            "corpus": CORPUS,
            "version": version,
            "gate": {"champion": low, "candidate": 0.5},
            "training": {"devices": devices},
            "seconds": {"read": 0.5, "train": 3.0, "evaluate": 1.0, "gate": 0.25},
            "bytes": {"columns": 400, "release": 300},
            "judge": {"calls": 3, "prompt_tokens": 1_000, "completion_tokens": 100, "seconds": 2.5},
        },
    )
    return record(RELEASE, made, at_ms)


def later(event: Any, release: str, at_ms: int, previous: str | None = None) -> Record:
    """What somebody else than the trainer decides of a release afterwards."""
    made = ReleaseEvent(
        event=event,
        slot="main",
        release=release,
        previous=previous,
        actor="user",
        reason="",
        at="",
        sequence=9,
    )
    return record(RELEASE, made, at_ms)


def given(kind: str, at_ms: int, **fields: Any) -> Record:
    """An input event of 200 bytes, key included."""
    headers: list[tuple[str, bytes | str | None]] = [(k, v) for k, v in make_headers(kind, "shop", source="test")]
    value = encode(fields)
    return Record("t", 0, 0, at_ms, b"k", value + b" " * (199 - len(value)), headers)


def graded(release: str | None, append_ms: int, at_ms: int, *, settled: bool = True) -> Record:
    row = Progress(
        episode_id="e",
        interaction_id="i",
        task_id=None,
        agent="a",
        slot="main",
        release=release,
        grade=Grade(metrics={}, reward=1.0, completeness=1.0, settled=settled, grading_version=1),
        split="train",
        revision=1,
        append_ms=append_ms,
        ended_at="",
    )
    return record(PROGRESS, row, at_ms)


SNAPSHOTS = [snapshot(1, 2_000, 6_000), snapshot(2, 20_000, 25_000)]
RELEASES = [decided("promoted", 1, "shop/main/r1", 11_500), decided("rejected", 2, "shop/main/r2", 31_000, low=0.5)]
ROWS = [
    graded("shop/main/r0", 1_000, 4_000),
    graded("shop/main/r0", 2_000, 5_000),
    graded("shop/main/r1", 13_000, 13_100, settled=False),
    graded("shop/main/r1", 12_500, 12_600, settled=False),
    graded("shop/main/r1", 20_000, 24_000),
    # settles after the version that it is too young for, and long after all versions
    graded("shop/main/r1", 21_000, 24_500),
    graded("shop/main/r1", 13_000, 90_000),
]


def test_a_turn_runs_from_append_to_append_and_its_stages_add_up() -> None:
    first, second = turns_of(SNAPSHOTS, RELEASES, ROWS, 10)
    assert first.seconds == {
        "settle": 3.0,
        "snapshot": 1.0,
        "queue": 0.75,
        "read": 0.5,
        "train": 3.0,
        "register": 0.0,
        "evaluate": 1.0,
        "gate": 0.25,
        "promote": 0.0,
        "serve": 1.0,
    }
    assert first.snapshot_ms == 6_000
    assert (first.cycle_s, first.overhead_s) == (10.5, 3.5)
    assert sum(first.seconds.values()) == first.cycle_s
    assert [stage for stage in STAGES if stage in first.seconds] == list(first.seconds)
    assert (second.decision, second.cycle_s, second.seconds["settle"], "serve" in second.seconds) == (
        "rejected",
        None,
        4.0,
        False,
    )


def test_partitions_may_interleave_in_any_way() -> None:
    expected = turns_of(SNAPSHOTS, RELEASES, ROWS, 10)
    rng = random.Random(3)
    for _ in range(20):
        assert turns_of(SNAPSHOTS, RELEASES, rng.sample(ROWS, len(ROWS)), 10) == expected


def test_the_bottleneck_is_that_of_served_turns() -> None:
    turns = turns_of(SNAPSHOTS, RELEASES, ROWS, 10)
    stage, share = bottleneck(turns) or ("", 0.0)
    assert (stage, round(share, 3)) == ("settle", round(3.0 / 10.5, 3))
    assert bottleneck(turns[1:]) is None
    assert [turn.version for turn in turns_of(SNAPSHOTS, RELEASES, ROWS, 1)] == [2]


def test_a_person_who_approves_is_a_stage_and_no_overhead() -> None:
    releases = [
        decided("awaiting_approval", 1, "shop/main/r1", 11_500),
        later("approved", "shop/main/r1", 60_000),
        later("promoted", "shop/main/r1", 60_000),
        later("rolled_back", "shop/main/r0", 90_000, previous="shop/main/r1"),
    ]
    rows = [*ROWS[:2], graded("shop/main/r1", 61_000, 61_100, settled=False)]
    [turn] = turns_of(SNAPSHOTS[:1], releases, rows, 10)
    assert (turn.seconds["approve"], turn.seconds["serve"], turn.cycle_s, turn.overhead_s) == (48.5, 1.0, 59.0, 3.5)
    assert sum(turn.seconds.values()) == turn.cycle_s
    assert (turn.decision, turn.fate) == ("awaiting_approval", ["promoted", "rolled_back"])


def test_a_refused_release_that_is_forced_live_ends_no_turn() -> None:
    releases = [RELEASES[1], later("promoted", "shop/main/r2", 32_000)]
    [turn] = turns_of(SNAPSHOTS, releases, [*ROWS, graded("shop/main/r2", 33_000, 33_100, settled=False)], 10)
    assert (turn.decision, turn.fate, turn.cycle_s) == ("rejected", ["promoted"], None)


def test_a_canary_serves_from_its_admission_on() -> None:
    releases = [decided("admitted", 1, "shop/main/r1", 11_500), later("withdrawn", "shop/main/r1", 40_000)]
    [turn] = turns_of(SNAPSHOTS[:1], releases, ROWS, 10)
    assert (turn.decision, turn.fate, turn.seconds["serve"]) == ("admitted", ["withdrawn"], 1.0)


def test_who_serves_a_moment_before_the_record_takes_no_negative_time() -> None:
    rows = [*ROWS[:2], graded("shop/main/r1", 11_400, 11_600, settled=False)]
    [turn] = turns_of(SNAPSHOTS[:1], RELEASES[:1], rows, 10)
    assert (turn.seconds["serve"], turn.cycle_s) == (0.0, 9.4)
    assert sum(turn.seconds.values()) == pytest.approx(9.4)


def test_a_turn_that_failed_is_one_with_what_it_took_until_then() -> None:
    made = ReleaseEvent(
        event="failed",
        slot="main",
        release=None,
        actor="trainer",
        reason="out of memory",
        at="",
        sequence=1,
        evidence={"corpus": CORPUS, "version": 1, "seconds": {"train": 2.0}},
    )
    [turn] = turns_of(SNAPSHOTS, [record(RELEASE, made, 9_000)], ROWS, 10)
    assert (turn.decision, turn.reason, turn.release, turn.cycle_s) == ("failed", "out of memory", None, None)
    assert (turn.seconds["train"], turn.seconds["queue"], turn.lift, turn.devices) == (2.0, 1.0, None, 0)


def test_slots_are_told_apart() -> None:
    releases = [*RELEASES, decided("promoted", 1, "shop/coder/r1", 12_000, slot="coder")]
    assert [turn.slot for turn in turns_of(SNAPSHOTS, releases, ROWS, 10)] == ["main", "coder", "main"]
    [turn] = turns_of(SNAPSHOTS, releases, ROWS, 10, "coder")
    assert (turn.release, turn.cycle_s) == ("shop/coder/r1", None)


def test_what_came_in_belongs_to_the_version_that_took_it() -> None:
    used = {"calls": 2, "prompt_tokens": 10, "completion_tokens": 4, "seconds": 0.5, "usd": 0.25}
    records = [
        given(INTERACTION, 1_000, interaction_id="a"),
        given(OUTCOME, 4_000, name="polite", value=True, usage=used),
        given(OUTCOME, 5_000, name="polite", value=True, usage={"prompt_tokens": "many"}),
        given(OUTCOME, 5_500, name="reward", value=1),
        given(INTERACTION, 7_000, interaction_id="b"),
    ]
    first, second = windows(records, [(0, 6_000), (6_000, 25_000)])
    assert (first.interactions, first.outcomes, first.bytes) == (1, 3, 800)
    assert first.judged == Judged(calls=3, prompt_tokens=10, completion_tokens=4, seconds=0.5, usd=0.25)
    assert (second.interactions, second.outcomes, second.bytes, second.judged) == (1, 0, 200, Judged())


def test_judges_and_bytes_have_their_price(tmp_path: Path) -> None:
    [turn] = turns_of(SNAPSHOTS[:1], RELEASES[:1], ROWS, 10)
    assert turn.judged.calls == 3
    assert (turn.bytes.captured, turn.bytes.written, turn.bytes.stored) == (None, 1_700, 1_300)
    turn.window = Window(bytes=10_000, judged=Judged(calls=1, usd=0.5))
    assert (turn.judged.calls, turn.bytes.stored) == (4, 11_300)
    assert costs(turn, Prices()).parts["judges"] == 0.5
    assert costs(turn, Prices(currency="EUR")).parts["judges"] == 0.0
    prices = Prices(judge_call=0.1, judge_1k_prompt=1.0, judge_1k_completion=2.0, gb_stored=1e6, gb_written=1e5)
    found = costs(turn, prices)
    assert found.parts == {
        "compute": 0.0,
        "judges": pytest.approx(0.4 + 1.0 + 0.2),
        "storage": pytest.approx(11.3 + 1.17),
    }
    assert found.money == pytest.approx(1.6 + 12.47)
    assert found.per_point == pytest.approx(found.money / 20)
    file = tmp_path / "prices.json"
    file.write_text('{"gb_stored": -1}')
    with pytest.raises(SettingError, match=r"prices\.json.*gb_stored=-1.*at least 0"):
        Prices.load(file)


def test_money_needs_prices_and_lift(tmp_path: Path) -> None:
    first, second = turns_of(SNAPSHOTS, [decided("promoted", 1, "r", 11_500, devices=2), RELEASES[1]], ROWS, 10)
    # two while it read and trained, one while it evaluated
    assert (costs(first).gpu_seconds, costs(first).money, costs(first).parts) == (8.0, None, {})
    file = tmp_path / "prices.json"
    file.write_text('{"gpu_second": 0.5, "cpu_second": 0.25}')
    prices = Prices.load(file)
    assert (costs(first, prices).money, costs(first, prices).per_point) == (4.0, pytest.approx(0.2))
    assert (costs(second, prices).money, costs(second, prices).per_point) == (1.125, None)
    file.write_text('{"gpu": 1}')
    with pytest.raises(SettingError, match=r"prices\.json.*gpu_second"):
        Prices.load(file)
