"""The guard's fold: each row once, at one age, the same for both arms."""

from __future__ import annotations

from typing import Any

import pytest
from treadle_schemas import Grade, Metric, Progress
from treadle_schemas.records import Vitals
from treadle_trainer.guard import EProcess, GuardState, fast_values, live_value, lower_bound
from treadle_trainer.policy import CanaryPolicy, FastMetric, GuardPolicy

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


def _state(
    policy: GuardPolicy = POLICY, metric: Metric | None = None, canary: CanaryPolicy | None = None
) -> GuardState:
    return GuardState("main", policy, metric, canary)


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
    # where the predecessor's mean can be at the lowest, minus the tolerance
    assert alarm.floor == pytest.approx(lower_bound(alarm.baseline, 50, 0.01 / 4) - 0.05)
    assert alarm.after_rows < 80
    assert alarm.e_value >= 400


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
    assert alarm.after_rows < 25


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


# --- canary, control, fast metrics ---------------------------------------------------------------------------------------------


def _serve_both(state: GuardState, canary: list[float], champion: list[float], start_ms: int = 0, **fields: Any) -> int:
    """A canary row after every champion row, each with its outcome at once; then time passes their age."""
    at = start_ms
    for n, (ours, theirs) in enumerate(zip(canary, champion, strict=True)):
        at += 1000
        state.observe(0, at, _progress(f"old-{start_ms}-{n}", at, theirs, OLD))
        state.observe(0, at, _progress(f"new-{start_ms}-{n}", at, ours, NEW, **fields))
    state.observe(0, at + AGE_MS + 1, None)
    return at + AGE_MS + 1


def test_a_better_canary_is_promoted_and_a_worse_one_withdrawn() -> None:
    for good, decision in ((True, "promote"), (False, "withdraw")):
        state = _state()
        state.serve(OLD, canary=(NEW, 7, 0))
        some, most = [1.0, 0.0, 0.0, 0.0] * 60, [1.0, 1.0, 0.0, 1.0] * 60
        _serve_both(state, most if good else some, some if good else most)
        verdict = state.verdict()
        assert verdict is not None
        assert (verdict.decision, verdict.canary, verdict.champion) == (decision, NEW, OLD)
        effect = verdict.effect
        assert effect.low < effect.effect < effect.high
        assert (effect.low > 0) == good
        assert (verdict.canary_units, verdict.champion_units, verdict.pairs) == (240, 240, 240)


def test_an_equal_canary_is_withdrawn_once_its_time_is_up_without_a_stain() -> None:
    state = _state(canary=CanaryPolicy(max_episodes=100))
    state.serve(OLD, canary=(NEW, 7, 0))
    at = _serve_both(state, [1.0, 0.0] * 49, [1.0, 0.0] * 49)
    assert state.verdict() is None
    _serve_both(state, [1.0, 0.0], [0.0, 1.0], at)
    verdict = state.verdict()
    assert verdict is not None
    assert verdict.decision == "expired"
    assert verdict.effect.low < 0 < verdict.effect.high


def test_a_trial_counts_what_came_after_the_admission_whenever_the_guard_heard_of_it() -> None:
    state = _state()
    at = _serve_both(state, [0.0] * 100, [1.0] * 100)  # of an earlier life of the canary
    state.serve(OLD, canary=(NEW, 7, at))
    assert state.verdict() is None
    assert state.report()["trial"]["episodes"] == [0, 0]
    _serve_both(state, [0.0] * 60, [1.0] * 60, at)
    assert state.verdict() is not None
    state.serve(OLD, canary=(NEW, 9, at))  # admitted again: without the evidence of before
    assert state.verdict() is None
    state.serve(NEW)
    assert state.report()["trial"] is None


def test_an_episode_counts_once_whatever_the_number_of_its_rows() -> None:
    state = _state()
    state.serve(OLD, canary=(NEW, 7, 0))
    for n in range(50):
        state.observe(0, 1000 + n, _progress(f"i{n}", 1000 + n, 0.0, NEW, episode_id="one"))
        state.observe(0, 1000 + n, _progress(f"j{n}", 1000 + n, 1.0, OLD, episode_id=f"many-{n}"))
    state.observe(0, 99_000, None)
    assert state.report()["trial"]["episodes"] == [1, 50]
    assert state.verdict() is None


def test_errors_and_invalid_calls_are_noticed_long_before_any_outcome() -> None:
    state = _state(GuardPolicy(age_s=7 * 86_400, alpha=0.01))
    state.serve(OLD, canary=(NEW, 7, 0))
    for n in range(60):
        bad, good = Vitals(invalid_calls=1), Vitals()
        state.observe(0, 1000 * n, _progress(f"o{n}", 1000 * n, None, OLD, vitals=good))
        state.observe(0, 1000 * n, _progress(f"n{n}", 1000 * n, None, NEW, vitals=bad if n % 2 else good))
    verdict = state.verdict()
    assert verdict is not None
    assert (verdict.decision, verdict.metric, verdict.age_s) == ("withdraw", "invalid_calls", 0.0)
    assert "at once" in verdict.reason


def test_a_champion_with_errors_is_rolled_back_by_its_fast_metrics() -> None:
    state = _state(GuardPolicy(age_s=7 * 86_400, alpha=0.01, min_baseline=20))
    for n in range(100):
        state.observe(0, 1000 * n, _progress(f"o{n}", 1000 * n, None, OLD, vitals=Vitals()))
    for n in range(100, 160):
        state.observe(0, 1000 * n, _progress(f"n{n}", 1000 * n, None, NEW, vitals=Vitals(error=True)))
    alarm = state.judge(NEW, OLD)
    assert alarm is not None
    assert (alarm.metric, alarm.age_s) == ("error", 0.0)


def test_fast_metrics_are_scaled_and_a_cost_that_nobody_told_is_left_out() -> None:
    fast = {"latency_s": FastMetric(high=10.0), "cost": FastMetric(high=2.0), "error": FastMetric()}
    policy = GuardPolicy(fast=fast)
    assert fast_values(Vitals(latency_ms=2500, cost=3.0, error=True), policy) == {
        "latency_s": 0.75,
        "cost": 0.0,
        "error": 0.0,
    }
    assert fast_values(Vitals(), policy) == {"latency_s": 1.0, "error": 1.0}
    assert fast_values(None, policy) == {}


def test_the_control_gives_the_lift_of_everything_since_and_of_the_present_champion() -> None:
    state = _state()
    base, first, second = "shop/main/r0", OLD, NEW
    at = 0
    for champion, rate in ((first, [1.0, 0.0]), (second, [1.0, 1.0])):
        state.serve(champion, control=(base, 0))
        for n in range(300):
            at += 1000
            state.observe(0, at, _progress(f"{champion}-{n}", at, rate[n % 2], champion))
            if n % 10 == 0:
                state.observe(0, at, _progress(f"c-{champion}-{n}", at, 0.0 if n % 20 else 1.0, base))
        at += AGE_MS + 1
        state.observe(0, at, None)
    lift = state.report()["lift"]
    assert (lift["control"], lift["champion"]) == (base, second)
    assert lift["episodes"] == [600, 60]
    assert lift["total"]["effect"] == pytest.approx(0.25, abs=0.1)
    assert lift["now"]["effect"] == pytest.approx(0.5, abs=0.1)
    assert lift["now"]["low"] < 0.5 < lift["now"]["high"]


def test_a_floor_allows_for_what_few_rows_leave_open() -> None:
    assert lower_bound(0.75, 10_000, 0.005) == pytest.approx(0.739, abs=0.002)
    assert lower_bound(1.0, 64, 0.005) == pytest.approx(0.906, abs=0.002)
    assert lower_bound(0.75, 64, 0.005) == pytest.approx(0.59, abs=0.01)
