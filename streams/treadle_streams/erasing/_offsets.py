"""Offsets of records, as ranges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

__all__ = ["Places", "ranges"]


class Places:
    """Records of several topics: how many, and where."""

    def __init__(self) -> None:
        self._offsets: dict[tuple[str, int], list[int]] = defaultdict(list)

    def add(self, topic: str, partition: int, offset: int) -> None:
        """One more record."""
        self._offsets[topic, partition].append(offset)

    def __len__(self) -> int:
        return sum(map(len, self._offsets.values()))

    def topics(self) -> list[str]:
        """The topics that have any, sorted."""
        return sorted({topic for topic, _ in self._offsets})

    def of(self, topic: str) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """(partition, ranges of offsets, both ends included) of a topic."""
        for (name, partition), offsets in sorted(self._offsets.items()):
            if name == topic:
                yield partition, list(ranges(offsets))

    def lines(self) -> list[str]:
        """A line a topic and partition: `treadle.shop.interactions[0]: 3-7, 12`."""
        return [
            f"{topic}[{partition}]: {', '.join(str(a) if a == b else f'{a}-{b}' for a, b in found)}"
            for topic in self.topics()
            for partition, found in self.of(topic)
        ]


def ranges(offsets: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers, both ends included."""
    ordered = sorted(set(offsets))
    if not ordered:
        return
    start = ordered[0]
    for before, after in pairwise(ordered):
        if after != before + 1:
            yield start, before
            start = after
    yield start, ordered[-1]
