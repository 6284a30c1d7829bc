"""Rows with parts and rights: what comes out is a pure function of what arrived, whatever the order, the cuts, repeats and restarts.

The reference knows the interactions as they were before they were split, and computes which parts each of them needs.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from unittest.mock import patch

import msgspec
from hypothesis import given, settings, target
from hypothesis import strategies as st
from treadle_schemas import GradedRow, Metric, Progress, WorkspaceSettings, codec, content_hash, split_group
from treadle_schemas.canonical import dumps, loads
from treadle_schemas.moments import from_micros
from treadle_schemas.parts import Part, SentParts, part_value, read_part, resolve, split
from treadle_streams.join import END_MARGIN_MS, INPUTS, Arrival, Grading, MemoryPartition

T0_MS = 1_700_000_000_000
SETTINGS = WorkspaceSettings(
    workspace="w", partitions=1, grace_s=20.0, metrics=(Metric(name="reward", required=True, horizon_s=100.0),)
)
GRADING = Grading(SETTINGS)
TURNS = [
    {"role": "user", "content": "first " * 300},
    {"role": "assistant", "content": "one " * 300},
    {"role": "user", "content": "second"},
    {"role": "assistant", "content": "two " * 20_000},
]
"""The last one holds a string that is a part of its own."""
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d" * 1_100}}]
ROWS: dict[str, dict[str, Any]] = {
    "a": {"task_id": "t", "messages": TURNS[:2]},
    "b": {"messages": TURNS[:3], "tools": TOOLS},
    "c": {"messages": TURNS, "rights": {"train": "deny"}},
    "d": {"messages": [TURNS[0], {"role": "user", "content": "a branch"}]},
    "e": {"task_id": "t", "messages": [{"role": "user", "content": "short"}]},
}


def interaction(name: str, second: int = 0) -> dict[str, Any]:
    times = {"started_at": at(-1000), "ended_at": at(second)}
    return {"interaction_id": name, "episode_id": "ep", "agent": "x", **ROWS[name], **times}


def at(second: int) -> str:
    return from_micros((T0_MS + second * 1000) * 1000)


BODIES = {name: split(interaction(name), SentParts()) for name in ROWS}
PARTS: dict[str, Part] = {part.hash: part for _, sent in BODIES.values() for v in sent for part in read_part(v)[1]}


def needed(name: str) -> set[str]:
    """Every part that a row needs."""
    body = BODIES[name][0]
    left = [body["transcript"]["head"]] if "transcript" in body else []
    left += list(body.get("claims", {}).values())
    found: set[str] = set()
    while left:
        found.add(left.pop())
        left += [n for p in found for n in PARTS[p].needs if n not in found]
    return found


def chain(name: str) -> list[Part]:
    """The messages of a row's transcript as parts, in order."""
    out: list[Part] = []
    at_: str | None = BODIES[name][0]["transcript"]["head"]
    while at_ is not None:
        out.insert(0, PARTS[at_])
        at_ = PARTS[at_].prev
    return out


@st.composite
def links(draw: st.DrawFn) -> dict[str, Any]:
    """Some run of a transcript's messages, cut anywhere; or a value."""
    values = [part for part in PARTS.values() if part.kind == "value"]
    if draw(st.integers(0, 3)) == 0:
        return part_value("ep", [draw(st.sampled_from(values))])
    whole = chain(draw(st.sampled_from(["a", "b", "c", "d"])))
    first = draw(st.integers(0, len(whole) - 1))
    last = draw(st.integers(first + 1, len(whole)))
    return part_value("ep", whole[first:last], last)


RIGHTS = st.builds(
    lambda name, right, value, second: {
        "interaction_id": name,
        "episode_id": "ep",
        "kind": "rights",
        "name": right,
        "value": value,
        "outcome_id": "r",
        "observed_at": at(second),
    },
    st.sampled_from(sorted(ROWS)),
    st.sampled_from(["train", "eval", "recall"]),
    st.sampled_from(["allow", "deny"]),
    st.integers(0, 2),
)
OUTCOMES = st.builds(
    lambda name: {
        "interaction_id": name,
        "episode_id": "ep",
        "name": "reward",
        "value": 1.0,
        "outcome_id": "o",
        "observed_at": at(0),
    },
    st.sampled_from(sorted(ROWS)),
)
ERASURES = st.builds(
    lambda name: {"episode_id": "ep", "part": name, "erased": "asked for"}, st.sampled_from(sorted(PARTS))
)
EVENTS = st.one_of(
    st.sampled_from(sorted(ROWS)).map(lambda n: (codec.INTERACTION, BODIES[n][0])),
    links().map(lambda v: (codec.PART, v)),
    links().map(lambda v: (codec.PART, v)),
    st.sampled_from(["a", "b", "c", "d"]).map(lambda n: (codec.PART, BODIES[n][1][-1])),
    RIGHTS.map(lambda v: (codec.OUTCOME, v)),
    OUTCOMES.map(lambda v: (codec.OUTCOME, v)),
)


def reference(history: list[tuple[str, dict[str, Any]]], clock_ms: int) -> dict[str, dict[str, Any]]:
    """What is said of each captured row in the end; `content` None: it waits for a part."""
    there: set[str] = set()
    erased: set[str] = set()
    for kind, data in history:
        if kind == codec.PART:
            for part in read_part(wire(data))[1]:
                (erased if part.kind == "erased" else there).add(part.hash)
    rows: dict[str, dict[str, Any]] = {}
    names = sorted({d["interaction_id"] for k, d in history if k == codec.INTERACTION})
    # all of them are step 0 and started at one moment, so the first step is the one with the smallest id
    shared = group_of_messages(names[0], there, erased) if names else ""
    for name in names:
        outcomes = [d for k, d in history if k == codec.OUTCOME and d["interaction_id"] == name]
        observed = any(d["name"] == "reward" for d in outcomes)
        over = clock_ms > T0_MS + 120_000
        denied = dict(ROWS[name].get("rights", {}))
        words = sorted((d["observed_at"], d["value"], d["name"]) for d in outcomes if d.get("kind") == "rights")
        denied |= {right: value for _, value, right in words}
        # a part that needs an erased one is lost with it, as far as the chain to it is known
        lost = tainted(name, there, erased)
        whole = needed(name) <= there and not lost
        group = ROWS[name].get("task_id", shared)
        rows[name] = {
            "settled": (observed or over) and (whole or lost),
            "late": over and not whole and not lost,
            "erased": lost,
            "content": dumps(interaction(name)) if whole else None,
            "denied": {right for right, value in denied.items() if value == "deny"},
            "group": group,
            "side": SETTINGS.split.side(group),
        }
    return rows


def group_of_messages(name: str, there: set[str], erased: set[str]) -> str:
    whole = needed(name) <= there and not tainted(name, there, erased)
    return split_group(None, ROWS[name]["messages"]) if whole else BODIES[name][0]["transcript"]["head"]


def tainted(name: str, there: set[str], erased: set[str]) -> bool:
    body = BODIES[name][0]
    named = ([body["transcript"]["head"]] if "transcript" in body else []) + list(body.get("claims", {}).values())

    def lost(part: str) -> bool:
        return part in erased or (part in there and any(lost(need) for need in PARTS[part].needs))

    return any(lost(part) for part in named)


def wire(value: Any) -> Any:
    return loads(dumps(value))


def deliver(
    history: list[tuple[str, dict[str, Any]]], sizes: list[int], restarts: set[int], clock_ms: int
) -> MemoryPartition:
    partition = MemoryPartition(GRADING)
    offsets = dict.fromkeys(INPUTS, 0)
    position = batch = 0
    while position < len(history):
        chunk = []
        for event_type, data in history[position : position + sizes[batch % len(sizes)]]:
            kind: Any = "outcomes" if event_type == codec.OUTCOME else "interactions"
            headers: Any = [("ce_type", event_type.encode()), ("ce_workspace", b"w")]
            chunk.append(Arrival(kind, 0, offsets[kind], T0_MS, b"ep", dumps(data), headers))
            offsets[kind] += 1
        partition.step(chunk)
        if batch in restarts:
            partition.restart()
        position += len(chunk)
        batch += 1
    partition.step(at_end_ms=dict.fromkeys(INPUTS, clock_ms + END_MARGIN_MS))
    return partition


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_order_cut_repeat_batching_and_restart_gives_the_same_rows(data: st.DataObject) -> None:
    history = data.draw(st.lists(EVENTS, min_size=1, max_size=16), label="history")
    history += [(codec.PART, e) for e in data.draw(st.lists(ERASURES, max_size=1), label="erasures")]
    again = data.draw(st.lists(st.sampled_from(history), max_size=6), label="delivered again")
    order = data.draw(st.permutations(history + again), label="order")
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4), label="batch sizes")
    restarts = data.draw(st.sets(st.integers(0, 12)), label="restarts after batches")
    clock_ms = T0_MS + 1000 * data.draw(st.integers(0, 240), label="seconds on the clock")
    expected = reference(history, clock_ms)
    target(float(sum(row["content"] is not None for row in expected.values())))

    limit = data.draw(st.sampled_from([100, 1 << 25]), label="most part bytes of a transaction")
    with patch.object(sys.modules["treadle_streams.join.batch"], "MAX_PART_BYTES", limit):
        partition = deliver(order, sizes, restarts, clock_ms)

    kept: dict[str, Part] = {}
    last: dict[str, tuple[GradedRow, bytes | None]] = {}
    for emission in partition.outputs:
        if emission.stream == "part":
            for part in read_part(loads(emission.value or b""))[1]:
                assert part.hash not in kept or part.kind == "erased", "each part goes out once"
                kept[part.hash] = part
        elif emission.stream == "graded":
            graded = msgspec.json.decode(emission.value or b"", type=GradedRow)
            whole = None if graded.erased else dumps(resolve(graded.interaction, kept.get))
            last[graded.interaction_id] = graded, whole
    said = {
        p.interaction_id: p
        for e in partition.outputs
        if e.stream == "progress"
        for p in [msgspec.json.decode(e.value or b"", type=Progress)]
    }
    assert set(last) == {name for name, row in expected.items() if row["settled"]}
    assert set(said) == set(expected)
    for name, row in expected.items():
        assert (said[name].grade.settled, said[name].split) == (row["settled"], row["side"])
        if name in last:
            graded, whole = last[name]
            assert graded.grade.settled
            assert graded.erased == row["erased"]
            assert (graded.split_group, graded.split) == (row["group"], row["side"])
            rights = {} if graded.rights is None else msgspec.structs.asdict(graded.rights)
            assert {right for right, value in rights.items() if value == "deny"} == row["denied"]
            if not row["erased"]:
                assert whole == row["content"], "byte for byte"
    dead = [dict(e.headers)["reason"].decode() for e in partition.outputs if e.stream == "dead-letter"]
    assert sorted(dead) == ["part_missing"] * sum(row["late"] for row in expected.values())
    counts = partition.meta.counts
    assert counts.get("waiting", 0) == sum(not (r["content"] or r["erased"]) for r in expected.values())
    assert counts.get("settled", 0) == sum(r["settled"] for r in expected.values())


@settings(max_examples=60, deadline=None)
@given(history=st.lists(EVENTS, min_size=1, max_size=10), wait=st.integers(0, 240))
def test_a_restart_after_every_batch_writes_what_no_restart_writes(
    history: list[tuple[str, dict[str, Any]]], wait: int
) -> None:
    clock_ms = T0_MS + wait * 1000
    plain = deliver(history, [1], set(), clock_ms)
    restarted = deliver(history, [1], set(range(20)), clock_ms)
    assert plain.outputs == restarted.outputs
    assert plain.records == restarted.records


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_state_keeps_the_same_parts_in_any_order(data: st.DataObject) -> None:
    history = data.draw(st.lists(EVENTS, min_size=1, max_size=12))
    order = data.draw(st.permutations(history))
    one, two = deliver(history, [3], set(), T0_MS), deliver(order, [2], {1, 3}, T0_MS)
    assert {k: v for k, v in one.records.items() if k[:1] in b"nc"} == {
        k: v for k, v in two.records.items() if k[:1] in b"nc"
    }


def test_the_rows_of_this_test_cover_what_they_should() -> None:
    assert [len(needed(name)) for name in "abcde"] == [2, 4, 5, 2, 0]
    assert json.dumps(sorted(PARTS)) == json.dumps(sorted(set(PARTS)))
    assert len({content_hash(body) for body, _ in BODIES.values()}) == 5
