"""Which rows are nearly equal, told by their sketches. Pure; arrays in, arrays out.

Two rows are near when at least `threshold` of their MINIMA minima agree. That relation is found completely: rows that differ in at most d
minima agree in at least one whole block wherever the minima are cut into d + 1 blocks, so only rows that share a block are compared.
Nothing depends on the order of rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from treadle_corpus._sketch import MINIMA, minima, turns

__all__ = ["components", "near_any"]

Ints: TypeAlias = npt.NDArray[np.int64]
Minima: TypeAlias = npt.NDArray[np.uint32]
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio, odd: multiplying by it loses nothing."""
_COMPARED: Final = 1 << 16
"""Rows compared with one at once: 8 MiB of minima."""


def components(sketches: Sequence[bytes], threshold: float) -> Ints:
    """For each row the smallest index of its group: rows joined by chains of near ones with as many answers of the assistant.

    Steps of one growing episode have different numbers of answers, so they are no duplicates of each other.
    """
    if not sketches:
        return np.empty(0, np.int64)
    values, count = minima(sketches), turns(sketches)
    firsts, member = _distinct(values, count)
    values, count = values[firsts], count[firsts]
    needed = _needed(threshold)
    parent = np.arange(len(firsts))
    for block in _blocks(needed):
        for bucket in _buckets(_mixed(values[:, block], count)):
            roots = _roots(parent, bucket)
            if (roots == roots[0]).all():
                continue
            _join(parent, bucket, values, needed)
    roots = _roots(parent, np.arange(len(parent)))
    return firsts[roots][member]


def near_any(sketches: Sequence[bytes], others: Sequence[bytes], threshold: float) -> npt.NDArray[np.bool_]:
    """For each row whether it is directly near any of `others`, however many answers either has."""
    found = np.zeros(len(sketches), np.bool_)
    if not sketches or not others:
        return found
    values, against = minima(sketches), minima(others)
    needed = _needed(threshold)
    for block in _blocks(needed):
        codes, other_codes = _mixed(values[:, block]), _mixed(against[:, block])
        shared = np.flatnonzero(np.isin(codes, other_codes) & ~found)
        order = np.argsort(other_codes, kind="stable")
        ordered = other_codes[order]
        starts = np.searchsorted(ordered, codes[shared])
        ends = np.searchsorted(ordered, codes[shared], side="right")
        for index, start, end in zip(shared, starts, ends, strict=True):
            found[index] = _near(values[index], against, order[start:end], needed).any()
    return found


def _needed(threshold: float) -> int:
    """How many minima have to agree."""
    return min(MINIMA, math.ceil(threshold * MINIMA - 1e-9))


def _blocks(needed: int) -> list[slice]:
    count = MINIMA - needed + 1
    edges = [n * MINIMA // count for n in range(count + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(edges)]


def _distinct(values: Minima, count: npt.NDArray[np.uint32]) -> tuple[Ints, Ints]:
    """The first row of each distinct sketch, ascending; and for each row which of those it is like."""
    _, firsts, member = np.unique(np.column_stack([values, count]), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return firsts[order], place[member.reshape(-1)]


def _mixed(columns: Minima, count: npt.NDArray[np.uint32] | None = None) -> npt.NDArray[np.uint64]:
    """One number for a block of minima. Different blocks may share one: those rows are then compared for nothing."""
    mixed: npt.NDArray[np.uint64] = np.zeros(len(columns), np.uint64) if count is None else count.astype(np.uint64)
    for n in range(columns.shape[1]):
        mixed = (mixed ^ columns[:, n]) * _MIX
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _buckets(codes: npt.NDArray[np.uint64]) -> Iterator[Ints]:
    """Rows that share a code, where there are two or more."""
    order = np.argsort(codes, kind="stable")
    edges = np.flatnonzero(np.diff(codes[order])) + 1
    bounds = np.concatenate([[0], edges, [len(codes)]])
    for n in np.flatnonzero(np.diff(bounds) > 1):
        yield order[bounds[n] : bounds[n + 1]]


def _join(parent: Ints, bucket: Ints, values: Minima, needed: int) -> None:
    """Join the rows of a bucket that are near, going from each one to all that it has not reached."""
    left = bucket
    while len(left) > 1:
        frontier, left = [left[0]], left[1:]
        while frontier and len(left):
            here = frontier.pop()
            near = _near(values[here], values, left, needed)
            reached = left[near]
            for other in reached:
                _union(parent, here, other)
            frontier.extend(reached)
            left = left[~near]


def _near(row: Minima, values: Minima, others: Ints, needed: int) -> npt.NDArray[np.bool_]:
    found = np.empty(len(others), np.bool_)
    for start in range(0, len(others), _COMPARED):
        part = others[start : start + _COMPARED]
        found[start : start + _COMPARED] = np.count_nonzero(values[part] == row, axis=1) >= needed
    return found


def _union(parent: Ints, one: Any, other: Any) -> None:
    a, b = _root(parent, one), _root(parent, other)
    if a != b:
        parent[max(a, b)] = min(a, b)


def _root(parent: Ints, index: Any) -> Any:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _roots(parent: Ints, indexes: Ints) -> Ints:
    found = parent[indexes]
    while True:
        above = parent[found]
        if (above == found).all():
            return found
        found = above
