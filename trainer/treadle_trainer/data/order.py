"""In which order examples are read, and who reads which. Pure: a function of the numbers of examples, weights, seed and epoch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "POOL", "Shard", "drawn_before", "epoch_order", "even_batches", "mixed_order", "pack"]

BLOCK: Final = 64
"""Examples that lie beside each other are read beside each other: about 100 KB of tokens, so a disk reads and never seeks."""
POOL: Final = 64
"""So many blocks from everywhere are mixed with each other: 4,096 examples, from which a batch is drawn as if at random."""
OPEN_BINS: Final = 16
WINDOW: Final = 32
"""Batches whose examples are sorted by length together: padding shrinks to a few percent, and chance still says what is in a batch."""
SHUFFLED: Final = 4096
"""A source with fewer examples is shuffled several passes at a time: one generator for each pass of ten examples would cost seconds."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One reader among many: worker `worker` of `workers` in rank `rank` of `ranks`."""

    rank: int = 0
    ranks: int = 1
    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.ranks and 0 <= self.worker < self.workers):
            raise ValueError(f"{self}: rank and worker count from 0 and stay below ranks and workers")

    def part(self, count: int) -> slice:
        """Its share of an order of `count` examples: shares follow each other and differ by one in length at most."""
        readers, this = self.ranks * self.workers, self.rank * self.workers + self.worker
        return slice(count * this // readers, count * (this + 1) // readers)


def epoch_order(count: int, seed: int, epoch: int, *, block: int = BLOCK, pool: int = POOL) -> NDArray[np.int64]:
    """A permutation of `range(count)`: blocks of `block` neighbours shuffled, then `pool` blocks at a time mixed through.

    The same arguments give the same order on every machine and with every numpy, since RandomState is frozen.
    """
    rng = _rng("order", seed, epoch, count, block, pool)
    blocks = rng.permutation(-(-count // block))
    order = (blocks[:, None] * block + np.arange(block)).ravel()
    order = order[order < count].astype(np.int64)
    for start in range(0, count, block * pool):
        rng.shuffle(order[start : start + block * pool])
    return order


def drawn_before(counts: Sequence[int], weights: Sequence[float], epoch: int) -> list[int]:
    """How many examples of each source of a mixture the epochs before `epoch` draw.

    An epoch is one pass over the first source, of n examples and weight w_0. Of a source with weight w_i all epochs before it draw

        ceil(epoch n w_i / w_0 - 1/2)

    whatever its own size: one that is smaller than its share is repeated, one that is larger is walked through over several epochs.
    """
    first, share = counts[0], weights[0]
    return [epoch * first, *(math.ceil(epoch * first * weight / share - 0.5) for weight in weights[1:])]


def mixed_order(
    counts: Sequence[int], weights: Sequence[float], seed: int, epoch: int, *, block: int = BLOCK, pool: int = POOL
) -> NDArray[np.int64]:
    """One epoch of a mixture; the examples of each source are numbered behind those of the source before it.

    The j-th draw of source i stands at (j + 1/2) / w_i on a line that all epochs share, and draws are read from left to right. Up to T
    on that line are T w_i draws of source i, within 1/2; so among the first p of k sources it has p w_i, within 1/2 + w_i k / 2. The
    draws of a source are its passes in fresh shuffles, one behind the other, those of the first source as `epoch_order` gives them.
    """
    starts, stops = (drawn_before(counts, weights, e) for e in (epoch, epoch + 1))
    at, examples, first = [], [], 0
    for n, (count, weight, start, stop) in enumerate(zip(counts, weights, starts, stops, strict=True)):
        at.append((np.arange(start, stop) + 0.5) / weight)
        if n == 0:
            drawn = epoch_order(count, seed, epoch, block=block, pool=pool)
        else:
            drawn = _draws(count, int(_rng("source", seed, n).randint(1 << 31)), start, stop, block, pool)
        examples.append(first + drawn)
        first += count
    together: NDArray[np.int64] = np.concatenate(examples)[np.argsort(np.concatenate(at), kind="stable")]
    return together


def _draws(count: int, seed: int, start: int, stop: int, block: int, pool: int) -> NDArray[np.int64]:
    """Draws `start` to `stop` of a source that is read again and again, each pass in an order of its own."""
    passes = max(1, SHUFFLED // count)
    size = count * passes
    found = [np.empty(0, np.int64)]
    for n in range(start // size, -(-stop // size)):
        if passes == 1:
            made = epoch_order(count, seed, n, block=block, pool=pool)
        else:
            keys = _rng("passes", seed, n, count).random_sample((passes, count))
            made = np.argsort(keys, axis=1, kind="stable").ravel()
        found.append(made[max(start - n * size, 0) : stop - n * size])
    return np.concatenate(found)


def even_batches(
    lengths: NDArray[np.int64],
    batch: int,
    seed: int,
    epoch: int,
    *,
    kinds: NDArray[np.int64] | None = None,
    window: int = WINDOW,
) -> list[NDArray[np.int64]]:
    """Batches of positions of like length: in each window of `window` batches sorted by length, cut, and the batches shuffled.

    With `kinds`, the source of each position, a batch has as many of each as its stretch of the order, sources one behind the other: of
    each source its like length. What does not fill a batch is the last one, made of the end of the order.
    """
    rng = _rng("batches", seed, epoch, len(lengths), batch, window)
    whole = len(lengths) // batch * batch
    out: list[NDArray[np.int64]] = []
    for start in range(0, whole, batch * window):
        stop = min(start + batch * window, whole)
        cut = _sorted(lengths[start:stop], None if kinds is None else kinds[start:stop], batch)
        out += list(start + cut[rng.permutation(len(cut))])
    if whole < len(lengths):
        out.append(np.arange(whole, len(lengths)))
    return out


def _sorted(lengths: NDArray[np.int64], kinds: NDArray[np.int64] | None, batch: int) -> NDArray[np.int64]:
    """One window of batches, of [batches, batch]."""
    if kinds is None:
        return np.argsort(lengths, kind="stable").reshape(-1, batch)
    out = np.empty(len(lengths), np.int64)
    for kind in np.unique(kinds):
        own = np.flatnonzero(kinds == kind)
        out[own] = own[np.argsort(lengths[own], kind="stable")]
    # a rank takes every so-manieth of a batch: with sources one behind the other it has its part of each
    apart = np.argsort(kinds.reshape(-1, batch), axis=1, kind="stable")
    return np.take_along_axis(out.reshape(-1, batch), apart, axis=1)


def pack(lengths: Sequence[int], capacity: int) -> Iterator[list[int]]:
    """Bins of positions whose lengths add up to at most `capacity`: each goes into the first open bin that has room.

    At most OPEN_BINS are open; the fullest is given out when none has room. What one bin holds depends on nothing but lengths.
    """
    bins: list[tuple[list[int], int]] = []
    for at, length in enumerate(lengths):
        if length > capacity:
            raise ValueError(f"sequence {at} has {length} tokens, and a bin holds {capacity}")
        for n, (held, used) in enumerate(bins):
            if used + length <= capacity:
                held.append(at)
                bins[n] = (held, used + length)
                break
        else:
            if len(bins) == OPEN_BINS:
                full = max(range(OPEN_BINS), key=lambda n: bins[n][1])
                yield bins.pop(full)[0]
            bins.append(([at], length))
    for held, _ in bins:
        yield held


def _rng(*what: object) -> np.random.RandomState:
    return np.random.RandomState(np.frombuffer(hashlib.sha256(repr(what).encode()).digest(), "<u4"))
