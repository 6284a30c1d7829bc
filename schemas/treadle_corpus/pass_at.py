"""pass^k: how reliably tasks are solved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import comb, fsum

__all__ = ["pass_hat"]


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
    return {k: _mean_at(counts, k) for k in range(1, up_to + 1)}


def _mean_at(counts: Mapping[object, tuple[int, int]], k: int) -> float | None:
    shares = [comb(c, k) / comb(n, k) for n, c in counts.values() if n >= k]
    return fsum(shares) / len(shares) if shares else None
