"""The verdict on a history: what readers of committed data have, against an offline fold of the same inputs in memory."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from treadle.log import Admin, Record, TailReader, read
from treadle_schemas import codec
from treadle_schemas.canonical import canonical_json
from treadle_schemas.topics import topic
from treadle_streams.join import Grading, MemoryPartition
from treadle_streams.join.clock import Input
from treadle_streams.join.workspace_memory import MemoryWorkspace

__all__ = ["Findings", "Outputs", "Seen", "Truth", "compare", "offline"]

SENT: Final[tuple[Input, ...]] = ("interactions", "outcomes")
"""What the history wrote; the third input is written by the join itself."""
UNORDERED: Final = frozenset({"part_missing"})
"""Reasons of dead letters that say when something was not there yet: faults may make more of them."""
_LATER_MS: Final = 60_000
"""After the last append: every metric's time is up, and nothing has expired."""

Dead = tuple[str, str]
Source = tuple[str, str, str, str]


@dataclass(slots=True)
class Truth:
    """What the offline fold says."""

    rows: dict[str, Any] = field(default_factory=dict)
    """Content by row id."""
    captured: int = 0
    dead: set[Dead] = field(default_factory=set)
    """(reason, content)."""
    sources: Counter[Source] = field(default_factory=Counter)
    """How often (reason, topic, partition, offset): an outcome by reference may lose against the same in several rows."""
    parts: set[tuple[int, bytes]] = field(default_factory=set)


@dataclass(slots=True)
class Findings:
    """What is not as it should be, in words. All four are to be empty."""

    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    duplicate: list[str] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lost or self.wrong or self.duplicate or self.unsettled)

    def __str__(self) -> str:
        named = {name: getattr(self, name) for name in ("lost", "wrong", "duplicate", "unsettled")}
        return "; ".join(f"{len(found)} {name}: {found[:3]}" for name, found in named.items() if found) or "nothing"


class _Sorted(MemoryPartition):
    """The same, with keys in order: one batch takes thousands of events in, and each asks for its siblings."""

    _order: list[bytes]
    _of: int = -1

    def keys(self, prefix: bytes, after: bytes = b"", limit: int = 0) -> list[bytes]:
        if self._of != self.transactions:
            self._of, self._order = self.transactions, sorted(self.records)
        start = max(bisect_right(self._order, after), bisect_left(self._order, prefix))
        found: list[bytes] = []
        for key in islice(self._order, start, None):
            if not key.startswith(prefix) or (limit and len(found) == limit):
                break
            found.append(key)
        return found


def offline(servers: str, grading: Grading) -> Truth:
    """Fold what is in the input topics, in one go and without faults. Raises LogError."""
    settings = grading.settings
    world = MemoryWorkspace(grading, 0)
    partitions: list[MemoryPartition] = [_Sorted(grading, p) for p in range(settings.partitions)]
    world.partitions = partitions
    for kind in SENT:
        for record in read(servers, topic(settings.workspace, kind), settings.partitions):
            world.now_ms = record.timestamp_ms
            world.append(kind, record.key, record.value or b"", record.headers, record.partition)
    world.now_ms = max(log[-1].append_ms for log in world.log.values() if log)
    world.drain()
    for n in range(3):  # what time brings may have its own time
        world.pass_time(world.now_ms + (_LATER_MS if n == 0 else 0))
    truth = Truth()
    for partition in world.partitions:
        truth.captured += partition.meta.counts.get("captured", 0)
        for emission in partition.outputs:
            headers = dict(emission.headers)
            if emission.stream == "graded":
                truth.rows[headers["row_id"].decode()] = _content(emission.value)
            elif emission.stream == "dead-letter":
                truth.dead.add((headers["reason"].decode(), _words(emission.value)))
                truth.sources[_source(headers)] += 1
            elif emission.stream == "part":
                truth.parts.add((partition.partition, emission.value or b""))
    return truth


@dataclass(slots=True)
class Seen:
    """What a reader of committed data has."""

    rows: dict[str, Any] = field(default_factory=dict)
    revisions: dict[str, list[int]] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    dead: set[Dead] = field(default_factory=set)
    sources: Counter[Source] = field(default_factory=Counter)
    parts: Counter[tuple[int, bytes]] = field(default_factory=Counter)

    def take(self, kind: str, record: Record) -> None:
        """The next record of `graded`, `progress` or `dead-letter`."""
        headers = codec.header_map(record.headers)
        if kind == "dead-letter":
            self.sources[_source(headers)] += 1
            self.dead.add((headers["reason"].decode(), _words(record.value)))
        elif headers["ce_type"] == codec.PART.encode():
            self.parts[record.partition, record.value or b""] += 1
        elif headers["ce_type"] == codec.GRADED.encode():
            row = headers["row_id"].decode()
            self.revisions.setdefault(row, []).append(int(headers["revision"]))
            self.rows[row] = _content(record.value)
        elif headers["ce_type"] == codec.PROGRESS.encode():
            self.progress[headers["row_id"].decode()] = json.loads(record.value or b"")["grade"]


class Outputs:
    """Reads the outputs of a workspace into `seen`; `read` goes on where it was."""

    def __init__(self, servers: str, workspace: str, partitions: int) -> None:
        self._kinds = {topic(workspace, kind): kind for kind in ("graded", "progress", "dead-letter")}
        self._admin = Admin(servers)
        self._reader = TailReader(servers, {(name, p): 0 for name in self._kinds for p in range(partitions)})
        self.seen = Seen()

    def read(self) -> None:
        """Everything that is there now. Raises LogError."""
        ends = self._admin.stable_offsets(list(self._reader.positions))
        while any(self._reader.positions[place] < end for place, end in ends.items()):
            for record in self._reader.poll(0.2):
                self.seen.take(self._kinds[record.topic], record)

    def close(self) -> None:
        """Let go of the connection."""
        self._reader.close()


def compare(truth: Truth, found: Seen) -> Findings:
    """Everything in which what was read differs from what is true."""
    out = Findings()
    out.lost += [f"row {row} is not on .graded" for row in sorted(truth.rows.keys() - found.rows.keys())]
    out.lost += [f"row {row} is not on .progress" for row in sorted(truth.rows.keys() - found.progress.keys())]
    out.lost += [f"dead letter {one}" for one in _ordered(truth.dead - found.dead)]
    out.lost += [f"part {one}" for one in sorted(truth.parts - found.parts.keys())]
    out.wrong += [f"row {row} should not be on .graded" for row in sorted(found.rows.keys() - truth.rows.keys())]
    out.wrong += [
        f"row {row} is {_difference(found.rows[row], truth.rows[row])}"
        for row in sorted(truth.rows.keys() & found.rows.keys())
        if found.rows[row] != truth.rows[row]
    ]
    out.wrong += [
        f".progress of row {row} says {_difference(said, found.rows[row]['grade'])}"
        for row, said in sorted(found.progress.items())
        if row in found.rows and said != found.rows[row]["grade"]
    ]
    out.wrong += [f"dead letter {one}" for one in _ordered(found.dead - truth.dead)]
    out.wrong += [f"part {one}" for one in sorted(found.parts.keys() - truth.parts)]
    out.duplicate += [
        f"row {row} has revisions {numbers}"
        for row, numbers in sorted(found.revisions.items())
        if numbers != list(range(1, len(numbers) + 1))
    ]
    out.duplicate += [
        f"dead letter of {source} came {n} times"
        for source, n in found.sources.items()
        if n > max(1, truth.sources[source])
    ]
    out.duplicate += [f"a part of partition {p} came {n} times" for (p, _), n in found.parts.items() if n > 1]
    out.unsettled += [f"row {row}" for row, said in sorted(found.progress.items()) if not said["settled"]]
    return out


def _source(headers: Mapping[str, bytes]) -> Source:
    reason, name, partition, offset = (headers[h].decode() for h in ("reason", "topic", "partition", "offset"))
    return reason, name, partition, offset


def _ordered(dead: Iterable[Dead]) -> list[Dead]:
    return sorted(one for one in dead if one[0] not in UNORDERED)


def _content(value: bytes | None) -> Any:
    row = json.loads(value or b"")
    del row["provenance"]
    return row


def _words(value: bytes | None) -> str:
    """Bytes of the same content are the same words."""
    try:
        return canonical_json(json.loads(value or b"")).decode()
    except ValueError:
        return repr(value)


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    keys = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
    return f"{ {k: found.get(k) for k in keys} } and not { {k: expected.get(k) for k in keys} }"
