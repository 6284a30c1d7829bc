"""The gate's promises, over many data sets: no false promotions beyond alpha, power where there is an effect, symmetry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treadle_trainer.gate import GenerationLedger, decide

_SCORES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 120)),
    min_size=1,
    max_size=200,
)


@settings(max_examples=60, deadline=None)
@given(_SCORES)
def test_never_are_both_better_than_each_other(rows: list[tuple[float, float, int]]) -> None:
    a, b, tasks = [r[0] for r in rows], [r[1] for r in rows], [str(r[2]) for r in rows]
    there = decide(a, b, tasks, min_tasks=1, resamples=400)
    back = decide(b, a, tasks, min_tasks=1, resamples=400)
    assert there.effect == pytest.approx(-back.effect)
    assert not (there.decision == "promote" and back.decision == "promote")
    if there.decision == "promote":
        assert back.decision == "reject"
    assert there.low is not None
    assert there.high is not None
    assert there.low <= there.high


@settings(max_examples=40, deadline=None)
@given(_SCORES, st.randoms(use_true_random=False))
def test_the_order_of_rows_within_tasks_does_not_matter(rows: list[tuple[float, float, int]], rng) -> None:  # type: ignore[no-untyped-def]
    def judged(some: list[tuple[float, float, int]]) -> tuple[float, int, int]:
        verdict = decide([r[0] for r in some], [r[1] for r in some], [str(r[2]) for r in some], resamples=50)
        return round(verdict.effect, 9), verdict.tasks, verdict.differing

    shuffled = list(rows)
    rng.shuffle(shuffled)
    assert judged(shuffled) == judged(rows)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 12), st.booleans()), max_size=30), st.integers(1, 4)
)
def test_no_group_ever_judges_with_more_than_alpha(decisions: list[tuple[str, int, bool]], min_groups: int) -> None:
    ledger, used = GenerationLedger(), dict[str, dict[str, float]]()
    for key, n, whole in decisions:
        if whole:
            ledger = ledger.spend_whole(f"fresh-{key}", 0.05).ledger
            continue
        ledger, alpha, groups = ledger.spend(key, [str(i) for i in range(n)], 0.05, min_groups=min_groups)
        if len(groups) >= min_groups:
            for group in groups:
                used.setdefault(group, {})[key] = alpha
    for shares in used.values():  # over everything that any one group was ever used for
        assert sum(shares.values()) <= 0.05 + 1e-12


def _share(decision: str, differing: float, effect: float, tasks: int, attempts: int, runs: int) -> float:
    rng = np.random.default_rng(7)
    hits = 0
    for run in range(runs):
        # what a task is like moves all attempts at it; candidate and champion differ on a share of tasks
        up = (differing + effect) / 2
        u = rng.random(tasks)
        d = np.where(u < up, 1.0, np.where(u < differing, -1.0, 0.0)).repeat(attempts)
        clusters = [str(i) for i in range(tasks) for _ in range(attempts)]
        verdict = decide(d.tolist(), [0.0] * len(d), clusters, seed=run, resamples=500)
        hits += verdict.decision == decision
    return hits / runs


@pytest.mark.parametrize(("differing", "attempts"), [(0.02, 1), (0.1, 1), (0.4, 1), (0.4, 4)])
def test_candidates_that_are_no_better_are_promoted_in_at_most_alpha_of_cases(differing: float, attempts: int) -> None:
    # 400 runs at 5 %: three standard errors above is 8.3 %
    assert _share("promote", differing, 0.0, 128, attempts, 400) <= 0.083


def test_a_clear_effect_is_found_and_a_small_one_is_left_open() -> None:
    assert _share("promote", 0.4, 0.15, 256, 1, 100) >= 0.9
    assert _share("reject", 0.4, -0.15, 256, 1, 100) >= 0.9
    assert _share("not_enough_evidence", 0.4, 0.03, 256, 1, 100) >= 0.4
