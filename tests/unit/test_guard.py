"""The guard's fold: each row once, at one age, the same for both arms."""

from __future__ import annotations

from typing import Any

import pytest
from treadle_schemas import Grade, Metric, Progress
from treadle_trainer.guard import EProcess, GuardState, live_value
from treadle_trainer.policy import GuardPolicy

AGE_MS = 10_000
POLICY = GuardPolicy(metric="reward", age_s=10.0, tolerance=0.05, alpha=0.01, min_baseline=20, baseline_rows=50)
OLD, NEW = "shop/main/r1", "shop/main/r2"


def _grade(value: float | bool | None, state: str | None = None, name: str = "reward") -> Grade:
    state = state or ("pending" if value is None else "observed")
    return Grade(
        metrics={name: (state, value)},  # type: ignore[dict-item]
        reward=None,
        completeness=1.0,
        settled=False,
        grading_version=1,
    )


def _progress(row: str, append_ms: int, value: float | None, release: str | None = OLD, **fields: Any) -> Progress:
    return Progress(
        **{
            "episode_id": row,
            "interaction_id": row,
            "task_id": None,
            "agent": "a",
            "slot": "main",
            "release": release,
            "grade": _grade(value),
            "split": "train",
            "revision": 1,
            "append_ms": append_ms,
            "ended_at": "2026-01-01T00:00:00Z",
            **fields,
        }
    )


def _state(policy: GuardPolicy = POLICY, metric: Metric | None = None) -> GuardState:
    return GuardState("main", policy, metric)


def _live(state: GuardState, release: str = OLD) -> tuple[int, float | None]:
    found = state.live().get(release, {"rows": 0, "mean": None})
    return found["rows"], found["mean"]


def _feed(state: GuardState, release: str, values: list[float], start_ms: int) -> int:
    """Rows a second apart whose outcome is there at once, then a clock record past the age of the last. Returns that time."""
    for n, value in enumerate(values):
        at = start_ms + 1000 * n
        state.observe(0, at, _progress(f"{release}-{start_ms}-{n}", at, value, release))
    end = start_ms + 1000 * len(values) + AGE_MS + 1
    state.observe(0, end, None)
    return end


def test_a_row_enters_at_its_age_with_the_value_it_then_had() -> None:
    state = _state()
    state.observe(0, 1_000, _progress("a", 1_000, None))
    state.observe(0, 5_000, _progress("a", 1_000, 0.0))
    state.observe(0, 11_000, _progress("a", 1_000, 1.0))  # exactly at the age: still part of it
    assert _live(state) == (0, None)
    state.observe(0, 11_001, _progress("a", 1_000, 0.25))  # too late to count
    assert _live(state) == (1, 1.0)


def test_corrections_after_the_entry_change_nothing() -> None:
    state = _state()
    state.observe(0, 1_000, _progress("a", 1_000, 1.0))
    state.observe(0, 12_000, None)
    for at in (12_500, 13_000, 40_000):
        state.observe(0, at, _progress("a", 1_000, 0.0))
    state.observe(0, 90_000, None)
    assert _live(state) == (1, 1.0)


def test_only_the_clock_of_its_own_partition_ages_a_row() -> None:
    state = _state()
    state.observe(0, 1_000, _progress("a", 1_000, 1.0))
    state.observe(1, 500_000, None)
    assert _live(state) == (0, None)
    state.observe(0, 11_001, None)
    assert _live(state) == (1, 1.0)


def test_a_row_first_seen_after_its_age_never_enters() -> None:
    state = _state()
    state.observe(0, 50_000, _progress("a", 1_000, 1.0))
    state.observe(0, 99_000, None)
    assert (_live(state), state.late) == ((0, None), 1)


def test_rows_of_other_slots_and_without_a_release_do_not_count() -> None:
    state = _state()
    state.observe(0, 1_000, _progress("a", 1_000, 1.0, slot="planner"))
    state.observe(0, 1_000, _progress("b", 1_000, 1.0, release=None))
    state.observe(0, 99_000, None)
    assert state.live() == {}


@pytest.mark.parametrize(
    ("grade", "metric", "expected"),
    [
        (_grade(0.75), None, 0.75),
        (_grade(True), Metric(name="reward", type="bool"), 1.0),
        (_grade(None), None, None),
        (_grade(None, "absent"), Metric(name="reward"), None),
        (_grade(None, "absent"), Metric(name="reward", absent=0.0), 0.0),
        (_grade(None, "pending"), Metric(name="reward", absent=0.5), 0.5),
        (_grade(0.75), Metric(name="reward", direction="minimise"), 0.25),
        (_grade(7.0), None, 1.0),
        (_grade("bad"), Metric(name="reward", type="category"), None),  # type: ignore[arg-type]
        (_grade(1.0, name="other"), Metric(name="reward"), None),
    ],
)
def test_absent_and_pending_count_by_the_metrics_rule(
    grade: Grade, metric: Metric | None, expected: float | None
) -> None:
    assert live_value(grade, metric, POLICY) == expected


def test_without_a_metric_of_that_name_the_rows_reward_counts() -> None:
    graded = Grade(metrics={}, reward=0.5, completeness=1.0, settled=False, grading_version=1)
    assert live_value(graded, None, POLICY) == 0.5
    assert live_value(graded, None, GuardPolicy(metric="speed")) is None


def test_values_are_scaled_to_the_range_of_the_policy() -> None:
    policy = GuardPolicy(metric="reward", low=-1.0, high=1.0)
    assert live_value(_grade(0.0), None, policy) == 0.5


def test_a_bad_release_raises_an_alarm_soon() -> None:
    state = _state()
    at = _feed(state, OLD, [1.0, 1.0, 1.0, 0.0] * 15, 0)
    _feed(state, NEW, [0.0, 0.0, 1.0, 0.0] * 20, at)
    alarm = state.judge(NEW, OLD)
    assert alarm is not None
    assert (alarm.release, alarm.predecessor, alarm.age_s) == (NEW, OLD, 10.0)
    assert alarm.baseline == pytest.approx(0.75, abs=0.02)
    assert alarm.baseline_rows == 50  # the newest ones
    assert alarm.floor == pytest.approx(alarm.baseline - 0.05)
    assert alarm.after_rows < 40
    assert alarm.e_value >= 100


def test_an_equal_release_raises_none() -> None:
    state = _state()
    at = _feed(state, OLD, [1.0, 1.0, 1.0, 0.0] * 15, 0)
    _feed(state, NEW, [1.0, 0.0, 1.0, 1.0] * 100, at)
    assert state.judge(NEW, OLD) is None


def test_without_enough_rows_of_the_predecessor_there_is_no_floor_yet_and_nothing_is_lost() -> None:
    state = _state()
    _feed(state, NEW, [0.0] * 60, 0)
    assert state.judge(NEW, OLD) is None
    _feed(state, OLD, [1.0] * 19, 200_000)
    assert state.judge(NEW, OLD) is None
    _feed(state, OLD, [1.0], 300_000)
    alarm = state.judge(NEW, OLD)
    assert alarm is not None
    assert alarm.after_rows < 10


def test_the_alarm_keeps_the_row_at_which_it_was_raised() -> None:
    state = _state()
    at = _feed(state, OLD, [1.0] * 30, 0)
    at = _feed(state, NEW, [0.0] * 30, at)
    first = state.judge(NEW, OLD)
    _feed(state, NEW, [0.0] * 30, at)
    second = state.judge(NEW, OLD)
    assert first is not None
    assert second is not None
    assert first == second
    assert first.after_rows < 30
    assert first.live_mean == 0.0


def test_a_release_that_is_promoted_again_starts_without_old_evidence() -> None:
    state = _state()
    at = _feed(state, OLD, [1.0] * 30, 0)
    at = _feed(state, NEW, [0.0] * 30, at)
    assert state.judge(NEW, OLD, term=3) is not None
    assert state.judge(NEW, OLD, term=7) is None
    _feed(state, NEW, [0.0] * 30, at)
    assert state.judge(NEW, OLD, term=7) is not None


def test_an_impossible_floor_never_alarms() -> None:
    test = EProcess(floor=-0.2, alpha=0.01)
    for _ in range(500):
        test = test.add(0.0)
    assert test.alarmed_after is None


def test_values_outside_the_unit_interval_are_refused() -> None:
    with pytest.raises(ValueError, match="not in"):
        EProcess(floor=0.5, alpha=0.01).add(1.5)


def test_the_evidence_stays_finite_however_long_it_grows() -> None:
    test = EProcess(floor=0.9, alpha=0.01)
    for _ in range(5000):
        test = test.add(0.0)
    assert test.evidence > 1e290
