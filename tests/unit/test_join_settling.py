"""Rows settle by time: on idle partitions and workspaces, under a slow partition, in a backfill beside live traffic, after a replay."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from treadle_schemas import GradedRow, Metric, WorkspaceSettings, codec
from treadle_schemas.moments import from_micros
from treadle_schemas.partitioner import partition_of
from treadle_streams.join import IMPORT_PATIENCE_MS, Grading
from treadle_streams.join.workspace_memory import MemoryWorkspace

T0_MS = 1_700_000_000_000
HORIZON_MS, GRACE_MS = 100_000, 10_000
UP_MS = HORIZON_MS + GRACE_MS
SETTINGS = WorkspaceSettings(
    workspace="shop",
    partitions=3,
    metrics=(Metric(name="reward", required=True, horizon_s=HORIZON_MS / 1000),),
    grace_s=GRACE_MS / 1000,
)


def workspace() -> MemoryWorkspace:
    return MemoryWorkspace(Grading(SETTINGS), T0_MS)


def send(
    memory: MemoryWorkspace, kind: Any, event_type: str, data: dict[str, Any], import_id: str | None = None
) -> None:
    headers = codec.make_headers(event_type, "shop", source="test", import_id=import_id)
    memory.append(kind, data["interaction_id"].encode(), json.dumps(data).encode(), list(headers))


def interaction(memory: MemoryWorkspace, name: str, ended_ms: int | None = None, import_id: str | None = None) -> None:
    ended = from_micros((memory.now_ms if ended_ms is None else ended_ms) * 1000)
    data = {
        "interaction_id": name,
        "agent": "bot",
        "task_id": "t",
        "messages": [{"role": "user", "content": "hi"}],
        "started_at": ended,
        "ended_at": ended,
    }
    send(memory, "interactions", codec.INTERACTION, data, import_id)


def outcome(memory: MemoryWorkspace, name: str, value: float, import_id: str | None = None) -> None:
    data = {"interaction_id": name, "name": "reward", "value": value, "outcome_id": "o"}
    data["observed_at"] = from_micros(T0_MS * 1000)
    send(memory, "outcomes", codec.OUTCOME, data, import_id)


def markers(memory: MemoryWorkspace, phase: str) -> None:
    headers = codec.make_headers(codec.IMPORT_MARKER, "shop", source="test")
    value = json.dumps({"import_id": "imp", "phase": phase}).encode()
    for p in range(3):
        memory.append("interactions", None, value, list(headers), p)
        memory.append("outcomes", None, value, list(headers), p)


def settled(memory: MemoryWorkspace) -> dict[str, Any]:
    """The state of the metric of every row on `.graded`, as of its last revision."""
    rows = [
        msgspec.json.decode(e.value or b"", type=GradedRow)
        for p in memory.partitions
        for e in p.outputs
        if e.stream == "graded"
    ]
    return {row.interaction_id: row.grade.metrics["reward"] for row in rows}


ABSENT = ("absent", None)
NAMES = {partition_of(name.encode(), 3): name for name in "abcdefgh"}
"""One name for each partition."""


def test_a_row_settles_on_a_partition_where_nothing_comes_any_more() -> None:
    memory = workspace()
    interaction(memory, NAMES[0])
    memory.drain()
    memory.pass_time(T0_MS + UP_MS)
    assert settled(memory) == {}
    memory.pass_time(T0_MS + UP_MS + 1)
    assert settled(memory) == {NAMES[0]: ABSENT}
    assert memory.partitions[0].meta.clock_ms == T0_MS + UP_MS + 1


def test_a_row_settles_in_a_workspace_that_rests_and_needs_no_transaction_until_then() -> None:
    memory = workspace()
    interaction(memory, NAMES[1])
    memory.drain()
    before = [p.transactions for p in memory.partitions]
    for second in range(1, UP_MS // 1000, 7):
        memory.pass_time(T0_MS + second * 1000)
    assert [p.transactions for p in memory.partitions] == before
    memory.pass_time(T0_MS + UP_MS + 1)
    assert settled(memory) == {NAMES[1]: ABSENT}


def test_under_a_slow_partition_its_own_rows_wait_and_no_others() -> None:
    memory = workspace()
    for name in NAMES.values():
        interaction(memory, name)
    memory.drain()
    memory.now_ms = T0_MS + 10
    outcome(memory, NAMES[0], 1.0)  # in time, and not read for a long while
    memory.now_ms = T0_MS + UP_MS + 1
    for p in (1, 2):
        memory.step(p)
    memory.step(0, {"interactions": 100, "references": 100})
    assert settled(memory) == {NAMES[1]: ABSENT, NAMES[2]: ABSENT}
    assert memory.partitions[0].meta.clock_ms <= T0_MS + 10
    memory.step(0)
    assert settled(memory)[NAMES[0]] == ("observed", 1.0)
    revisions = [e for e in memory.partitions[0].outputs if e.stream == "graded"]
    assert len(revisions) == 1, "it was never absent"


def test_a_topic_that_is_not_at_its_end_holds_the_clock_at_what_was_read_of_it() -> None:
    memory = workspace()
    interaction(memory, NAMES[0])
    memory.now_ms = T0_MS + UP_MS + 500
    for n in range(3):
        outcome(memory, NAMES[0], float(n))
    memory.step(0, {"outcomes": 1, "interactions": 9, "references": 9})
    assert memory.partitions[0].meta.clock_ms == T0_MS + UP_MS + 500, "it read up to there"
    memory.now_ms += 60_000
    memory.step(0, {"outcomes": 1, "interactions": 9, "references": 9})
    assert memory.partitions[0].meta.clock_ms == T0_MS + UP_MS + 500


def test_a_backfill_beside_live_traffic_delays_no_live_row_and_settles_none_of_its_own_before_its_outcomes() -> None:
    memory = workspace()
    live = NAMES[0]
    old = [name for name in (f"old{n}" for n in range(40)) if partition_of(name.encode(), 3) == 0][:5]
    interaction(memory, live)
    markers(memory, "begin")
    for name in old:
        interaction(memory, name, T0_MS - 400 * 86_400_000, "imp")  # its time was up a year ago
    memory.drain()
    memory.pass_time(T0_MS + UP_MS + 1)
    assert settled(memory) == {live: ABSENT}
    for name in old:
        outcome(memory, name, 0.5, "imp")
    memory.drain()
    markers(memory, "end")
    memory.drain()
    memory.pass_time(memory.now_ms + 1)
    assert settled(memory) == {live: ABSENT, **dict.fromkeys(old, ("observed", 0.5))}


def test_a_backfill_that_was_cut_off_settles_after_an_hour_of_clock() -> None:
    memory = workspace()
    markers(memory, "begin")
    interaction(memory, NAMES[0], T0_MS - 400 * 86_400_000, "imp")
    memory.drain()
    memory.pass_time(T0_MS + IMPORT_PATIENCE_MS)
    assert settled(memory) == {}
    memory.pass_time(T0_MS + IMPORT_PATIENCE_MS + 1)
    assert settled(memory) == {NAMES[0]: ABSENT}


def test_a_replay_of_the_log_long_afterwards_settles_the_same_rows_with_the_same_content() -> None:
    first = workspace()
    for n in range(30):
        first.now_ms = T0_MS + n * 5_000
        interaction(first, f"i{n}")
        if n % 3:
            outcome(first, f"i{n}", n / 10)
        if n % 4 == 0:
            first.drain()
    first.drain()
    first.pass_time(first.now_ms + UP_MS + 1)
    again = workspace()
    again.log = first.log
    again.now_ms = T0_MS + 40 * 86_400_000
    for p in range(3):
        while again.unread(p):
            again.step(p, {"interactions": 2, "outcomes": 3, "references": 5})
        again.step(p)
    assert settled(again) == settled(first)
    assert len(settled(again)) == 30
    assert again.partitions[0].meta.clock_ms == again.now_ms
