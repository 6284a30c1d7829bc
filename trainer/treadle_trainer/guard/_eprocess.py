"""A test that may stop at any time: has the live mean fallen below a floor?

H0: E[x_t | past] >= floor for every row, x_t in [0, 1]. For a fixed bet b in [0, 1) the capital

    K_t(b) = prod_i (1 + b / (1 - floor) * (floor - x_i)) >= 0

is a nonnegative supermartingale under H0 (each factor has conditional mean <= 1, and is at least 1 - b). So is the mean over several
bets, and by Ville's inequality (1939) it ever reaches 1 / alpha with probability at most alpha, however often one looks.
Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 86 (2024), section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

__all__ = ["BETS", "EProcess"]

BETS = (0.1, 0.25, 0.5, 0.75)
"""Small bets find small drops after many rows, large ones a collapse within a few."""


@dataclass(frozen=True, kw_only=True)
class EProcess:
    """The evidence so far against "the live mean is at least `floor`". Immutable: `add` returns the next state.

    `floor` is below 1 and may be negative, where nothing can ever fall below it. `log_capital` has one logarithm a bet.
    """

    floor: float
    alpha: float
    log_capital: tuple[float, ...] = (0.0,) * len(BETS)
    n: int = 0
    total: float = 0.0
    alarmed_after: int | None = None
    """Rows after which the evidence first reached 1 / alpha, for good."""

    def add(self, x: float) -> EProcess:
        """After one more row with value `x` in [0, 1]. Raises ValueError outside."""
        if not 0.0 <= x <= 1.0:
            raise ValueError(f"{x} is not in [0, 1]")
        room = max(1e-6, 1.0 - self.floor)
        step = (self.floor - x) if self.floor > 0 else 0.0
        logs = tuple(log + math.log1p(bet / room * step) for log, bet in zip(self.log_capital, BETS, strict=True))
        n = self.n + 1
        alarmed = self.alarmed_after
        if alarmed is None and _log_mean(logs) >= -math.log(self.alpha):
            alarmed = n
        return EProcess(
            floor=self.floor, alpha=self.alpha, log_capital=logs, n=n, total=self.total + x, alarmed_after=alarmed
        )

    @property
    def evidence(self) -> float:
        """The e-value now: how many times the stake the bets have won. Capped at 1e300."""
        return math.exp(min(690.0, _log_mean(self.log_capital)))

    @property
    def mean(self) -> float:
        """Mean of the rows so far, 0 without any."""
        return self.total / self.n if self.n else 0.0


def _log_mean(logs: tuple[float, ...]) -> float:
    top = max(logs)
    return top + math.log(reduce(lambda total, log: total + math.exp(log - top), logs, 0.0) / len(logs))
