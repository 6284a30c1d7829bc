"""A test that may stop at any time: has the live mean fallen below a floor, from the start or later?

H0: E[x_t | past] >= floor for every row, x_t in [0, 1]. For a fixed bet b in [0, 1) that begins after row k the capital

    K_t(b, k) = prod_(k < i <= t) (1 + b / (1 - floor) * (floor - x_i)) >= 0

is a nonnegative supermartingale under H0 (each factor has conditional mean <= 1, and is at least 1 - b). A champion may be fine for long
and fall then, so the bets do not all begin with the first row: of a stake of 1, the share w_k = W_k - W_(k+1) is put in after row k,
W_k = ln 2 / ln(k + 2), and W_t is still cash after row t. The sum over k, and the mean over several bets b, is such a supermartingale
again, and by Ville's inequality (1939) it ever reaches 1 / alpha with probability at most alpha, however often one looks.
Sources: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 86 (2024), section 4; Shin, Ramdas &
Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", NEJSDS 2 (2024), for the mixture over beginnings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["BETS", "EProcess"]

BETS = (0.1, 0.25, 0.5, 0.75)
"""Small bets find small drops after many rows, large ones a collapse within a few."""


NOTHING = -700.0
"""Logarithm of a capital that is as good as nothing; infinity has no place in JSON."""


@dataclass(frozen=True, kw_only=True)
class EProcess:
    """The evidence so far against "the live mean is at least `floor`". Immutable: `add` returns the next state.

    `floor` is below 1 and may be negative, where nothing can ever fall below it. `log_capital` has one logarithm a bet, of what was put in.
    """

    floor: float
    alpha: float
    log_capital: tuple[float, ...] = (NOTHING,) * len(BETS)
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
        fresh = math.log(_cash(self.n) - _cash(self.n + 1))
        logs = tuple(
            max(NOTHING, _log_sum((log, fresh)) + math.log1p(bet / room * step))
            for log, bet in zip(self.log_capital, BETS, strict=True)
        )
        n = self.n + 1
        alarmed = self.alarmed_after
        if alarmed is None and _log_worth(logs, n) >= -math.log(self.alpha):
            alarmed = n
        return EProcess(
            floor=self.floor, alpha=self.alpha, log_capital=logs, n=n, total=self.total + x, alarmed_after=alarmed
        )

    @property
    def evidence(self) -> float:
        """The e-value now: how many times the stake the bets have won. Capped at 1e299."""
        return math.exp(min(690.0, _log_worth(self.log_capital, self.n)))

    @property
    def mean(self) -> float:
        """Mean of the rows so far, 0 without any."""
        return self.total / self.n if self.n else 0.0


def _cash(k: int) -> float:
    """What is not yet put in after row k."""
    return math.log(2) / math.log(k + 2)


def _log_worth(logs: tuple[float, ...], n: int) -> float:
    return _log_sum((_log_sum(logs) - math.log(len(logs)), math.log(_cash(n))))


def _log_sum(logs: tuple[float, ...]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(log - top) for log in logs))
