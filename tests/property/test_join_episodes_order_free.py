"""Rows of episodes are a pure function of what arrived and the clock: credit, ends, reopening, splits, rights and feedback.

The reference sees the whole history at once and shares no code with the join but the contracts.
"""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import msgspec
from hypothesis import given, settings, target
from hypothesis import strategies as st
from treadle_schemas import Credit, GradedRow, Metric, Progress, WorkspaceSettings, codec, content_hash, split_group
from treadle_schemas.moments import from_micros, to_micros
from treadle_schemas.sealing import Cipher, about, opened
from treadle_streams.join import END_MARGIN_MS, INPUTS, Arrival, Grading, MemoryPartition, episodes, state_prefixes

T0_MS = 1_700_000_000_000
HORIZON_S, GRACE_S, IDLE_S = 100, 20, 86_400
REWARD = Metric(name="reward", required=True, horizon_s=HORIZON_S)
SOLVED = Metric(name="solved", required=True, horizon_s=HORIZON_S, level="episode", aggregate="max")
LABEL = Metric(name="label", type="category", horizon_s=HORIZON_S)
GRADINGS = [
    Grading(
        WorkspaceSettings(workspace="w", partitions=1, grace_s=GRACE_S, reward=reward, metrics=metrics, credit=credit)
    )
    for credit in (Credit(), Credit(rule="all"), Credit(rule="discounted", gamma=0.5))
    for reward, metrics in (
        ("reward", (REWARD, LABEL)),
        ("solved", (msgspec.structs.replace(REWARD, required=False), SOLVED)),
    )
]
ROWS = [("e", "a"), ("e", "b"), ("e", "e"), ("f", "f")]
VALUES: dict[str, list[Any]] = {
    "reward": [None, 0.5, 1.0],
    "solved": [None, 1.0, 2.0],
    "label": ["x", "y"],
    "mood": [3, "sad"],
}
MOMENTS = st.integers(-50, 90)


@st.composite
def histories(draw: st.DrawFn) -> dict[str, Any]:
    """One record: what it says, its key, when it was appended, and whether an import brought it."""
    episode, interaction = draw(st.sampled_from(ROWS))
    whole = draw(st.booleans())
    target_ = {"episode_id": episode} if whole else {"episode_id": episode, "interaction_id": interaction}
    moment = at(draw(MOMENTS))
    kind, event_type = "outcomes", codec.OUTCOME
    outcome_id = draw(st.sampled_from(["o1", "o2", "o3"]))
    data: dict[str, Any]
    match draw(
        st.sampled_from(
            ["step", "step", "step", "metric", "metric", "retract", "retract one", "comment", "right", "end", "erase"]
        )
    ):
        case "step":
            kind, event_type = "interactions", codec.INTERACTION
            started = draw(MOMENTS)
            data = {
                "interaction_id": interaction,
                "episode_id": episode,
                "step": draw(st.integers(0, 2)),
                "agent": "x",
                "messages": [{"role": "user", "content": draw(st.sampled_from(["hi", "ho"]))}],
                "started_at": at(started),
                "ended_at": at(started + draw(st.integers(0, 5))),
            }
            task = draw(st.sampled_from([None, None, "t1"]))
            if task is not None:
                data["task_id"] = task
        case "end":
            kind, event_type = "interactions", codec.EPISODE_END
            data = {"episode_id": episode, "ended_at": moment}
        case "erase":
            kind, event_type = "interactions", codec.ERASURE
            data = {"episode_id": episode, "erased_at": moment}
        case "metric":
            name = draw(st.sampled_from(sorted(VALUES)))
            data = target_ | {
                "name": name,
                "value": draw(st.sampled_from(VALUES[name])),
                "observed_at": moment,
                "outcome_id": outcome_id,
            }
        case "comment":
            data = target_ | {"name": "said", "value": draw(st.sampled_from(["good", "bad"])), "kind": "comment"}
            data |= {"observed_at": moment, "outcome_id": "c"}
        case "right":
            data = target_ | {"name": "train", "value": draw(st.sampled_from(["allow", "deny"])), "kind": "rights"}
            data |= {"observed_at": moment, "outcome_id": "r"}
        case op:
            data = target_ | {
                "name": draw(st.sampled_from([*sorted(VALUES), "said"])),
                "op": "retract",
                "observed_at": moment,
            }
            if op == "retract one":
                data["outcome_id"] = outcome_id
    return {
        "kind": kind,
        "type": event_type,
        "data": data,
        "key": episode,
        "append_ms": T0_MS + draw(st.integers(0, 60)) * 1000,
        "import_id": draw(st.sampled_from([None, None, "imp"])),
    }


def at(second: int) -> str:
    return from_micros((T0_MS + second * 1000) * 1000)


def us(moment: str) -> int:
    return to_micros(moment, "")


# --- the reference


def reference(history: list[dict[str, Any]], clock_ms: int, grading: Grading) -> dict[tuple[str, str], Any]:
    """The content of every captured row at `clock_ms`."""
    rows: dict[tuple[str, str], Any] = {}
    credit, declared = grading.settings.credit, {m.name: m for m in grading.metrics}
    for episode in {e["key"] for e in history}:
        mine = [e for e in history if e["key"] == episode]
        steps = []
        for name in {
            e["data"]["interaction_id"] for e in mine if e["kind"] == "interactions" and e["type"] == codec.INTERACTION
        }:
            copies = [e for e in mine if e["type"] == codec.INTERACTION and e["data"]["interaction_id"] == name]
            best = min(copies, key=lambda e: (us(e["data"]["ended_at"]), content_hash(e["data"])))["data"]
            steps.append((best["step"], us(best["started_at"]), name, min(e["append_ms"] for e in copies), best))
        steps.sort(key=lambda s: s[:3])
        if not steps:
            continue
        if any(e["type"] == codec.ERASURE for e in mine):
            for *_, best in steps:
                rows[episode, best["interaction_id"]] = what_is_left(episode, best)
            continue
        started = max(min(s[1], s[3] * 1000 + 999) for s in steps)
        ends = [
            min(us(e["data"]["ended_at"]), e["append_ms"] * 1000 + 999) for e in mine if e["type"] == codec.EPISODE_END
        ]
        ended = bool(ends) and max(ends) >= started
        over = ended or clock_ms > max(s[3] for s in steps) + IDLE_S * 1000
        whole, whole_right = said(mine, None)
        shared = split_group(None, steps[0][4]["messages"])
        for after, (_, _, name, append_ms, best) in enumerate(reversed(steps)):
            own, own_right = said(mine, name)
            fallen = whole if after == 0 else [o for o in whole if "kind" not in o]
            if after and credit.rule == "last":
                fallen = []
            if credit.rule == "discounted":
                fallen = [discounted(o, credit.gamma**after) for o in fallen]
            counts = sorted(
                [*own, *fallen], key=lambda o: (us(o["observed_at"]), o["outcome_id"], json.dumps(o["raw"]))
            )
            elsewhere = {o["name"] for o in whole} - {o["name"] for o in fallen}
            up = max(min(us(best["ended_at"]) // 1000, append_ms) + HORIZON_S * 1000, append_ms) + GRACE_S * 1000
            metrics = {m.name: ("absent", None) if clock_ms > up else ("pending", None) for m in grading.metrics}
            still_open = "solved" in declared and not over
            if still_open:
                metrics["solved"] = ("pending", None)
            elif "solved" in declared and "solved" in elsewhere:
                metrics["solved"] = ("absent", None)
            values: dict[str, list[Any]] = defaultdict(list)
            for o in counts:
                if "kind" not in o:
                    values[o["name"]].append(o["value"])
            for metric, found in values.items():
                present = [v for v in found if v is not None]
                value = (max(present, default=None)) if metric == "solved" and declared.get(metric) else found[-1]
                metrics[metric] = ("absent", None) if value is None else ("observed", value)
            right = max([r for r in (own_right, whole_right) if r is not None], default=(0, "allow"))
            group = best.get("task_id", shared)
            rows[episode, name] = {
                "interaction": content_hash(best),
                "metrics": metrics,
                "reward": metrics[grading.settings.reward][1],
                "settled": not still_open
                and all(metrics[m.name][0] != "pending" for m in grading.metrics if m.required),
                "group": group,
                "comments": [o["value"] for o in counts if "kind" in o],
                "denied": right[1] == "deny",
                "erased": False,
            }
    return rows


def what_is_left(episode: str, interaction: dict[str, Any]) -> dict[str, Any]:
    """The content of a row whose episode was erased."""
    ended = from_micros(us(interaction["ended_at"]))
    body = {
        "interaction_id": interaction["interaction_id"],
        "episode_id": episode,
        "agent": "erased",
        "messages": [],
        "started_at": ended,
        "ended_at": ended,
    }
    return {
        "interaction": content_hash(body),
        "metrics": {},
        "reward": None,
        "settled": True,
        "group": "erased",
        "comments": [],
        "denied": False,
        "erased": True,
    }


def said(mine: list[dict[str, Any]], name: str | None) -> tuple[list[dict[str, Any]], tuple[int, str] | None]:
    """The outcomes of a target that are left, and what was said last of its right."""
    about = [e["data"] for e in mine if e["kind"] == "outcomes" and e["data"].get("interaction_id") == name]
    rights = [(us(d["observed_at"]), d["value"]) for d in about if d.get("kind") == "rights"]
    sets = [d for d in about if d.get("op") is None and d.get("kind") != "rights"]
    retracts = [d for d in about if d.get("op") == "retract"]
    left = []
    for outcome_id in {d["outcome_id"] for d in sets}:
        same = [d for d in sets if d["outcome_id"] == outcome_id]
        best = max(same, key=lambda d: (us(d["observed_at"]), content_hash(kept(d))))
        gone = any(
            r["name"] == best["name"]
            and (
                r["outcome_id"] == outcome_id if "outcome_id" in r else us(best["observed_at"]) <= us(r["observed_at"])
            )
            for r in retracts
        )
        if not gone:
            left.append(best | {"raw": best})
    return left, max(rights, default=None)


def kept(outcome: dict[str, Any]) -> dict[str, Any]:
    """As it is compared: what is no metric has no value as the join keeps it, nor does its target count."""
    return {k: v for k, v in outcome.items() if k not in ("episode_id", "interaction_id")}


def discounted(outcome: dict[str, Any], weight: float) -> dict[str, Any]:
    value = outcome["value"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return outcome
    return outcome | {"value": float(value) * weight}


# --- the join under test


def deliver(
    history: list[dict[str, Any]],
    sizes: list[int],
    restarts: set[int],
    clock_ms: int,
    grading: Grading,
    cipher: Cipher | None = None,
) -> MemoryPartition:
    """`cipher` seals what is said; erasures and ends of episodes stay in clear."""
    partition = MemoryPartition(grading)
    offsets = dict.fromkeys(INPUTS, 0)

    def arrival(kind: Any, event_type: str, data: Any, key: str | None, at_ms: int, import_id: str | None) -> Arrival:
        headers: Any = [("ce_type", event_type.encode()), ("ce_workspace", b"w")]
        if import_id is not None:
            headers.append(("ce_importid", import_id.encode()))
        offsets[kind] += 1
        raw = key.encode() if key is not None else None
        value = json.dumps(data).encode()
        if cipher is not None and event_type in (codec.INTERACTION, codec.OUTCOME):
            value = cipher.seal(value, about("w", event_type, raw))
        return Arrival(kind, 0, offsets[kind] - 1, at_ms, raw, value, headers)

    def markers(phase: str, at_ms: int) -> list[Arrival]:
        data = {"import_id": "imp", "phase": phase}
        kinds: tuple[Any, ...] = ("interactions", "outcomes")
        return [arrival(kind, codec.IMPORT_MARKER, data, None, at_ms, None) for kind in kinds]

    partition.step(markers("begin", T0_MS))
    position = batch = 0
    while position < len(history):
        chunk = history[position : position + sizes[batch % len(sizes)]]
        partition.step(
            [arrival(e["kind"], e["type"], e["data"], e["key"], e["append_ms"], e["import_id"]) for e in chunk],
            at_end_ms={"references": T0_MS + 10_000_000},
        )
        if batch in restarts:
            partition.restart()
        position += len(chunk)
        batch += 1
    partition.step(markers("end", T0_MS + 60_000))
    partition.step(at_end_ms=dict.fromkeys(INPUTS, clock_ms + END_MARGIN_MS))
    return partition


def content(row: GradedRow) -> dict[str, Any]:
    return {
        "interaction": content_hash(row.interaction),
        "metrics": dict(row.grade.metrics),
        "reward": row.grade.reward,
        "settled": row.grade.settled,
        "group": row.split_group,
        "comments": [said.value for said in row.feedback],
        "denied": row.rights is not None and row.rights.train == "deny",
        "erased": row.erased,
    }


CLOCKS_S = st.one_of(st.integers(60, 110), st.integers(60, 400), st.integers(IDLE_S, IDLE_S + 400))


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_any_order_duplication_batching_and_restart_gives_the_same_rows_of_episodes(data: st.DataObject) -> None:
    history = data.draw(st.lists(histories(), min_size=4, max_size=24), label="history")
    again = data.draw(st.lists(st.sampled_from(history), max_size=6), label="delivered again")
    order = data.draw(st.permutations(history + again), label="order")
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4), label="batch sizes")
    restarts = data.draw(st.sets(st.integers(0, 12)), label="restarts after batches")
    clock_ms = T0_MS + 1000 * data.draw(CLOCKS_S, label="seconds on the clock")
    grading = data.draw(st.sampled_from(GRADINGS), label="credit")
    most = data.draw(st.sampled_from([1, 2, 500]), label="most rows of a transaction")
    expected = reference(history, clock_ms, grading)
    target(float(sum(row["settled"] for row in expected.values())))

    with patch.object(episodes, "MAX_ROWS", most):
        partition = deliver(order, sizes, restarts, clock_ms, grading)

    revisions: dict[tuple[str, str], list[GradedRow]] = defaultdict(list)
    said_of: dict[tuple[str, str], Progress] = {}
    for emission in partition.outputs:
        if emission.stream == "graded":
            row = msgspec.json.decode(emission.value or b"", type=GradedRow)
            revisions[row.episode_id, row.interaction_id].append(row)
        elif emission.stream == "progress":
            record = msgspec.json.decode(emission.value or b"", type=Progress)
            said_of[record.episode_id, record.interaction_id] = record
    assert set(revisions) <= set(expected)
    for identity, wanted in expected.items():
        if wanted["settled"] or identity in revisions:
            assert content(revisions[identity][-1]) == wanted
    assert {k: (p.grade.metrics, p.grade.reward, p.grade.settled, p.erased) for k, p in said_of.items()} == {
        k: (r["metrics"], r["reward"], r["settled"], r["erased"]) for k, r in expected.items()
    }
    for name in {episode for (episode, _), row in expected.items() if row["erased"]}:
        own = tuple(state_prefixes(name))
        kept = b"".join(value for key, value in partition.records.items() if key.startswith(own))
        assert not any(text in kept for text in (b'"hi"', b'"ho"', b'"sad"', b'"good"', b'"bad"')), name
    for rows in revisions.values():
        assert [r.provenance.revision for r in rows] == list(range(1, len(rows) + 1))
        assert all(content(a) != content(b) for a, b in pairwise(rows))
    counts = partition.meta.counts
    assert counts.get("captured", 0) == len(expected)
    assert counts.get("settled", 0) == sum(r["settled"] for r in expected.values())
    assert partition.meta.imports == {}


@settings(max_examples=60, deadline=None)
@given(
    history=st.lists(histories(), min_size=1, max_size=10),
    wait=CLOCKS_S,
    grading=st.sampled_from(GRADINGS),
    most=st.sampled_from([1, 500]),
)
def test_a_restart_after_every_batch_writes_what_no_restart_writes(
    history: list[dict[str, Any]], wait: int, grading: Grading, most: int
) -> None:
    clock_ms = T0_MS + wait * 1000
    with patch.object(episodes, "MAX_ROWS", most):
        plain = deliver(history, [1], set(), clock_ms, grading)
        restarted = deliver(history, [1], set(range(20)), clock_ms, grading)
    assert plain.outputs == restarted.outputs
    assert plain.records == restarted.records


class OneKey:
    """A key ring with one key."""

    def __init__(self) -> None:
        self.only = Cipher("0" * 32, b"k" * 32)

    def cipher(self, key_id: str) -> Cipher:
        assert key_id == self.only.key_id
        return self.only


@settings(max_examples=60, deadline=None)
@given(
    history=st.lists(histories(), min_size=1, max_size=14),
    wait=CLOCKS_S,
    grading=st.sampled_from(GRADINGS),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_sealed_events_give_the_rows_of_clear_ones_and_no_text_is_kept(
    history: list[dict[str, Any]], wait: int, grading: Grading, sizes: list[int]
) -> None:
    # a text as the value of a metric that is not declared is refused when it is sealed
    declared = {"reward", "solved", "said", "train"} | set(grading.declared)
    history = [event for event in history if event["data"].get("name", "said") in declared]
    keys, clock_ms = OneKey(), T0_MS + wait * 1000
    plain = deliver(history, sizes, set(), clock_ms, grading)
    sealing = Grading(grading.settings, keys)
    sealed = deliver(history, sizes, {0, 1, 2}, clock_ms, sealing, keys.only)
    assert sealed.records == deliver(history, sizes, set(), clock_ms, sealing, keys.only).records

    def opened_outputs(partition: MemoryPartition) -> list[tuple[str, bytes]]:
        out = []
        for emission in partition.outputs:
            kind = (
                codec.GRADED
                if emission.stream == "graded"
                else dict(emission.headers).get("original.ce_type", b"").decode()
            )
            out.append((emission.stream, opened(emission.value or b"", keys, about("w", kind, emission.key))))
        return out

    assert opened_outputs(sealed) == opened_outputs(plain)
    kept = b"".join(sealed.records.values())
    assert not any(text in kept for text in (b'"hi"', b'"ho"', b'"good"', b'"bad"'))
