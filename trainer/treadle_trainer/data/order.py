"""In which order examples are read, and who reads which. Pure: a function of the number of examples, seed and epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "POOL", "Shard", "epoch_order", "even_batches", "pack"]

BLOCK: Final = 64
"""Examples that lie beside each other are read beside each other: about 100 KB of tokens, so a disk reads and never seeks."""
POOL: Final = 64
"""So many blocks from everywhere are mixed with each other: 4,096 examples, from which a batch is drawn as if at random."""
OPEN_BINS: Final = 16
WINDOW: Final = 32
"""Batches whose examples are sorted by length together: padding shrinks to a few percent, and chance still says what is in a batch."""


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


def even_batches(
    lengths: NDArray[np.int64], batch: int, seed: int, epoch: int, *, window: int = WINDOW
) -> list[NDArray[np.int64]]:
    """Batches of positions of like length: in each window of `window` batches sorted by length, cut, and the batches shuffled.

    What does not fill a batch is the last one, made of the end of the order.
    """
    rng = _rng("batches", seed, epoch, len(lengths), batch, window)
    whole = len(lengths) // batch * batch
    out: list[NDArray[np.int64]] = []
    for start in range(0, whole, batch * window):
        stop = min(start + batch * window, whole)
        places = start + np.argsort(lengths[start:stop], kind="stable")
        cut = places.reshape(-1, batch)
        out += list(cut[rng.permutation(len(cut))])
    if whole < len(lengths):
        out.append(np.arange(whole, len(lengths)))
    return out


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
