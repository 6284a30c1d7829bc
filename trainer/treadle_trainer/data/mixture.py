"""Columns of a mixture: those of several sources as if they were one, read in an order that gives each source its share.

    mixed = MixedColumns([main, wins, anchor], [0.7, 0.2, 0.1])
    stream = TokenStream(mixed, mixed.meta.identity, batch=16, seed=1)

Tokens stay where they are, in the memory maps of their sources; only what says where they lie is put together, in memory. Examples, members
and sequences of a source are numbered behind those of the source before it, so whatever goes by these numbers is right for each source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from treadle_schemas.canonical import content_hash

from treadle_trainer.data.columns import ARRAYS, Columns
from treadle_trainer.data.order import BLOCK, POOL, drawn_before, mixed_order
from treadle_trainer.errors import DataRefused, TokenizerMismatch

__all__ = ["MixedColumns"]


class MixedColumns(Columns):
    """Columns of several sources. `path` and `meta` are those of the first, the corpus that is trained on; `len()` counts all examples."""

    def __init__(self, sources: Sequence[Columns], weights: Sequence[float]) -> None:
        """`weights` are positive and add up to 1. Raises TokenizerMismatch, DataRefused where a source is empty or of another view."""
        first = sources[0]
        for one in sources:
            if one.meta.identity != first.meta.identity:
                raise TokenizerMismatch(one.path, expected=str(first.meta.identity), found=str(one.meta.identity))
            if one.meta.view != first.meta.view or not len(one):
                raise DataRefused(
                    f"{one.path}: holds {len(one)} examples of the {one.meta.view} view, and some of {first.meta.view} are mixed"
                )
        self.sources = tuple(sources)
        self.weights = tuple(weights)
        self._firsts = np.cumsum([0, *(len(one) for one in sources)])
        super().__init__(first.path, first.meta, _joined(self.sources))

    @property
    def label(self) -> str:
        """Of every source, and the weights."""
        said = [[one.label for one in self.sources], list(self.weights)]
        return f"{self.sources[0].label}+{content_hash(said)[:16]}"

    def order(self, seed: int, epoch: int, *, block: int = BLOCK, pool: int = POOL) -> NDArray[np.int64]:
        """One pass over the first source, and of each other one its share."""
        return mixed_order(self._counts, self.weights, seed, epoch, block=block, pool=pool)

    def drawn(self, epoch: int) -> int:
        """How many examples an epoch has."""
        before, after = (sum(drawn_before(self._counts, self.weights, e)) for e in (epoch, epoch + 1))
        return after - before

    @property
    def source_count(self) -> int:
        """How many sources there are."""
        return len(self.sources)

    def source_of(self, examples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The place of each example's source in `sources`."""
        return np.searchsorted(self._firsts, examples, side="right") - 1

    def members_of(self, source: int) -> slice:
        """Where the members of a source stand, in `members` and `value`."""
        begin, end = self.member_bounds[self._firsts[source]], self.member_bounds[self._firsts[source + 1]]
        return slice(int(begin), int(end))

    @property
    def _counts(self) -> list[int]:
        return [len(one) for one in self.sources]


class _Slices:
    """Arrays one behind the other, of which runs are read that lie inside one of them: nothing is copied."""

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self._arrays = arrays
        self._firsts = np.cumsum([0, *(len(one) for one in arrays)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, where: slice) -> NDArray[Any]:
        start, stop = int(where.start), int(where.stop)
        n = int(np.searchsorted(self._firsts, start, side="right")) - 1
        if n == len(self._arrays):  # an empty run at the end
            return self._arrays[-1][:0]
        first = int(self._firsts[n])
        return self._arrays[n][start - first : stop - first]


def _joined(sources: Sequence[Columns]) -> dict[str, Any]:
    """The arrays of all sources, by name: tokens by runs, the rest copied, with what points into other arrays moved on."""
    logprobs = [_logprobs(one) for one in sources] if any(one.logprobs is not None for one in sources) else []
    out: dict[str, Any] = {"ids": _Slices([one.ids for one in sources]), "logprobs": _Slices(logprobs or [_NONE])}
    for name in ARRAYS:
        if name in ("logprobs", "digests"):  # digests are for making columns, not for reading them
            out.setdefault(name, _NONE)
            continue
        arrays = [np.asarray(getattr(one, name)) for one in sources]
        if name in ("bounds", "span_bounds", "member_bounds"):
            out[name] = _behind(arrays)
        elif name in ("members", "conversations"):
            firsts = np.cumsum([0, *(len(one.bounds) - 1 for one in sources)])[:-1]
            moved = [a.astype(np.int64) for a in arrays]
            for numbers, first in zip(moved, firsts, strict=True):
                at = numbers if name == "members" else numbers[:, 0]
                at += first
            out[name] = np.concatenate(moved)
        else:
            out[name] = np.concatenate(arrays)
    return out


_NONE = np.empty(0, np.float32)


def _behind(arrays: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    out, first = [arrays[0][:1]], 0
    for bounds in arrays:
        out.append(bounds[1:] + first)
        first += int(bounds[-1])
    return np.concatenate(out)


def _logprobs(columns: Columns) -> NDArray[np.float32]:
    if columns.logprobs is not None:
        return columns.logprobs
    # one number seen everywhere: as long as the tokens, and no larger than a number
    return np.broadcast_to(np.float32(np.nan), (int(columns.bounds[-1]),))
