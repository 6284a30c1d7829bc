"""Outcomes by name are free of order over partitions: any order of writing, reading and re-keying, any repetition, batching and restart.

A workspace of several partitions in memory. A schedule decides which partition takes in how many records of which topic next, and when one
is rebuilt from its changelog; announcements and re-keyed outcomes travel through the same logs. What the rows are in the end is compared
with a fold of its own, which sees the whole history at once.
"""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import given, settings, target
from hypothesis import strategies as st
from treadle_schemas import GradedRow, Metric, WorkspaceSettings, codec, content_hash
from treadle_schemas.moments import from_micros, to_micros
from treadle_streams.join import INPUTS, Grading
from treadle_streams.join.workspace_memory import MemoryWorkspace

T0_MS = 1_700_000_000_000
SETTINGS = WorkspaceSettings(
    workspace="w",
    partitions=3,
    metrics=(Metric(name="reward", required=True), Metric(name="votes", aggregate="sum")),
)
GRADING = Grading(SETTINGS)
ROWS = [("a", "a"), ("e1", "a"), ("a", "a"), ("e2", "a"), ("e2", "b"), ("b", "b"), ("e3", "c")]
REFERENCES = ["pr:o/r#1", "pr:o/r#2", "response:c-7"]
Row = tuple[str, str]


def _at(second: int) -> str:
    return from_micros((T0_MS + second * 1000) * 1000)


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    """One record as its maker writes it."""
    moment = draw(st.integers(-50, 50))
    if draw(st.integers(0, 2)) == 0:
        episode, interaction = draw(st.sampled_from(ROWS))
        return {
            "interaction_id": interaction,
            "episode_id": episode,
            "agent": "x",
            "task_id": "t",
            "messages": [{"role": "user", "content": draw(st.sampled_from(["hi", "ho"]))}],
            "started_at": _at(-1000),
            "ended_at": _at(moment),
            "references": draw(st.lists(st.sampled_from(REFERENCES), max_size=2, unique=True)),
        }
    said: dict[str, Any] = {"name": draw(st.sampled_from(["reward", "votes"])), "observed_at": _at(moment)}
    match draw(st.sampled_from(["reference", "interaction", "row"])):
        case "reference":
            said["reference"] = draw(st.sampled_from(REFERENCES))
        case "interaction":
            said["interaction_id"] = draw(st.sampled_from(["a", "a", "b", "c"]))
        case _:
            said["episode_id"], said["interaction_id"] = draw(st.sampled_from(ROWS))
    # an outcome id says one thing: contradictions of one id are the other test's matter
    number = draw(st.integers(0, 5))
    match draw(st.sampled_from([*["set"] * 8, "retract", "retract one"])):
        case "set":
            said |= {"outcome_id": f"o{number}", "value": float(number), "name": ["reward", "votes"][number % 2]}
            said["observed_at"] = _at(number)
        case op:
            said["op"] = "retract"
            if op == "retract one":
                said["outcome_id"] = f"o{number}"
    return said


def names_of(event: dict[str, Any]) -> set[tuple[str, str]]:
    """What an interaction can be found by, beside its row."""
    return {("reference", name) for name in event["references"]} | {("interaction", event["interaction_id"])}


def reference(history: list[dict[str, Any]]) -> dict[Row, Any]:
    """The content of every row, from the whole history."""
    interactions = [e for e in history if "messages" in e]
    rows: dict[Row, Any] = {}
    for identity in {(e["episode_id"], e["interaction_id"]) for e in interactions}:
        mine = [e for e in interactions if (e["episode_id"], e["interaction_id"]) == identity]
        names = {name for e in mine for name in names_of(e)}
        said = []
        for event in history:
            if "messages" in event:
                continue
            if "episode_id" in event:
                found = (event["episode_id"], event["interaction_id"]) == identity
            elif "interaction_id" in event:
                found = ("interaction", event["interaction_id"]) in names
            else:
                found = ("reference", event["reference"]) in names
            if found:
                said.append(event)
        outcomes = {e["outcome_id"]: e for e in said if "op" not in e}
        left: dict[str, list[tuple[int, str, float]]] = defaultdict(list)
        for outcome_id, event in outcomes.items():
            observed = to_micros(event["observed_at"], "")
            gone = any(
                r["name"] == event["name"]
                and (
                    r["outcome_id"] == outcome_id if "outcome_id" in r else observed <= to_micros(r["observed_at"], "")
                )
                for r in said
                if "op" in r
            )
            if not gone:
                left[event["name"]].append((observed, outcome_id, event["value"]))
        best = min(mine, key=lambda e: (to_micros(e["ended_at"], ""), content_hash(e)))
        rows[identity] = {
            "interaction": content_hash(best),
            "reward": max(left["reward"])[2] if left["reward"] else None,
            "votes": sum(v for *_, v in left["votes"]) if left["votes"] else None,
        }
    return rows


def deliver(data: st.DataObject, order: list[dict[str, Any]], *, restarts: bool) -> MemoryWorkspace:
    """Write the events in that order and let the partitions read in any order, with restarts of any partition in between."""
    memory = MemoryWorkspace(GRADING, T0_MS)
    moves = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, 2), st.permutations(INPUTS), st.tuples(*[st.integers(0, 3)] * 3), st.integers(0, 5)
            ),
            max_size=30,
        ),
        label="moves",
    )
    writes = iter(order)
    for n in range(max(len(order), len(moves))):
        event = next(writes, None)
        if event is not None:
            write(memory, event)
        if n < len(moves):
            partition, topics, limits, restart = moves[n]
            memory.step(partition, dict(zip(topics, limits, strict=True)))
            if restarts and restart == 0:
                memory.partitions[partition].restart()
    memory.drain(data.draw(st.permutations(INPUTS), label="topics in the end"))
    return memory


def write(memory: MemoryWorkspace, event: dict[str, Any]) -> None:
    interaction = "messages" in event
    key = event.get("episode_id") or event.get("interaction_id") or event["reference"]
    headers = codec.make_headers(codec.INTERACTION if interaction else codec.OUTCOME, "w", source="test")
    memory.now_ms += 1
    memory.append(
        "interactions" if interaction else "outcomes", key.encode(), json.dumps(event).encode(), list(headers)
    )


def graded(memory: MemoryWorkspace) -> list[GradedRow]:
    outputs = [e for p in memory.partitions for e in p.outputs if e.stream == "graded"]
    return [msgspec.json.decode(e.value or b"", type=GradedRow) for e in outputs]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_outcomes_by_name_reach_the_rows_of_the_name_in_any_order_of_everything(data: st.DataObject) -> None:
    history = data.draw(st.lists(events(), min_size=1, max_size=14), label="history")
    again = data.draw(st.lists(st.sampled_from(history), max_size=5), label="delivered again")
    order = data.draw(st.permutations(history + again), label="order")
    expected = reference(history)

    memory = deliver(data, order, restarts=True)

    target(float(sum(p.meta.counts.get("rekeyed", 0) for p in memory.partitions)))
    rows = graded(memory)
    last = {(r.episode_id, r.interaction_id): r for r in rows}
    for identity, row in expected.items():
        if row["reward"] is None and identity not in last:
            continue
        found = last[identity]
        values = {name: state[1] for name, state in found.grade.metrics.items()}
        assert (content_hash(found.interaction), values["reward"], values["votes"]) == (
            row["interaction"],
            row["reward"],
            row["votes"],
        )
    assert set(last) <= set(expected)
    revisions: dict[Row, list[int]] = defaultdict(list)
    for graded_row in rows:
        revisions[graded_row.episode_id, graded_row.interaction_id].append(graded_row.provenance.revision)
    assert all(found == list(range(1, len(found) + 1)) for found in revisions.values())

    dead = [e for p in memory.partitions for e in p.outputs if e.stream == "dead-letter"]
    assert {dict(e.headers)["reason"] for e in dead} <= {b"conflict"}
    assert all("messages" in json.loads(e.value or b"") for e in dead), "of outcomes none contradicts another"
    for partition in memory.partitions:
        known = set(partition.index)
        partition.restart()
        assert partition.index == known, "the index is what the records say"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_pair_of_outcome_and_row_is_rekeyed_once(data: st.DataObject) -> None:
    history = data.draw(st.lists(events(), min_size=1, max_size=12), label="history")
    memory = deliver(data, history + history, restarts=True)
    pairs = [
        (a.value, dict(a.headers)["target"])
        for p in range(len(memory.partitions))
        for a in memory.log["references", p]
        if dict(a.headers)["ce_type"] == codec.OUTCOME.encode()
    ]
    by_name: dict[Any, int] = defaultdict(int)
    for value, row in pairs:
        by_name[value, row] += 1
    assert all(times == 1 for times in by_name.values())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_everything_that_names_keep_ends(data: st.DataObject) -> None:
    history = data.draw(st.lists(events(), min_size=1, max_size=10), label="history")
    memory = deliver(data, history, restarts=False)
    memory.pass_time(memory.now_ms + GRADING.keep_ms + 10)
    for partition in memory.partitions:
        assert not [key for key in partition.records if key[:1] in (b"a", b"r", b"e")]
        assert partition.meta.counts.get("orphans", 0) == partition.meta.counts.get("names", 0) == 0
    orphans = [
        e
        for p in memory.partitions
        for e in p.outputs
        if e.stream == "dead-letter" and ("reason", b"orphan") in e.headers
    ]
    rows = {(e["episode_id"], e["interaction_id"]) for e in history if "messages" in e}
    names = {name for e in history if "messages" in e for name in names_of(e)}
    lonely = set()
    for event in history:
        if "messages" in event or ("op" in event and "episode_id" in event):
            continue
        if "episode_id" in event:
            met = (event["episode_id"], event["interaction_id"]) in rows
        elif "interaction_id" in event:
            met = ("interaction", event["interaction_id"]) in names
        else:
            met = ("reference", event["reference"]) in names
        if not met:
            lonely.add(json.dumps(event).encode())
    assert {e.value for e in orphans} == lonely


def test_revisions_of_a_row_say_something_new_each() -> None:
    memory = MemoryWorkspace(GRADING, T0_MS)
    row: dict[str, Any] = {
        "interaction_id": "a",
        "episode_id": "e1",
        "agent": "x",
        "task_id": "t",
        "references": ["pr:o/r#1"],
    }
    row |= {"messages": [{"role": "user", "content": "hi"}], "started_at": _at(0), "ended_at": _at(1)}
    write(memory, row)
    for number in range(3):
        for target_of in ({"reference": "pr:o/r#1"}, {"interaction_id": "a"}):
            said = {"name": "reward", "value": float(number), "outcome_id": f"o{number}", "observed_at": _at(number)}
            write(memory, said | target_of)
            memory.drain()
    rewards = [row.grade.reward for row in graded(memory)]
    assert rewards == [0.0, 1.0, 2.0]
    assert all(a != b for a, b in pairwise(rewards))
