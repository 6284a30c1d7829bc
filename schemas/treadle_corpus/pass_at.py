"""pass^k: how reliably tasks are solved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import comb

__all__ = ["pass_hat", "pass_of"]


def pass_hat(attempts: Iterable[tuple[object, float | None]], up_to: int = 4) -> dict[int, float | None]:
    """pass^k for k = 1..up_to over (task, reward) pairs; None where no task has k attempts.

        pass^k = mean over tasks with n >= k attempts of C(c, k) / C(n, k)

    c of the n graded attempts at a task succeeded (reward > 0). It is the unbiased estimate of the chance that k fresh attempts at one
    task *all* succeed, unlike pass@k, where one must. Source: Yao et al. 2024, "tau-bench", arXiv:2406.12045, section 3.3. Rows without
    a reward are no attempts.
    """
    counts: dict[object, tuple[int, int]] = {}
    for task, reward in attempts:
        if reward is None:
            continue
        n, c = counts.get(task, (0, 0))
        counts[task] = (n + 1, c + (reward > 0))
    return pass_of(Counter(counts.values()), up_to)


def pass_of(tasks: Mapping[tuple[int, int], int], up_to: int = 4) -> dict[int, float | None]:
    """The same from how many tasks have (n, c). The sum is exact before it is rounded, so it does not depend on any order."""
    return {k: _mean_at(tasks, k) for k in range(1, up_to + 1)}


def _mean_at(tasks: Mapping[tuple[int, int], int], k: int) -> float | None:
    total, count = Fraction(0), 0
    for (n, c), times in tasks.items():
        if n >= k and times:
            total += Fraction(comb(c, k) / comb(n, k)) * times
            count += times
    return float(total) / count if count else None
