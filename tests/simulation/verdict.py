"""The verdict on a schedule: what readers of committed data have, against an offline fold of the same events."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

from treadle_schemas import codec
from treadle_schemas.canonical import canonical_json
from treadle_streams.join import INPUTS, META_KEY, Grading, Meta
from treadle_streams.join.workspace_memory import MemoryWorkspace

from simulation.cluster import Cluster

__all__ = ["UNORDERED", "offline", "verdict"]

UNORDERED: Final = frozenset({"part_missing"})
"""Reasons of dead letters that say when something was not there yet: they may be more than the offline fold's."""

Rows = dict[str, Any]


def offline(cluster: Cluster, grading: Grading, clock_ms: int) -> tuple[Rows, set[tuple[str, str]]]:
    """The content of each row, and the (reason, content) of each dead letter, of the producers' events in one go, without faults."""
    world = MemoryWorkspace(grading, 0)
    for kind in INPUTS:
        for p in range(cluster.partitions):
            for entry in cluster.log[cluster.topic(kind), p].entries:
                if entry.share is None and not entry.marker:
                    world.now_ms = entry.append_ms
                    world.append(kind, entry.key, entry.value or b"", entry.headers, p)
    world.drain()
    for _ in range(3):  # what time brings may have its own time
        world.pass_time(clock_ms)
    rows: Rows = {}
    dead: set[tuple[str, str]] = set()
    for partition in world.partitions:
        for emission in partition.outputs:
            headers = dict(emission.headers)
            if emission.stream == "graded":
                rows[headers["row_id"].decode()] = _content(emission.value)
            elif emission.stream == "dead-letter":
                dead.add((headers["reason"].decode(), _words(emission.value)))
    return rows, dead


def verdict(cluster: Cluster, grading: Grading, clock_ms: int) -> list[str]:
    """What is wrong, in words; nothing, if all is well."""
    expected, expected_dead = offline(cluster, grading, clock_ms)
    wrong: list[str] = []
    last: Rows = {}
    revisions: dict[str, list[int]] = {}
    sources: Counter[tuple[Any, ...]] = Counter()
    episodes: dict[bytes | None, set[str]] = {}
    """By what it is called in events: the episodes that announced it. What is said of it is said of each of them."""
    parts: Counter[tuple[int, bytes]] = Counter()
    regraded: list[tuple[int, int]] = []
    """(partition, grading version) of the markers behind rows that were graded anew."""
    dead: set[tuple[str, str]] = set()
    progress: Rows = {}
    for p in range(cluster.partitions):
        for _, entry in cluster.log[cluster.topic("graded"), p].committed():
            headers = dict(entry.headers)
            if "row_id" in headers:
                row = headers["row_id"].decode()
                revisions.setdefault(row, []).append(int(headers["revision"]))
                last[row] = _content(entry.value)
            elif headers["ce_type"] == codec.REGRADED.encode():
                regraded.append((p, json.loads(entry.value or b"")["grading_version"]))
            else:
                parts[p, entry.value or b""] += 1
        for _, entry in cluster.log[cluster.topic("references"), p].committed():
            if dict(entry.headers)["ce_type"] == codec.REFERENCE.encode():
                episodes.setdefault(entry.key, set()).add(json.loads(entry.value or b"")["episode_id"])
        for _, entry in cluster.log[cluster.topic("dead-letter"), p].committed():
            headers = dict(entry.headers)
            reason = headers["reason"].decode()
            sources[reason, headers["topic"], headers["partition"], headers["offset"], entry.key] += 1
            dead.add((reason, _words(entry.value)))
        for _, entry in cluster.log[cluster.topic("progress"), p].committed():
            headers = dict(entry.headers)
            if "row_id" in headers:
                progress[headers["row_id"].decode()] = json.loads(entry.value or b"")
        wrong += _state(cluster, p)
    wrong += [f"lost: row {row} is not on .graded" for row in expected.keys() - last.keys()]
    wrong += [f"wrong: row {row} should not be on .graded" for row in last.keys() - expected.keys()]
    wrong += [
        f"wrong: row {row} is {_difference(last[row], expected[row])}"
        for row in sorted(expected.keys() & last.keys())
        if last[row] != expected[row]
    ]
    wrong += [
        f"wrong: .progress says of row {row} {_difference(said['grade'], last[row]['grade'])}"
        for row, said in sorted(progress.items())
        if row in last and said["grade"] != last[row]["grade"]
    ]
    wrong += [
        f"duplicate: row {row} has revisions {found}"
        for row, found in sorted(revisions.items())
        if found != list(range(1, len(found) + 1))
    ]
    wrong += [
        f"duplicate: dead letter of {source} came {n} times"
        for source, n in sources.items()
        if n > max(1, len(episodes.get(source[-1], ())))
    ]
    wrong += [f"duplicate: a part of partition {p} came {n} times" for (p, _), n in parts.items() if n > 1]
    wrong += [f"duplicate: marker {one} came {n} times" for one, n in Counter(regraded).items() if n > 1]
    now = grading.settings.grading_version
    wrong += [f"lost: no marker of version {now} on {p}" for p in range(cluster.partitions) if (p, now) not in regraded]
    wrong += [f"lost: dead letter {one}" for one in sorted(expected_dead - dead) if one[0] not in UNORDERED]
    wrong += [f"wrong: dead letter {one}" for one in sorted(dead - expected_dead) if one[0] not in UNORDERED]
    return wrong


def _state(cluster: Cluster, partition: int) -> list[str]:
    """The owner's local state against the changelog, and the group's positions against META."""
    wanted: dict[bytes, bytes | None] = {}
    for _, entry in cluster.log[cluster.topic("changelog"), partition].committed():
        assert entry.key is not None
        wanted[entry.key] = entry.value
    kept = {key: value for key, value in wanted.items() if value is not None}
    meta = Meta.decode(kept[META_KEY])
    wrong = []
    for kind in INPUTS:
        place = cluster.topic(kind), partition
        if cluster.log.positions.get(place, 0) != meta.offsets.get(kind, 0):
            wrong.append(f"wrong: position of {place} is {cluster.log.positions.get(place)}, META has {meta.offsets}")
    for process in cluster.processes.values():
        if partition in process.lane.view.metas:
            data = process.disks[partition].data
            local = {
                key: value for key, value in data.items() if not key.startswith(b"\0") and not key.startswith(b"__")
            }
            rows = {key: value for key, value in kept.items() if not key.startswith(b"\0")}
            if local != rows or data.get(META_KEY) != kept[META_KEY]:
                wrong.append(f"wrong: local state of partition {partition} is not what the changelog says")
    return wrong


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


def _difference(found: Any, expected: Any) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = [k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)]
        return f"{ {k: found.get(k) for k in sorted(keys)} } and not { {k: expected.get(k) for k in sorted(keys)} }"
    return f"{found} and not {expected}"
