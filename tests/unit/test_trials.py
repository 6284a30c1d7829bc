"""Gate and guard are wrong no more often than they say. The long form is `python tests/trials`.

Each bound is one that chance alone exceeds in one of a thousand runs, so a test whose error rate is not kept fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trials.bounds import most_by_chance
from trials.gate import ALPHA, campaign, power
from trials.guard import Traffic, lift, trial, watch


def test_the_bound_is_the_binomial_tail() -> None:
    assert most_by_chance(100, 0.05) == 13
    assert most_by_chance(1000, 0.01) == 21


def test_false_promotions_over_fifty_turns_stay_within_alpha() -> None:
    runs = [campaign(seed, fresh=True) for seed in range(12)]
    assert sum(one.promoted for one in runs) <= most_by_chance(12 * 50, ALPHA)


def test_a_held_out_set_that_judges_fifty_turns_is_fooled_once_in_twenty_campaigns_at_most() -> None:
    fooled = sum(campaign(seed, fresh=False).promoted > 0 for seed in range(40))
    assert fooled <= most_by_chance(40, ALPHA)


def test_power_rises_with_the_effect() -> None:
    shares = [power(effect, tasks=256, runs=60)["promote"] for effect in (0.0, 0.05, 0.1)]
    assert shares == sorted(shares)
    assert shares[2] >= 0.8


@pytest.mark.parametrize("absent", [None, 0.0])
def test_wins_that_arrive_ten_times_faster_than_losses_roll_no_equal_champion_back(absent: float | None) -> None:
    runs = [watch(Traffic(old=0.6, new=0.6, absent=absent), seed=s, episodes=200, alpha=0.05) for s in range(60)]
    assert sum(one.decision is not None for one in runs) <= most_by_chance(60, 0.05)
    bad = [watch(Traffic(old=0.6, new=0.1, absent=absent), seed=s, episodes=200) for s in range(10)]
    assert all(one.decision == "roll back" for one in bad)


@pytest.mark.parametrize("absent", [None, 0.0])
def test_an_equal_canary_is_neither_promoted_nor_withdrawn_beyond_alpha(absent: float | None) -> None:
    equal = Traffic(old=0.6, new=0.6, absent=absent)
    runs = [trial(equal, seed=s, episodes=150, tolerance=0.0) for s in range(60)]
    for decision in ("promote", "withdraw"):
        assert sum(one.decision == decision for one in runs) <= most_by_chance(60, 0.05)
    assert trial(Traffic(old=0.3, new=0.9, absent=absent), seed=1, episodes=300).decision == "promote"
    assert trial(Traffic(old=0.9, new=0.3, absent=absent), seed=1, episodes=300).decision == "withdraw"


def test_the_interval_of_the_lift_over_the_control_holds_at_every_moment() -> None:
    runs = [lift(Traffic(old=0.6, new=0.8, absent=0.0), seed=s, episodes=1500) for s in range(20)]
    assert sum(not one.always for one in runs) <= most_by_chance(20, 0.05)
    assert max(one.width for one in runs) < 2.0
