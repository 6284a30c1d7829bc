"""Turns recounted from records: stages add up, each belongs to the version that waited for it, the bottleneck is named."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from treadle.log import Record
from treadle_schemas import Grade, ReleaseEvent, SnapshotRecord
from treadle_schemas.codec import PROGRESS, RELEASE, SNAPSHOT, encode, make_headers, to_json
from treadle_schemas.errors import SettingError
from treadle_schemas.records import Progress
from treadle_trainer.cycle import STAGES, Prices, bottleneck, costs, turns_of

CORPUS = "/corpora/shop/main"


def record(kind: str, value: Any, at_ms: int) -> Record:
    headers: list[tuple[str, bytes | str | None]] = [(k, v) for k, v in make_headers(kind, "shop", source="test")]
    return Record("t", 0, 0, at_ms, None, encode(to_json(value)), headers)


def snapshot(version: int, last_append_ms: int, at_ms: int) -> Record:
    made = SnapshotRecord(
        corpus=CORPUS,
        version=version,
        content_hash="",
        rows=2 * version,
        new_rows=2,
        added=2,
        updated=0,
        removed=0,
        created_at="",
        last_append_ms=last_append_ms,
    )
    return record(SNAPSHOT, made, at_ms)


def decided(event: Any, version: int, release: str, at_ms: int, *, low: float = 0.3, devices: int = 0) -> Record:
    made = ReleaseEvent(
        event=event,
        slot="main",
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
        },
    )
    return record(RELEASE, made, at_ms)


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
    assert (first.cycle_s, first.overhead_s) == (10.5, 3.5)
    assert sum(first.seconds.values()) == first.cycle_s
    assert list(first.seconds) == list(STAGES)
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


def test_money_needs_prices_and_lift(tmp_path: Path) -> None:
    first, second = turns_of(SNAPSHOTS, [decided("promoted", 1, "r", 11_500, devices=2), RELEASES[1]], ROWS, 10)
    assert (costs(first).gpu_seconds, costs(first).money) == (8.0, None)
    file = tmp_path / "prices.json"
    file.write_text('{"gpu_second": 0.5, "cpu_second": 0.25}')
    prices = Prices.load(file)
    assert (costs(first, prices).money, costs(first, prices).per_point) == (4.0, pytest.approx(0.2))
    assert (costs(second, prices).money, costs(second, prices).per_point) == (1.0, None)
    file.write_text('{"gpu": 1}')
    with pytest.raises(SettingError, match=r"prices\.json.*gpu_second"):
        Prices.load(file)
