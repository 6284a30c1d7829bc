"""The guard's promises: false alarms at most alpha however often one looks, and a fold that restarts anywhere."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treadle_schemas import Grade, Progress
from treadle_trainer.guard import BETS, EProcess, GuardState
from treadle_trainer.policy import GuardPolicy

POLICY = GuardPolicy(age_s=5.0, min_baseline=5, baseline_rows=20, alpha=0.05)


def _progress(row: int, append_ms: int, value: float | None, release: str) -> Progress:
    state = ("pending", None) if value is None else ("observed", value)
    grade = Grade(metrics={"reward": state}, reward=None, completeness=1, settled=False, grading_version=1)  # type: ignore[dict-item]
    return Progress(
        episode_id=f"e{row}",
        interaction_id=f"i{row}",
        task_id=None,
        agent="a",
        slot="main",
        release=release,
        grade=grade,
        split="train",
        revision=1,
        append_ms=append_ms,
        ended_at="2026-01-01T00:00:00Z",
    )


_RECORD = st.tuples(
    st.integers(0, 2),  # partition
    st.integers(0, 3_000),  # time since the record before
    st.one_of(
        st.none(),
        st.tuples(
            st.integers(0, 20),
            st.sampled_from([None, 0.0, 1.0]),
            st.sampled_from(["w/main/r0", "w/main/r1", "w/main/r2"]),
        ),
    ),
)


def _log(
    records: list[tuple[int, int, tuple[int, float | None, str] | None]],
) -> list[tuple[int, int, Progress | None]]:
    clock, appended, out = 0, dict[tuple[int, int], int](), []
    for partition, wait, content in records:
        clock += wait
        progress = None
        if content is not None:
            row, value, release = content
            append_ms = appended.setdefault((partition, row), clock)
            progress = _progress(partition * 100 + row, append_ms, value, release)
        out.append((partition, clock, progress))
    return out


@settings(max_examples=60, deadline=None)
@given(st.lists(_RECORD, max_size=80), st.integers(0, 80))
def test_saving_and_restoring_anywhere_changes_nothing(records: list, cut: int) -> None:  # type: ignore[type-arg]
    log = _log(records)
    straight = GuardState("main", POLICY, None)
    broken = GuardState("main", POLICY, None)
    for one in (straight, broken):
        one.serve("w/main/r1", canary=("w/main/r2", 3, 0), control=("w/main/r0", 0))
    for n, (partition, at, progress) in enumerate(log):
        straight.observe(partition, at, progress)
        if n == cut:
            restored = GuardState("main", POLICY, None)
            restored.restore(broken.save())
            broken = restored
        broken.observe(partition, at, progress)
    assert broken.save() == straight.save()
    assert broken.verdict() == straight.verdict()
    assert broken.report() == straight.report()
    assert broken.judge("w/main/r2", "w/main/r1") == straight.judge("w/main/r2", "w/main/r1")


@settings(max_examples=60, deadline=None)
@given(st.lists(_RECORD, max_size=80))
def test_no_row_enters_twice(records: list) -> None:  # type: ignore[type-arg]
    state = GuardState("main", POLICY, None)
    seen = set()
    for partition, at, progress in _log(records):
        state.observe(partition, at, progress)
        if progress is not None:
            seen.add(progress.interaction_id)
    for partition in range(3):
        state.observe(partition, 10**9, None)
    entered = sum(arm["rows"] for arm in state.live().values())
    assert entered + state.excluded <= len(seen)


@settings(max_examples=100)
@given(st.floats(-0.5, 0.99), st.lists(st.floats(0, 1), max_size=60))
def test_the_capital_is_what_the_formula_says(floor: float, values: list[float]) -> None:
    test, factors = EProcess(floor=floor, alpha=0.01), []
    for x in values:
        test = test.add(x)
        factors.append([1 + b / (1 - floor) * (floor - x) if floor > 0 else 1.0 for b in BETS])
    cash = [math.log(2) / math.log(k + 2) for k in range(len(values) + 1)]
    worth = cash[-1]
    for k in range(len(values)):  # what begins after row k, under each bet
        put_in = cash[k] - cash[k + 1]
        worth += put_in * sum(math.prod(f[b] for f in factors[k:]) for b in range(len(BETS))) / len(BETS)
    assert test.evidence == pytest.approx(worth, rel=1e-6)


def _alarms(live: float, floor: float, rows: int, runs: int) -> tuple[float, float]:
    rng = np.random.default_rng(3)
    after = []
    for _ in range(runs):
        test = EProcess(floor=floor, alpha=0.05)
        for x in (rng.random(rows) < live).astype(float):
            test = test.add(float(x))
            if test.alarmed_after is not None:
                after.append(test.alarmed_after)
                break
    return len(after) / runs, float(np.median(after)) if after else float("inf")


def test_a_champion_at_its_floor_is_rolled_back_in_at_most_alpha_of_cases() -> None:
    # at the very edge of the hypothesis, looked at after each of 300 rows; 300 runs, three standard errors
    assert _alarms(0.55, 0.55, 300, 300)[0] <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_a_collapse_is_found_within_few_rows() -> None:
    share, median = _alarms(0.2, 0.55, 200, 60)
    assert share == 1.0
    assert median <= 20


def test_a_champion_that_falls_after_a_long_good_time_is_found_as_well() -> None:
    test = EProcess(floor=0.55, alpha=0.005)
    for n in range(1000):
        test = test.add(float(n % 4 != 0))
    assert test.alarmed_after is None
    for _ in range(60):
        test = test.add(0.0)
    assert test.alarmed_after is not None
    assert test.alarmed_after < 1050


def test_bursts_of_wins_and_losses_keep_the_bound() -> None:
    # the chance of a win swings, but never below the floor: all that the bound asks for
    rng, alarms = random.Random(5), 0
    for _ in range(200):
        test = EProcess(floor=0.5, alpha=0.05)
        for n in range(200):
            test = test.add(float(rng.random() < (0.9 if n // 20 % 2 else 0.5)))
        alarms += test.alarmed_after is not None
    assert alarms / 200 <= 0.1
