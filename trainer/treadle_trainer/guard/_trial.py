"""Two releases that serve at the same time, compared unit by unit: a canary's trial, and the lift over a control. Pure.

A unit is an episode: its rows share outcomes and the release that served it, so it counts once. Both arms are read at the same age. What
makes the tests valid at every moment, and what they assume, is said in treadle_trainer.sequential.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from treadle_trainer.policy import CanaryPolicy, GuardPolicy
from treadle_trainer.sequential import Betting, ConfidenceSequence, Interval, Pairing

__all__ = ["Decision", "Lift", "LiveVerdict", "Trial"]

REWARD = "reward"
"""Name of the primary comparison, beside the fast metrics."""
Decision = Literal["promote", "withdraw", "expired"]


@dataclass(frozen=True, kw_only=True)
class LiveVerdict:
    """What the live rewards of a canary decided. `effect` is canary minus champion in [0, 1], with an interval valid at all times."""

    decision: Decision
    reason: str
    canary: str
    champion: str
    metric: str
    effect: Interval
    canary_mean: float | None
    champion_mean: float | None
    canary_units: int
    champion_units: int
    pairs: int
    e_value: float
    alpha: float
    age_s: float


class Comparison(msgspec.Struct, kw_only=True):
    """One metric of both arms, scaled to [0, 1], higher is better."""

    worse: Betting
    interval: ConfidenceSequence
    better: Betting | None = None
    pairing: Pairing = msgspec.field(default_factory=Pairing)

    def add(self, arm: int, value: float) -> None:
        """A unit of the canary (0) or the champion (1)."""
        d = self.pairing.add(arm, value)
        if d is None:
            return
        if self.worse.decided_after is None:
            self.worse.add(-d)
        if self.better is not None and self.better.decided_after is None:
            self.better.add(d)
        self.interval.add((1.0 + d) / 2)

    @property
    def effect(self) -> Interval:
        """Mean difference of the pairs so far, with its interval."""
        low, high = self.interval.bounds()
        n = self.interval.n
        mean = 2 * self.interval.total / n - 1 if n else 0.0
        return Interval(effect=mean, low=2 * low - 1, high=2 * high - 1, n=n, alpha=self.interval.alpha)


class Trial(msgspec.Struct, kw_only=True):
    """A canary against the champion that served beside it. Rows appended before `since_ms` belong to earlier times.

    Of the guard's alpha, half goes to the reward and the rest in equal shares to the fast metrics.
    """

    canary: str
    champion: str
    term: int
    since_ms: int
    metrics: dict[str, Comparison] = {}

    @classmethod
    def begin(
        cls, canary: str, champion: str, term: int, since_ms: int, guard: GuardPolicy, policy: CanaryPolicy
    ) -> Trial:
        """A trial without any evidence."""
        reward = Comparison(
            worse=Betting(delta=guard.tolerance, alpha=guard.alpha / (2 if guard.fast else 1)),
            better=Betting(delta=policy.min_effect, alpha=policy.alpha),
            interval=ConfidenceSequence(alpha=policy.alpha),
        )
        fast = {
            name: Comparison(
                worse=Betting(delta=one.tolerance, alpha=guard.alpha / 2 / len(guard.fast)),
                interval=ConfidenceSequence(alpha=policy.alpha),
            )
            for name, one in guard.fast.items()
        }
        return cls(canary=canary, champion=champion, term=term, since_ms=since_ms, metrics={REWARD: reward, **fast})

    def add(self, release: str, append_ms: int, metric: str, value: float) -> None:
        """A unit of any release; those of others do not count."""
        if append_ms >= self.since_ms and release in (self.canary, self.champion) and metric in self.metrics:
            self.metrics[metric].add(0 if release == self.canary else 1, value)

    def verdict(self, guard: GuardPolicy, policy: CanaryPolicy) -> LiveVerdict | None:
        """What the evidence so far decides, None while it decides nothing. Harm goes before benefit."""
        for name, one in self.metrics.items():
            if one.worse.decided_after is not None:
                age = 0.0 if name != REWARD else guard.age_s
                reason = f"live {name} is worse than the champion's by more than {one.worse.delta:g}"
                return self._said("withdraw", reason, name, one.worse, guard, age)
        reward = self.metrics[REWARD]
        assert reward.better is not None
        if reward.better.decided_after is not None:
            over = f" by more than {policy.min_effect:g}" if policy.min_effect else ""
            reason = f"live {guard.metric} is better than the champion's{over}"
            return self._said("promote", reason, REWARD, reward.better, guard, guard.age_s)
        if reward.pairing.units[0] >= policy.max_episodes:
            reason = f"after {reward.pairing.units[0]} episodes its live {guard.metric} has decided nothing"
            return self._said("expired", reason, REWARD, reward.better, guard, guard.age_s)
        return None

    def _said(
        self, decision: Decision, reason: str, name: str, test: Betting, guard: GuardPolicy, age_s: float
    ) -> LiveVerdict:
        one = self.metrics[name]
        effect = one.effect
        ours, theirs = one.pairing.mean(0), one.pairing.mean(1)
        words = (
            f"{reason}: {effect.effect:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}] over {effect.n} pairs of episodes"
            + (f", both at {age_s:g} s of age" if age_s else ", at once")
        )
        return LiveVerdict(
            decision=decision,
            reason=words,
            canary=self.canary,
            champion=self.champion,
            metric=guard.metric if name == REWARD else name,
            effect=effect,
            canary_mean=ours,
            champion_mean=theirs,
            canary_units=one.pairing.units[0],
            champion_units=one.pairing.units[1],
            pairs=effect.n,
            e_value=test.evidence,
            alpha=test.alpha,
            age_s=age_s,
        )


class Lift(msgspec.Struct, kw_only=True):
    """What the wheel is worth: everything that served as champion since `since_ms`, against the control beside it."""

    control: str
    since_ms: int
    champion: str
    total: Comparison
    now: Comparison
    """The present champion alone."""

    @classmethod
    def begin(cls, control: str, since_ms: int, champion: str, alpha: float) -> Lift:
        """No evidence yet."""
        return cls(control=control, since_ms=since_ms, champion=champion, total=_measure(alpha), now=_measure(alpha))

    def serve(self, champion: str) -> None:
        """Another champion serves from now on."""
        if champion != self.champion:
            self.champion, self.now = champion, _measure(self.now.interval.alpha)

    def add(self, release: str, append_ms: int, value: float) -> None:
        """A unit of any release; only those of control and champion count."""
        if append_ms < self.since_ms or release not in (self.control, self.champion):
            return
        for one in (self.total, self.now):
            one.add(1 if release == self.control else 0, value)


def _measure(alpha: float) -> Comparison:
    return Comparison(worse=Betting(delta=0.0, alpha=alpha), interval=ConfidenceSequence(alpha=alpha))
