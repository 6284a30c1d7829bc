"""The last content of a row is a pure function of its events and the clock: against a small fold of its own, written from semantics.md.

The reference sees the whole history at once and shares no code with the join but the contracts (canonical JSON, the split, times).
"""

from __future__ import annotations

import json
from collections import defaultdict
from fractions import Fraction
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import given, settings, target
from hypothesis import strategies as st
from treadle_schemas import GradedRow, Metric, Progress, WorkspaceSettings, codec, content_hash
from treadle_schemas.moments import from_micros, to_micros
from treadle_streams.join import END_MARGIN_MS, INPUTS, Arrival, Grading, MemoryPartition

T0_MS = 1_700_000_000_000
HORIZON_S, SLOW_S, GRACE_S = 100.0, 300.0, 20.0
SETTINGS = WorkspaceSettings(
    workspace="w",
    partitions=1,
    grace_s=GRACE_S,
    reward="reward + COALESCE(score, 0)",
    metrics=(
        Metric(name="reward", required=True, horizon_s=HORIZON_S),
        Metric(name="score", aggregate="mean", horizon_s=SLOW_S, absent=0.5),
        Metric(name="ok", type="bool", aggregate="max", horizon_s=HORIZON_S),
        Metric(name="label", type="category", aggregate="first", horizon_s=SLOW_S),
    ),
)
GRADING = Grading(SETTINGS)
ROWS = [("e1", "a"), ("e1", "b"), ("c", "c")]
VALUES: dict[str, list[Any]] = {
    "reward": [None, 0, 1, 1.0, -0.0, 0.25],
    "score": [None, 1e308, 0.1, 0.2, 0.3],
    "ok": [None, True, False],
    "label": [None, "x", "y"],
    "mood": [None, "sad", 3, True],
}

seconds = st.integers(-400, 400)


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    """One record: what it says, when it was appended, and whether an import brought it."""
    episode, interaction = draw(st.sampled_from(ROWS))
    moment = draw(seconds)
    append_s = draw(st.integers(0, 60))
    data: dict[str, Any] = {"interaction_id": interaction}
    if episode != interaction or draw(st.booleans()):
        data["episode_id"] = episode
    kind = "outcomes"
    match draw(st.sampled_from(["interaction", "outcome", "outcome", "outcome", "retract", "retract one"])):
        case "interaction":
            kind = "interactions"
            data |= {
                "agent": draw(st.sampled_from(["x", "y"])),
                "task_id": draw(st.sampled_from(["t1", "t2", "t3"])),
                "messages": [{"role": "user", "content": draw(st.sampled_from(["hi", "ho"]))}],
                "started_at": _at(-1000),
                "ended_at": _at(moment),
            }
        case "outcome":
            name = draw(st.sampled_from(sorted(VALUES)))
            data |= {"name": name, "value": draw(st.sampled_from(VALUES[name]))}
            data |= {"outcome_id": draw(st.sampled_from(["o1", "o2", "o3"])), "observed_at": _at(moment)}
        case op:
            data |= {"name": draw(st.sampled_from(sorted(VALUES))), "op": "retract", "observed_at": _at(moment)}
            if op == "retract one":
                data["outcome_id"] = draw(st.sampled_from(["o1", "o2", "o3"]))
    return {
        "kind": kind,
        "data": data,
        "key": episode,
        "append_ms": T0_MS + append_s * 1000,
        "import_id": draw(st.sampled_from([None, None, "imp"])),
    }


def _at(second: int) -> str:
    return from_micros((T0_MS + second * 1000) * 1000)


# --- the reference


def reference(history: list[dict[str, Any]], clock_ms: int) -> tuple[dict[tuple[str, str], Any], set[str]]:
    """The content of every captured row at `clock_ms`, and the content hashes of every event that lost a conflict."""
    rows: dict[tuple[str, str], Any] = {}
    lost: set[str] = set()
    by_row = defaultdict(list)
    for event in history:
        data = event["data"]
        by_row[data.get("episode_id", data["interaction_id"]), data["interaction_id"]].append(event)
    for identity, mine in by_row.items():
        interactions = [e for e in mine if e["kind"] == "interactions"]
        outcomes = [e["data"] for e in mine if e["kind"] == "outcomes" and e["data"].get("op", "set") == "set"]
        retracts = [e["data"] for e in mine if e["data"].get("op") == "retract"]
        if not interactions:
            # what is keyed by the id alone is not compared before it meets a row
            outcomes = [o for o in outcomes if "episode_id" in o]
        kept = []
        for outcome_id in {o["outcome_id"] for o in outcomes}:
            same_id = [normal(o) for o in outcomes if o["outcome_id"] == outcome_id]
            by_hash = {content_hash(o): (to_micros(o["observed_at"], ""), content_hash(o), o) for o in same_id}
            ranked = sorted(by_hash.values(), key=lambda v: v[:2])
            lost |= {v[1] for v in ranked[:-1]}
            winner = ranked[-1][2]
            kept.append((ranked[-1][0], outcome_id, winner["name"], winner["value"]))
        if not interactions:
            continue
        best = min(interactions, key=lambda e: (to_micros(e["data"]["ended_at"], ""), content_hash(e["data"])))["data"]
        lost |= {content_hash(e["data"]) for e in interactions} - {content_hash(best)}
        append_ms = min(e["append_ms"] for e in interactions)
        left: dict[str, list[Any]] = defaultdict(list)
        for observed, outcome_id, name, value in sorted(kept, key=lambda k: k[:2]):
            taken_back = any(
                r["name"] == name
                and (
                    r["outcome_id"] == outcome_id if "outcome_id" in r else observed <= to_micros(r["observed_at"], "")
                )
                for r in retracts
            )
            if not taken_back:
                left[name].append(value)
        metrics: dict[str, tuple[str, Any]] = {}
        for metric in SETTINGS.metrics:
            start = min(to_micros(best["ended_at"], "") // 1000, append_ms)
            up = max(start + int(metric.horizon_s * 1000), append_ms) + int(GRACE_S * 1000)
            metrics[metric.name] = ("absent", None) if clock_ms > up else ("pending", None)
        for name, values in left.items():
            value = aggregate(name, values)
            metrics[name] = ("absent", None) if value is None else ("observed", value)
        rows[identity] = {
            "interaction": content_hash(best),
            "metrics": metrics,
            "reward": reward(metrics),
            "settled": metrics["reward"][0] != "pending",
            "split": SETTINGS.split.side(best["task_id"]),
        }
    return rows, lost


def normal(outcome: dict[str, Any]) -> dict[str, Any]:
    value = outcome["value"]
    if outcome["name"] in ("reward", "score") and value is not None:
        value = float(value) or 0.0
    return {k: v for k, v in outcome.items() if k not in ("episode_id", "interaction_id")} | {"value": value}


def aggregate(name: str, values: list[Any]) -> Any:
    present = [v for v in values if v is not None]
    match name:
        case "score":
            return float(sum(map(Fraction, present)) / len(present)) if present else None
        case "ok":
            return max(present) if present else None
        case "label":
            return values[0]
    return values[-1]


def reward(metrics: dict[str, tuple[str, Any]]) -> float | None:
    first, score = metrics["reward"][1], metrics["score"]
    second = score[1] if score[0] == "observed" else 0.5 if score[0] == "absent" else 0.0
    return None if first is None else first + second


# --- the join under test


def deliver(
    history: list[dict[str, Any]], sizes: list[int], restarts: set[int], clock_ms: int
) -> tuple[MemoryPartition, list[GradedRow]]:
    partition = MemoryPartition(GRADING)
    offsets = dict.fromkeys(INPUTS, 0)

    def arrival(kind: Any, event_type: str, data: Any, key: str | None, at_ms: int, import_id: str | None) -> Arrival:
        headers: Any = [("ce_type", event_type.encode()), ("ce_workspace", b"w")]
        if import_id is not None:
            headers.append(("ce_importid", import_id.encode()))
        offsets[kind] += 1
        raw = key.encode() if key is not None else None
        return Arrival(kind, 0, offsets[kind] - 1, at_ms, raw, json.dumps(data).encode(), headers)

    def markers(phase: str, at_ms: int) -> list[Arrival]:
        data = {"import_id": "imp", "phase": phase}
        kinds: tuple[Any, ...] = ("interactions", "outcomes")
        return [arrival(kind, codec.IMPORT_MARKER, data, None, at_ms, None) for kind in kinds]

    partition.step(markers("begin", T0_MS))
    position = batch = 0
    while position < len(history):
        size = sizes[batch % len(sizes)]
        chunk = [
            arrival(
                e["kind"],
                codec.INTERACTION if e["kind"] == "interactions" else codec.OUTCOME,
                e["data"],
                e["key"],
                e["append_ms"],
                e["import_id"],
            )
            for e in history[position : position + size]
        ]
        partition.step(chunk, at_end_ms={"references": T0_MS + 10_000_000})
        if batch in restarts:
            partition.restart()
        position += size
        batch += 1
    partition.step(markers("end", T0_MS + 60_000))
    partition.step(at_end_ms=dict.fromkeys(INPUTS, clock_ms + END_MARGIN_MS))
    graded = [msgspec.json.decode(e.value or b"", type=GradedRow) for e in partition.outputs if e.stream == "graded"]
    return partition, graded


def content(row: GradedRow) -> dict[str, Any]:
    return {
        "interaction": content_hash(row.interaction),
        "metrics": dict(row.grade.metrics),
        "reward": row.grade.reward,
        "settled": row.grade.settled,
        "split": row.split,
    }


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_any_order_duplication_batching_and_restart_gives_the_content_of_the_whole_history(data: st.DataObject) -> None:
    history = data.draw(st.lists(events(), min_size=1, max_size=14), label="history")
    again = data.draw(st.lists(st.sampled_from(history), max_size=6), label="delivered again")
    order = data.draw(st.permutations(history + again), label="order")
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4), label="batch sizes")
    restarts = data.draw(st.sets(st.integers(0, 12)), label="restarts after batches")
    clock_ms = T0_MS + 60_000 + 1000 * data.draw(st.integers(0, 500), label="seconds on the clock")
    expected, lost = reference(history, clock_ms)
    target(float(len(lost)))

    partition, graded = deliver(order, sizes, restarts, clock_ms)

    last = {(r.episode_id, r.interaction_id): content(r) for r in graded}
    for identity, row in expected.items():
        if row["settled"]:
            assert last[identity] == row
        elif identity in last:
            assert last[identity] == row, "what was graded before says that it is unsettled again"
    assert set(last) <= set(expected)

    said: dict[tuple[str, str], Progress] = {}
    for emission in partition.outputs:
        if emission.stream == "progress":
            record = msgspec.json.decode(emission.value or b"", type=Progress)
            said[record.episode_id, record.interaction_id] = record
    assert {k: (p.grade.metrics, p.grade.reward, p.split) for k, p in said.items()} == {
        k: (r["metrics"], r["reward"], r["split"]) for k, r in expected.items()
    }

    revisions: dict[tuple[str, str], list[GradedRow]] = defaultdict(list)
    for row in graded:
        revisions[row.episode_id, row.interaction_id].append(row)
    for rows in revisions.values():
        assert [r.provenance.revision for r in rows] == list(range(1, len(rows) + 1))
        assert all(content(a) != content(b) for a, b in pairwise(rows))

    dead = [e for e in partition.outputs if e.stream == "dead-letter"]
    assert {dict(e.headers)["reason"] for e in dead} <= {b"conflict"}
    contents = [json.loads(e.value or b"") for e in dead]
    assert {content_hash(normal(c) if "outcome_id" in c else c) for c in contents} == lost

    counts = partition.meta.counts
    assert counts.get("captured", 0) == len(expected)
    assert counts.get("settled", 0) == sum(r["settled"] for r in expected.values())
    # one orphan for what names the episode, and one for what names the interaction alone
    waiting = {
        (e["key"], e["data"]["interaction_id"], "episode_id" in e["data"])
        for e in history
        if (e["key"], e["data"]["interaction_id"]) not in expected
    }
    assert counts.get("orphans", 0) == len(waiting)
    assert partition.meta.imports == {}


@settings(max_examples=60, deadline=None)
@given(history=st.lists(events(), min_size=1, max_size=10), wait=st.integers(0, 400))
def test_a_restart_after_every_batch_writes_what_no_restart_writes(history: list[dict[str, Any]], wait: int) -> None:
    clock_ms = T0_MS + 60_000 + wait * 1000
    plain, _ = deliver(history, [1], set(), clock_ms)
    restarted, _ = deliver(history, [1], set(range(20)), clock_ms)
    assert plain.outputs == restarted.outputs
    assert plain.records == restarted.records
