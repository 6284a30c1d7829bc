"""The paired cluster bootstrap: bounds of a mean of differences when rows of one task are not independent.

Tasks are resampled, never rows (Davison & Hinkley 1997, section 3.8; Cameron, Gelbach & Miller 2008). With clusters c drawn with
replacement, a replicate is sum_c(sum of d in c) / sum_c(rows in c); its alpha quantile is the one-sided lower bound, its (1 - alpha)
quantile the upper one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["RESAMPLES", "Bounds", "by_cluster", "cluster_bounds", "resampled_means"]

RESAMPLES = 4000
"""Resampling error of a 5 % quantile is then about 0.35 % in probability, 20 ms for 256 tasks."""
_CHUNK_CELLS = 4_000_000
"""Cells of one block of resampled indices: 32 MB."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """A mean with its one-sided bounds, over `tasks` clusters, `differing` of which are not zero."""

    effect: float
    low: float
    high: float
    tasks: int
    differing: int


def cluster_bounds(
    d: Sequence[float] | Floats, clusters: Sequence[str], alpha: float, *, seed: int = 0, resamples: int = RESAMPLES
) -> Bounds:
    """Bounds of the mean of `d` (not empty) at one-sided level `alpha`; `clusters[i]` is the task of row i."""
    sums, counts = by_cluster(np.asarray(d, dtype=np.float64), clusters)
    means = resampled_means(sums, counts, resamples, seed)
    return Bounds(
        effect=float(sums.sum() / counts.sum()),
        low=float(np.quantile(means, alpha)),
        high=float(np.quantile(means, 1 - alpha)),
        tasks=len(sums),
        differing=int(np.count_nonzero(sums)),
    )


def by_cluster(d: Floats, clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Sum and number of rows of each cluster, in order of first appearance."""
    index: dict[str, int] = {}
    at = np.array([index.setdefault(c, len(index)) for c in clusters])
    sums: Floats = np.bincount(at, weights=d, minlength=len(index)).astype(np.float64)
    return sums, np.bincount(at, minlength=len(index)).astype(np.float64)


def resampled_means(sums: Floats, counts: Floats, resamples: int, seed: int) -> Floats:
    """The replicates: means over clusters drawn with replacement."""
    rng = np.random.default_rng(seed)
    n = len(sums)
    chunk = max(1, _CHUNK_CELLS // n)
    means = np.empty(resamples)
    for start in range(0, resamples, chunk):
        drawn = rng.integers(0, n, (min(chunk, resamples - start), n))
        means[start : start + len(drawn)] = sums[drawn].sum(1) / counts[drawn].sum(1)
    return means
