"""Tests and intervals that hold at every moment, however often one looks: for rewards that arrive one by one.

Two arms are compared while both serve. Units (episodes) of either arm arrive in one order; a pair is made as soon as both arms have one,
of the means of what each gathered since the pair before. So drift of the world hits both sides of a pair alike, and an arm with a tenth of
the traffic is compared with ten times as many units of the other. d_t in [-1, 1] is the difference of a pair, first arm minus second.

**Test** (`Betting`). H0: E[d_t | past] <= delta for every pair. For a fixed bet b in [0, 1)

    K_t(b) = prod_i (1 + b (d_i - delta) / (1 + delta)) >= 0

is a nonnegative supermartingale under H0, since d_i - delta >= -(1 + delta); so is the mean over several bets, and by Ville's inequality
(1939) it ever reaches 1 / alpha with probability at most alpha. Waudby-Smith & Ramdas, "Estimating means of bounded random variables by
betting", JRSS-B 86 (2024), section 4.

**Interval** (`ConfidenceSequence`). The predictable plug-in empirical-Bernstein confidence sequence of the same paper (theorem 2), for y in
[0, 1]: with probability at least 1 - alpha, at all times t at once, the mean lies within

    sum(l_i y_i) / sum(l_i)  +-  (ln(2 / alpha) + sum(v_i psi(l_i))) / sum(l_i)

where v_i = 4 (y_i - m_(i-1))^2, psi(l) = (-ln(1 - l) - l) / 4, l_i = min(sqrt(2 ln(2 / alpha) / (s2_(i-1) i ln(1 + i))), 1/2),
m_t = (1/2 + sum y) / (t + 1), s2_t = (1/4 + sum (y_i - m_i)^2) / (t + 1). Where the mean drifts, it is the mean over time, weighted by l.
"""

from __future__ import annotations

import math

import msgspec

__all__ = ["BETS", "Betting", "ConfidenceSequence", "Interval", "Pairing"]

BETS = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75)
"""Small bets find small effects after many pairs, large ones a collapse within a few."""
_MAX_BET = 0.5
"""The paper's truncation c of the interval's bets."""


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """An effect with an interval that holds at all times at once with probability 1 - alpha."""

    effect: float
    low: float
    high: float
    n: int
    alpha: float


class Betting(msgspec.Struct, kw_only=True):
    """The evidence so far against "the mean difference is at most `delta`". `add` folds one difference in, in place."""

    delta: float
    alpha: float
    log_capital: list[float] = msgspec.field(default_factory=lambda: [0.0] * len(BETS))
    n: int = 0
    decided_after: int | None = None
    """Pairs after which the evidence first reached 1 / alpha, for good."""

    def add(self, d: float) -> None:
        """One more difference in [-1, 1]. Raises ValueError outside."""
        if not -1.0 <= d <= 1.0:
            raise ValueError(f"{d} is not in [-1, 1]")
        step = (d - self.delta) / max(1e-6, 1.0 + self.delta)
        for i, bet in enumerate(BETS):
            self.log_capital[i] += math.log1p(bet * step)
        self.n += 1
        if self.decided_after is None and self._log_mean() >= -math.log(self.alpha):
            self.decided_after = self.n

    @property
    def evidence(self) -> float:
        """The e-value now: how many times the stake the bets have won. Capped at 1e300."""
        return math.exp(min(690.0, self._log_mean()))

    def _log_mean(self) -> float:
        top = max(self.log_capital)
        return top + math.log(sum(math.exp(log - top) for log in self.log_capital) / len(BETS))


class ConfidenceSequence(msgspec.Struct, kw_only=True):
    """The interval of the mean of values in [0, 1] so far. `add` folds one in, in place."""

    alpha: float
    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    """Sum of (y_i - m_i)^2."""
    weights: float = 0.0
    weighted: float = 0.0
    spread: float = 0.0
    """Sum of v_i psi(l_i)."""

    def add(self, y: float) -> None:
        """One more value. Raises ValueError outside [0, 1]."""
        if not 0.0 <= y <= 1.0:
            raise ValueError(f"{y} is not in [0, 1]")
        mean = (0.5 + self.total) / (self.n + 1)
        variance = (0.25 + self.squares) / (self.n + 1)
        i = self.n + 1
        bet = min(math.sqrt(2 * math.log(2 / self.alpha) / (variance * i * math.log1p(i))), _MAX_BET)
        self.weights += bet
        self.weighted += bet * y
        self.spread += 4 * (y - mean) ** 2 * (-math.log1p(-bet) - bet) / 4
        self.n, self.total = i, self.total + y
        self.squares += (y - (0.5 + self.total) / (self.n + 1)) ** 2

    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound, within [0, 1]."""
        if not self.n:
            return 0.0, 1.0
        centre = self.weighted / self.weights
        width = (math.log(2 / self.alpha) + self.spread) / self.weights
        return max(0.0, centre - width), min(1.0, centre + width)


class Pairing(msgspec.Struct, kw_only=True):
    """Two arms whose units arrive in one order; see the module. Values in [0, 1].

    `gathered` is (sum, number) of either arm since the last pair.
    """

    gathered: list[tuple[float, int]] = msgspec.field(default_factory=lambda: [(0.0, 0), (0.0, 0)])
    units: list[int] = msgspec.field(default_factory=lambda: [0, 0])
    totals: list[float] = msgspec.field(default_factory=lambda: [0.0, 0.0])

    def add(self, arm: int, value: float) -> float | None:
        """A unit of arm 0 or 1. Returns the difference of the pair that it completes, arm 0 minus arm 1, or None."""
        total, count = self.gathered[arm]
        self.gathered[arm] = (total + value, count + 1)
        self.units[arm] += 1
        self.totals[arm] += value
        (a, n), (b, m) = self.gathered
        if not n or not m:
            return None
        self.gathered = [(0.0, 0), (0.0, 0)]
        return max(-1.0, min(1.0, a / n - b / m))

    def mean(self, arm: int) -> float | None:
        """Mean of all units of an arm, None without any."""
        return self.totals[arm] / self.units[arm] if self.units[arm] else None
