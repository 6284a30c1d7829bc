"""Changed grading settings: kept rows are graded anew beside the stream, bounded, restartable, and end as if they had always been so."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treadle_schemas import Credit, GradedRow, Metric, WorkspaceSettings, codec
from treadle_schemas.moments import from_micros
from treadle_schemas.records import Regraded
from treadle_streams.join import END_MARGIN_MS, INPUTS, Arrival, Grading, MemoryPartition, Meta, regrade

T0_MS = 1_700_000_000_000
BEFORE = WorkspaceSettings(
    workspace="shop",
    partitions=1,
    metrics=(Metric(name="reward", required=True), Metric(name="score", aggregate="mean")),
)
AFTER = WorkspaceSettings(
    workspace="shop",
    partitions=1,
    grading_version=2,
    metrics=(
        Metric(name="reward", required=True, aggregate="max", low=0.0, high=2.0),
        Metric(name="extra", level="episode", horizon_s=60.0),
    ),
    reward="reward * 2 + COALESCE(extra, 0)",
    credit=Credit(rule="discounted", gamma=0.5),
)


class Bench:
    def __init__(self, first: WorkspaceSettings = BEFORE) -> None:
        self.partition = MemoryPartition(Grading(first))
        self.offsets = dict.fromkeys(INPUTS, 0)

    def record(self, kind: Any, event_type: str, data: dict[str, Any]) -> Arrival:
        headers: Any = codec.make_headers(event_type, "shop", source="test")
        self.offsets[kind] += 1
        key = (data.get("episode_id") or data["interaction_id"]).encode()
        return Arrival(kind, 0, self.offsets[kind] - 1, T0_MS, key, json.dumps(data).encode(), headers)

    def interaction(self, name: str, episode: str, step: int = 0) -> Arrival:
        data = {
            "interaction_id": name,
            "episode_id": episode,
            "step": step,
            "agent": "bot",
            "messages": [{"role": "user", "content": "hi"}],
            "started_at": at(step),
            "ended_at": at(step),
        }
        return self.record("interactions", codec.INTERACTION, data)

    def outcome(self, value: Any, **said: Any) -> Arrival:
        data = {"name": "reward", "value": value, "outcome_id": "o", "observed_at": at(10)} | said
        return self.record("outcomes", codec.OUTCOME, data)

    def change(self, to: WorkspaceSettings) -> None:
        self.partition.grading = Grading(to)

    @property
    def graded(self) -> dict[str, GradedRow]:
        found = [e for e in self.partition.outputs if e.stream == "graded"]
        return {r.interaction_id: r for r in (msgspec.json.decode(e.value or b"", type=GradedRow) for e in found)}

    @property
    def markers(self) -> list[tuple[str, Regraded]]:
        found = [e for e in self.partition.outputs if e.stream in ("regraded", "regraded-progress")]
        return [(e.stream, msgspec.json.decode(e.value or b"", type=Regraded)) for e in found]


def at(second: float) -> str:
    return from_micros(T0_MS * 1000 + int(second * 1e6))


def test_a_changed_reward_grades_every_kept_row_anew_and_says_so_on_both_topics() -> None:
    b = Bench()
    b.partition.step(
        a
        for n in range(5)
        for a in (b.interaction(f"i{n}", f"e{n}"), b.outcome(n, interaction_id=f"i{n}", episode_id=f"e{n}"))
    )
    b.change(msgspec.structs.replace(BEFORE, reward="reward / 2", grading_version=2))
    b.partition.step()
    assert {name: (r.grade.reward, r.grade.grading_version, r.provenance.revision) for name, r in b.graded.items()} == {
        f"i{n}": (n / 2, 2, 2) for n in range(5)
    }
    marker = Regraded(grading_version=2, rows=5)
    assert b.markers == [("regraded", marker), ("regraded-progress", marker)]
    assert (b.partition.meta.regraded, b.partition.meta.cursor) == (2, b"")
    said = len(b.partition.outputs)
    b.partition.step()
    assert len(b.partition.outputs) == said, "once is enough"


def test_a_partition_without_rows_says_at_once_that_it_is_done() -> None:
    b = Bench(AFTER)
    b.partition.step()
    assert [m.rows for _, m in b.markers] == [0, 0]


def test_it_is_bounded_a_transaction_and_goes_on_from_meta_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regrade, "MAX_ROWS", 3)
    b = Bench()
    b.partition.step(
        a
        for n in range(10)
        for a in (b.interaction(f"i{n}", f"e{n}"), b.outcome(n, interaction_id=f"i{n}", episode_id=f"e{n}"))
    )
    b.change(msgspec.structs.replace(BEFORE, reward="-reward", grading_version=2))
    b.partition.step(most=1)
    assert sum(r.grade.grading_version == 2 for r in b.graded.values()) == 3
    assert b.markers == []
    assert Meta.decode(b.partition.meta.encode()) == b.partition.meta
    b.partition.restart()
    b.partition.step(
        [b.outcome(50, interaction_id="i9", episode_id="e9", outcome_id="new", observed_at=at(20))], most=1
    )
    assert b.graded["i9"].grade.reward == -50.0, "what arrives meanwhile is graded by the new settings at once"
    b.partition.step()
    assert {r.grade.grading_version for r in b.graded.values()} == {2}
    assert {r.provenance.revision for r in b.graded.values()} == {2}
    assert len(b.markers) == 2


def test_a_second_change_before_the_first_is_through_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regrade, "MAX_ROWS", 2)
    b = Bench()
    b.partition.step(
        a
        for n in range(5)
        for a in (b.interaction(f"i{n}", f"e{n}"), b.outcome(n, interaction_id=f"i{n}", episode_id=f"e{n}"))
    )
    b.change(msgspec.structs.replace(BEFORE, reward="-reward", grading_version=2))
    b.partition.step(most=1)
    b.change(msgspec.structs.replace(BEFORE, reward="reward + 1", grading_version=3))
    b.partition.step()
    assert {n: r.grade.reward for n, r in b.graded.items()} == {f"i{n}": n + 1.0 for n in range(5)}
    assert [m.grading_version for _, m in b.markers] == [3, 3]


def test_without_the_background_only_what_arrives_is_graded(monkeypatch: pytest.MonkeyPatch) -> None:
    from treadle_streams.join import plan

    b = Bench()
    b.partition.step([b.interaction("i", "e"), b.outcome(1.0, interaction_id="i", episode_id="e")])
    b.change(msgspec.structs.replace(BEFORE, reward="-reward", grading_version=2))
    made = plan(0, b.partition.meta, b.partition, [], b.partition.grading, graded_at="now", background=False)
    assert made.background
    assert made.empty


def test_values_follow_their_metrics_declaration() -> None:
    b = Bench()
    about: dict[str, Any] = {"interaction_id": "i", "episode_id": "e"}
    b.partition.step(
        [b.interaction("i", "e"), b.outcome(5, **about), b.outcome("high", name="extra", outcome_id="x", **about)]
    )
    assert b.graded["i"].grade.metrics["extra"] == ("observed", "high"), "undeclared, as it came"
    b.change(AFTER)
    b.partition.step()
    row = b.graded["i"]
    assert row.grade.metrics["reward"] == ("pending", None), "5 is out of the new range"
    assert row.grade.metrics["extra"] == ("pending", None), "a text is no float"
    assert not row.grade.settled
    b.change(msgspec.structs.replace(BEFORE, grading_version=3))
    b.partition.step()
    assert b.graded["i"].grade.metrics["extra"] == ("observed", "high")
    assert b.graded["i"].grade.reward == 5.0


def test_another_credit_rule_counts_the_steps_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Bench()
    b.partition.step([*(b.interaction(f"s{n}", "e", n) for n in range(4)), b.outcome(1.0, episode_id="e")])
    assert {n for n, r in b.graded.items() if r.grade.settled} == {"s3"}
    monkeypatch.setattr(regrade, "MAX_ROWS", 1)
    b.change(msgspec.structs.replace(BEFORE, grading_version=2, credit=Credit(rule="discounted", gamma=0.5)))
    b.partition.step()
    assert {n: r.grade.reward for n, r in b.graded.items()} == {"s0": 0.125, "s1": 0.25, "s2": 0.5, "s3": 1.0}


EVENTS = st.one_of(
    st.tuples(st.just("step"), st.sampled_from(["a", "b", "c"]), st.integers(0, 2)),
    st.tuples(st.just("row"), st.sampled_from(["a", "b", "c"]), st.sampled_from([0.0, 1.0, 2.0])),
    st.tuples(st.just("episode"), st.sampled_from(["o1", "o2"]), st.sampled_from([0.5, 1.0])),
    st.tuples(st.just("extra"), st.sampled_from(["o1", "o2"]), st.sampled_from([3, 4.0])),
)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_change_at_any_time_ends_in_the_rows_of_a_workspace_that_was_always_so(data: st.DataObject) -> None:
    history = data.draw(st.lists(EVENTS, min_size=1, max_size=12), label="history")
    when = data.draw(st.integers(0, len(history)), label="changed before")
    restarts = data.draw(st.sets(st.integers(0, 12)), label="restarts after")
    most = data.draw(st.sampled_from([1, 2, 200]), label="most rows of a transaction")

    def run(first: WorkspaceSettings) -> dict[str, Any]:
        b = Bench(first)
        with patch.object(regrade, "MAX_ROWS", most):
            for n, (kind, name, value) in enumerate(history):
                if n == when:
                    b.change(AFTER)
                match kind:
                    case "step":
                        arrival = b.interaction(name, "e", int(value))
                    case "row":
                        arrival = b.outcome(value, interaction_id=name, episode_id="e")
                    case "episode":
                        arrival = b.outcome(value, episode_id="e", outcome_id=name)
                    case _:
                        arrival = b.outcome(value, name="extra", episode_id="e", outcome_id=f"x{value}")
                b.partition.step([arrival], most=2)
                if n in restarts:
                    b.partition.restart()
            b.change(AFTER)
            b.partition.step()
            b.partition.step(at_end_ms=dict.fromkeys(INPUTS, T0_MS + 3_600_000 + END_MARGIN_MS))
        said = {}
        for emission in b.partition.outputs:
            if emission.stream == "progress":
                progress = json.loads(emission.value or b"")
                said[progress["interaction_id"]] = progress | {"revision": 0}
        last = {name: (row.grade, row.split_group) for name, row in b.graded.items() if row.grade.settled}
        return {"progress": said, "settled": last}

    assert run(BEFORE) == run(AFTER)
