"""The order of a mixture: every stretch has each source's share, nothing is skipped, and any number of readers take it apart."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from treadle_trainer.data.order import (
    SHUFFLED,
    Shard,
    drawn_before,
    epoch_order,
    even_batches,
    mixed_order,
)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[int], list[float]]:
    """Examples and weights of two to four sources; the first takes what the others leave."""
    others = draw(st.lists(st.integers(1, 30), min_size=1, max_size=3))
    weights = [share / 100 for share in others]
    counts = draw(st.lists(st.integers(1, 200), min_size=len(weights) + 1, max_size=len(weights) + 1))
    return counts, [1 - sum(weights), *weights]


def kinds_of(order: NDArray[np.int64], counts: list[int]) -> NDArray[np.int64]:
    return np.searchsorted(np.cumsum(counts), order, side="right")


@given(mixtures(), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_the_first_p_examples_hold_each_source_by_its_weight(mixture: tuple[list[int], list[float]], seed: int) -> None:
    counts, weights = mixture
    order = np.concatenate([mixed_order(counts, weights, seed, epoch) for epoch in range(3)])
    kinds = kinds_of(order, counts)
    p = np.arange(len(order) + 1)
    for n, weight in enumerate(weights):
        found = np.concatenate([[0], np.cumsum(kinds == n)])
        assert np.abs(found - p * weight).max() <= 0.5 + weight * len(weights) / 2 + 1e-6


@given(mixtures(), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_every_source_is_gone_through_before_it_is_repeated(mixture: tuple[list[int], list[float]], seed: int) -> None:
    counts, weights = mixture
    epochs = [mixed_order(counts, weights, seed, epoch) for epoch in range(4)]
    order = np.concatenate(epochs)
    for one, epoch in zip(epochs, range(4), strict=True):
        assert one[one < counts[0]].tolist() == epoch_order(counts[0], seed, epoch).tolist()
        begins, ends = (drawn_before(counts, weights, e) for e in (epoch, epoch + 1))
        assert np.bincount(kinds_of(one, counts), minlength=len(counts)).tolist() == [
            b - a for a, b in zip(begins, ends, strict=True)
        ]
    first = 0
    for count in counts:
        own = order[(order >= first) & (order < first + count)] - first
        for start, stop in pairwise([*range(0, len(own), count), len(own)]):
            seen = Counter(own[start:stop].tolist())
            assert max(seen.values()) == 1
        first += count
    again = np.concatenate([mixed_order(counts, weights, seed, epoch) for epoch in range(4)])
    assert again.tolist() == order.tolist()


def test_passes_over_a_small_source_are_fresh_shuffles() -> None:
    order = mixed_order([1000, 5], [0.5, 0.5], 3, 0)
    passes = order[order >= 1000].reshape(-1, 5)
    assert len(passes) == 200
    assert len({tuple(one) for one in passes.tolist()}) > 60  # of 120 orders
    large = SHUFFLED + 7
    one = mixed_order([large, large], [0.5, 0.5], 3, 0)
    assert sorted(one.tolist()) == list(range(2 * large))
    assert one[one >= large].tolist() != (one[one < large] + large).tolist()


@given(mixtures(), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_readers_take_an_epoch_apart(mixture: tuple[list[int], list[float]], ranks: int, workers: int) -> None:
    counts, weights = mixture
    order = mixed_order(counts, weights, 1, 2)
    parts = [
        order[Shard(rank, ranks, worker, workers).part(len(order))]
        for rank in range(ranks)
        for worker in range(workers)
    ]
    assert np.concatenate(parts).tolist() == order.tolist()


@given(mixtures(), st.integers(2, 12), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_each_batch_and_each_ranks_part_of_it_has_its_share(
    mixture: tuple[list[int], list[float]], batch: int, ranks: int
) -> None:
    counts, weights = mixture
    batch *= ranks
    order = mixed_order(counts, weights, 5, 0)
    kinds = kinds_of(order, counts)
    lengths = np.random.RandomState(0).randint(1, 100, len(order))
    batches = even_batches(lengths, batch, 5, 0, kinds=kinds)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(order)))
    stretches = sorted(tuple(sorted(row)) for row in kinds[: len(order) // batch * batch].reshape(-1, batch).tolist())
    whole = [one for one in batches if len(one) == batch]
    assert sorted(tuple(sorted(kinds[one].tolist())) for one in whole) == stretches
    for one in whole:
        shares = [np.bincount(kinds[one][rank::ranks], minlength=len(counts)) for rank in range(ranks)]
        assert np.ptp(shares, axis=0).max() <= 1


@pytest.mark.parametrize("count", [1, 7, 100, 999])
def test_without_sources_batches_are_what_they_were(count: int) -> None:
    lengths = np.random.RandomState(1).randint(1, 50, count)
    one_kind = even_batches(lengths, 8, 3, 1, kinds=np.zeros(count, np.int64))
    assert [b.tolist() for b in one_kind] == [b.tolist() for b in even_batches(lengths, 8, 3, 1)]
    assert mixed_order([count], [1.0], 3, 1).tolist() == epoch_order(count, 3, 1).tolist()
