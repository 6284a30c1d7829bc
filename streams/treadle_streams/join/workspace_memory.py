"""A whole workspace of the join in memory: logs of the inputs, every partition, and what they write to each other through `.references`.

Drive it step by step, in any order of partitions and topics, in tests or for an offline fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from treadle_schemas import codec
from treadle_schemas.partitioner import partition_of

from treadle_streams.join.arrivals import Arrival
from treadle_streams.join.clock import END_MARGIN_MS, INPUTS, Input
from treadle_streams.join.emissions import Emission
from treadle_streams.join.grading import Grading
from treadle_streams.join.memory import MemoryPartition

__all__ = ["MemoryWorkspace"]

_TYPES: Final = {"announcement": codec.REFERENCE, "rekeyed": codec.OUTCOME}


class MemoryWorkspace:
    """`append` puts a record at the end of its partition at the broker time `now_ms`; `step` lets one partition take some of them in."""

    def __init__(self, grading: Grading, now_ms: int) -> None:
        self.workspace = grading.settings.workspace
        self.partitions = [MemoryPartition(grading, p) for p in range(grading.settings.partitions)]
        self.log: dict[tuple[Input, int], list[Arrival]] = {
            (kind, p): [] for kind in INPUTS for p in range(len(self.partitions))
        }
        self.now_ms = now_ms

    def append(
        self,
        kind: Input,
        key: bytes | None,
        value: bytes,
        headers: Sequence[tuple[str, bytes | str | None]],
        partition: int | None = None,
    ) -> Arrival:
        """Write a record; without `partition` to the one of its key."""
        place = partition_of(key or b"", len(self.partitions)) if partition is None else partition
        log = self.log[kind, place]
        record = Arrival(kind, place, len(log), self.now_ms, key, value, list(headers))
        log.append(record)
        return record

    def unread(self, partition: int) -> int:
        """How many records a partition has not taken in."""
        offsets = self.partitions[partition].meta.offsets
        return sum(len(self.log[kind, partition]) - offsets.get(kind, 0) for kind in INPUTS)

    def step(self, partition: int, limits: Mapping[Input, int] | None = None) -> list[Emission]:
        """One batch of a partition: up to so many records of each topic, topic by topic as `limits` has them (default: all).

        A topic without more records counts as at its end now.
        """
        one = self.partitions[partition]
        offsets = one.meta.offsets
        arrivals: list[Arrival] = []
        at_end_ms: dict[str, int] = {}
        for kind in INPUTS if limits is None else limits:
            log, at = self.log[kind, partition], offsets.get(kind, 0)
            found = log[at:] if limits is None else log[at : at + limits[kind]]
            arrivals += found
            if at + len(found) == len(log):
                at_end_ms[kind] = self.now_ms + END_MARGIN_MS
        written = one.step(arrivals, at_end_ms=at_end_ms)
        for emission in written:
            if emission.stream in _TYPES:
                headers = codec.make_headers(_TYPES[emission.stream], self.workspace, source="treadle/join")
                self.append(
                    "references",
                    emission.key,
                    emission.value or b"",
                    headers + emission.headers,
                    partition if emission.partition is None else emission.partition,
                )
        return written

    def drain(self, topics: Sequence[Input] = INPUTS) -> None:
        """Let every partition take in what there is, topic by topic, and what they write to each other."""
        while any(self.unread(p) for p in range(len(self.partitions))):
            for p in range(len(self.partitions)):
                self.step(p, {kind: len(self.log[kind, p]) for kind in topics})

    def pass_time(self, now_ms: int) -> None:
        """Everything is read, and it is `now_ms`."""
        self.now_ms = now_ms
        for p in range(len(self.partitions)):
            self.step(p)
        self.drain()
