"""How many errors of probability at most `alpha` are too many to be chance."""

from __future__ import annotations

import math

__all__ = ["most_by_chance"]


def most_by_chance(runs: int, alpha: float, doubt: float = 0.001) -> int:
    """The smallest k such that more than k errors in `runs` runs happen with probability at most `doubt` (binomial tail)."""
    cumulative = 0.0
    for k in range(runs + 1):
        cumulative += math.exp(
            math.lgamma(runs + 1)
            - math.lgamma(k + 1)
            - math.lgamma(runs - k + 1)
            + k * math.log(alpha)
            + (runs - k) * math.log1p(-alpha)
        )
        if 1.0 - cumulative <= doubt:
            return k
    return runs
