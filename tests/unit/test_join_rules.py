"""Each rule of the join on its own, in memory, with time passed in."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from treadle_schemas import GradedRow, Metric, Progress, WorkspaceSettings, codec
from treadle_schemas.moments import from_micros
from treadle_streams.join import (
    END_MARGIN_MS,
    IMPORT_PATIENCE_MS,
    Arrival,
    Emission,
    Grading,
    MemoryPartition,
    Meta,
    StateError,
    advanced,
    decode,
    encode,
    index_keys,
    partition_of,
    row_key,
    time_up_ms,
)

T0_MS = 1_700_000_000_000
"""Append time of the first record of most tests."""
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
EPISODE = "e"


def settings(**changes: Any) -> WorkspaceSettings:
    plain: dict[str, Any] = {
        "workspace": "shop",
        "partitions": 1,
        "metrics": (
            Metric(name="reward", required=True),
            Metric(name="score", low=0.0, high=1.0, aggregate="mean"),
            Metric(name="label", type="category"),
        ),
    }
    return WorkspaceSettings(**(plain | changes)).checked()


class Bench:
    """A partition with a log: appends records at offsets and append times of their own, and reads back what was written."""

    def __init__(self, **changes: Any) -> None:
        self.partition = MemoryPartition(Grading(settings(**changes)))
        self.offsets = {"interactions": 0, "outcomes": 0, "references": 0}

    def record(
        self,
        kind: Any,
        event_type: str,
        data: Any,
        key: str | bytes | None,
        at_ms: int,
        import_id: str | None = None,
    ) -> Arrival:
        headers: Any = codec.make_headers(event_type, "shop", source="test", import_id=import_id)
        value = data if isinstance(data, bytes | None) else json.dumps(data).encode()
        self.offsets[kind] += 1
        raw_key = key.encode() if isinstance(key, str) else key
        return Arrival(kind, 0, self.offsets[kind] - 1, at_ms, raw_key, value, headers)

    def interaction(self, at_ms: int = T0_MS, *, import_id: str | None = None, **changes: Any) -> Arrival:
        data = interaction(**changes)
        key = data.get("episode_id") or data["interaction_id"]
        return self.record("interactions", codec.INTERACTION, data, key, at_ms, import_id)

    def outcome(self, value: Any = 1.0, at_ms: int = T0_MS, *, import_id: str | None = None, **changes: Any) -> Arrival:
        data = outcome(value, **changes)
        key = data.get("episode_id") or data.get("interaction_id") or data.get("reference")
        return self.record("outcomes", codec.OUTCOME, data, key, at_ms, import_id)

    def marker(self, kind: Any, phase: str, at_ms: int, import_id: str = "imp") -> Arrival:
        return self.record(kind, codec.IMPORT_MARKER, {"import_id": import_id, "phase": phase}, None, at_ms)

    def step(self, *arrivals: Arrival, clock_ms: int | None = None) -> list[Emission]:
        """A batch; with `clock_ms` all topics are known to be at their ends at that moment."""
        ends = None if clock_ms is None else dict.fromkeys(self.offsets, clock_ms + END_MARGIN_MS)
        return self.partition.step(arrivals, at_end_ms=ends)

    @property
    def graded(self) -> list[GradedRow]:
        return [msgspec.json.decode(e.value or b"", type=GradedRow) for e in self._of("graded")]

    @property
    def progress(self) -> list[Progress]:
        return [msgspec.json.decode(e.value or b"", type=Progress) for e in self._of("progress")]

    @property
    def dead(self) -> list[dict[str, str]]:
        return [{k: v.decode() for k, v in e.headers} for e in self._of("dead-letter")]

    def _of(self, stream: str) -> list[Emission]:
        return [e for e in self.partition.outputs if e.stream == stream]


def interaction(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "interaction_id": "i",
        "episode_id": EPISODE,
        "task_id": "t",
        "agent": "bot",
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
        "started_at": from_micros(T0_MS * 1000 - 2_000_000),
        "ended_at": from_micros(T0_MS * 1000 - 1_000_000),
    }
    return {k: v for k, v in (data | changes).items() if v is not ...}


def outcome(value: Any = 1.0, **changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "interaction_id": "i",
        "episode_id": EPISODE,
        "name": "reward",
        "value": value,
        "outcome_id": "o1",
        "observed_at": from_micros(T0_MS * 1000),
    }
    return {k: v for k, v in (data | changes).items() if v is not ...}


def at(seconds: float) -> str:
    return from_micros(T0_MS * 1000 + int(seconds * 1e6))


# --- settling and time


def test_progress_tells_of_errors_invalid_calls_latency_and_cost_at_once() -> None:
    b = Bench()
    calls = [{"id": "c", "type": "function", "function": {"name": "refund", "arguments": "{"}}]
    wrote = {"role": "assistant", "content": None, "tool_calls": calls}
    b.step(b.interaction(messages=[{"role": "user", "content": "hi"}, wrote], status="error", cost=0.5))
    vitals = b.progress[0].vitals
    assert vitals is not None
    assert (vitals.error, vitals.invalid_calls, vitals.cost) == (True, 1, 0.5)
    assert vitals.latency_ms > 0


def test_a_row_appears_on_progress_at_once_and_on_graded_when_it_settles() -> None:
    b = Bench()
    b.step(b.interaction())
    assert [p.grade.metrics["reward"] for p in b.progress] == [("pending", None)]
    assert b.graded == []
    b.step(b.outcome(0.5))
    (row,) = b.graded
    assert row.grade.settled
    assert row.grade.reward == 0.5
    assert row.grade.metrics["reward"] == ("observed", 0.5)
    assert row.grade.completeness == pytest.approx(1 / 3)
    assert (row.provenance.revision, row.provenance.outcome_ids) == (1, ["o1"])
    assert len(b.progress) == 2


def test_an_outcome_waits_as_an_orphan_until_its_interaction_appears() -> None:
    b = Bench()
    b.step(b.outcome(1.0))
    assert b.partition.outputs == []
    assert b.partition.meta.counts["orphans"] == 1
    b.step(b.interaction())
    assert [r.grade.reward for r in b.graded] == [1.0]
    counts = b.partition.meta.counts
    assert (counts["orphans"], counts["captured"], counts["settled"]) == (0, 1, 1)


def test_a_row_whose_required_outcome_never_comes_settles_when_its_time_is_up() -> None:
    b = Bench()
    b.step(b.interaction())
    up = T0_MS - 1000 + 7 * DAY_MS + HOUR_MS
    b.step(clock_ms=up)
    assert b.graded == []
    b.step(clock_ms=up + 1)
    (row,) = b.graded
    assert row.grade.metrics == {"reward": ("absent", None), "score": ("absent", None), "label": ("absent", None)}
    assert (row.grade.reward, row.grade.completeness, row.grade.settled) == (None, 1.0, True)
    assert len(b.partition.index) == 1, "no timer is left but that of the row's end"


@pytest.mark.parametrize(
    ("ended_ms", "append_ms", "expected"),
    [
        (T0_MS - DAY_MS, T0_MS, T0_MS + 6 * DAY_MS + HOUR_MS),
        (T0_MS + DAY_MS, T0_MS, T0_MS + 7 * DAY_MS + HOUR_MS),  # ends after it was appended: a wrong clock
        (T0_MS - 400 * DAY_MS, T0_MS, T0_MS + HOUR_MS),  # ended long ago: imported history
    ],
)
def test_the_time_of_a_metric_counts_from_the_earlier_of_end_and_append_and_never_before_the_append(
    ended_ms: int, append_ms: int, expected: int
) -> None:
    assert time_up_ms(ended_ms, append_ms, 7 * DAY_MS, HOUR_MS) == expected


def test_an_interaction_from_the_future_settles_by_its_append_time_and_is_counted() -> None:
    b = Bench()
    b.step(b.interaction(started_at=at(9e6), ended_at=at(9e6)))
    b.step(clock_ms=T0_MS + 7 * DAY_MS + HOUR_MS + 1)
    assert len(b.graded) == 1
    assert b.partition.meta.counts["clock_ahead"] == 1


def test_a_metric_that_is_not_required_goes_absent_at_its_own_time_and_that_is_a_revision() -> None:
    b = Bench(metrics=(Metric(name="reward", required=True), Metric(name="slow", horizon_s=10 * 86400.0)))
    b.step(b.interaction(), b.outcome(1.0))
    b.step(clock_ms=T0_MS + 30 * DAY_MS)
    assert [r.grade.metrics["slow"] for r in b.graded] == [("pending", None), ("absent", None)]
    assert [r.provenance.revision for r in b.graded] == [1, 2]


def test_a_timer_fires_after_a_restart() -> None:
    b = Bench()
    b.step(b.interaction())
    b.partition.restart()
    b.step(clock_ms=T0_MS + 8 * DAY_MS)
    assert len(b.graded) == 1


def test_a_correction_after_settlement_raises_the_revision() -> None:
    b = Bench()
    b.step(b.interaction(), b.outcome(1.0))
    b.step(b.outcome(0.0, outcome_id="o2", observed_at=at(60)))
    assert [(r.provenance.revision, r.grade.reward) for r in b.graded] == [(1, 1.0), (2, 0.0)]
    assert b.partition.meta.counts["corrections"] == 1


def test_a_late_outcome_of_a_row_that_settled_as_absent_folds_in() -> None:
    b = Bench()
    b.step(b.interaction())
    b.step(clock_ms=T0_MS + 20 * DAY_MS)
    b.step(b.outcome(1.0, T0_MS + 21 * DAY_MS))
    assert [r.grade.reward for r in b.graded] == [None, 1.0]


def test_the_clock_is_the_smallest_append_time_and_an_ended_topic_counts_as_broker_time_less_a_margin() -> None:
    assert advanced(0, {"interactions": 50_000, "outcomes": 40_000}, {}) == 0
    assert advanced(0, {"interactions": 50_000, "outcomes": 40_000}, {"references": 99_000}) == 40_000
    ends = dict.fromkeys(("interactions", "outcomes", "references"), 99_000)
    assert advanced(0, {"interactions": 50_000}, ends) == 94_000
    assert advanced(96_000, {"interactions": 50_000}, ends) == 96_000, "it never goes back"


# --- duplicates and conflicts


def test_the_same_interaction_and_the_same_outcome_again_change_nothing() -> None:
    b = Bench()
    b.step(b.interaction(), b.outcome(1.0))
    records, written = dict(b.partition.records), len(b.partition.outputs)
    b.step(b.interaction(at_ms=T0_MS + 5), b.outcome(1.0, T0_MS + 5))
    b.step(b.interaction(at_ms=T0_MS + 6), b.outcome(1.0, T0_MS + 6))
    assert len(b.partition.outputs) == written
    changed = {k for k, v in b.partition.records.items() if records.get(k) != v}
    assert changed == {b"\0m"}, "only META moved on"
    assert b.partition.meta.counts["duplicates"] == 4


def test_the_same_content_in_other_bytes_changes_nothing() -> None:
    b = Bench()
    again = json.dumps(interaction(), sort_keys=True, indent=1).encode()
    b.step(b.interaction(), b.outcome(1.0))
    b.step(b.record("interactions", codec.INTERACTION, again, EPISODE, T0_MS + 1))
    b.step(b.outcome(1, T0_MS + 1))  # 1 and 1.0 of a float metric are one content
    assert (len(b.graded), b.dead) == (1, [])


@pytest.mark.parametrize("first", ["early", "late"])
def test_of_conflicting_interactions_the_one_that_ended_first_wins_whichever_came_first(first: str) -> None:
    b = Bench()
    early = {"ended_at": at(-1), "agent": "early"}
    late = {"ended_at": at(-0.5), "agent": "late"}
    b.step(b.interaction(**(early if first == "early" else late)), b.outcome(1.0))
    b.step(b.interaction(T0_MS + 9, **(late if first == "early" else early)))
    assert b.graded[-1].interaction["agent"] == "early"
    (dead,) = b.dead
    assert (dead["reason"], dead["topic"]) == ("conflict", "treadle.shop.interactions")
    assert dead["offset"] == ("1" if first == "early" else "0"), "the loser's own offset"
    (emission,) = [e for e in b.partition.outputs if e.stream == "dead-letter"]
    assert json.loads(emission.value or b"")["agent"] == "late", "the loser's own bytes"
    assert dead["original.ce_type"] == codec.INTERACTION


@pytest.mark.parametrize("first", ["early", "late"])
def test_of_conflicting_outcomes_with_one_id_the_one_observed_last_wins_whichever_came_first(first: str) -> None:
    b = Bench()
    early, late = (0.0, at(1)), (1.0, at(2))
    a, c = (early, late) if first == "early" else (late, early)
    b.step(b.interaction(), b.outcome(a[0], observed_at=a[1]))
    b.step(b.outcome(c[0], T0_MS + 9, observed_at=c[1]))
    assert b.graded[-1].grade.reward == 1.0
    (dead,) = b.dead
    assert (dead["reason"], dead["topic"]) == ("conflict", "treadle.shop.outcomes")
    (emission,) = [e for e in b.partition.outputs if e.stream == "dead-letter"]
    assert json.loads(emission.value or b"")["value"] == 0.0
    assert emission.key == EPISODE.encode()


def test_conflicting_outcomes_of_one_moment_are_decided_by_their_content() -> None:
    rewards = set()
    for order in ((0.0, 1.0), (1.0, 0.0)):
        b = Bench()
        b.step(b.interaction(), *(b.outcome(v) for v in order))
        rewards.add(b.graded[-1].grade.reward)
    assert len(rewards) == 1


# --- several outcomes


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [("last", 3.0), ("first", 1.0), ("mean", 3.0), ("max", 5.0), ("min", 1.0), ("sum", 9.0)],
)
def test_repeated_outcomes_are_aggregated_in_the_order_they_were_observed(aggregate: Any, expected: float) -> None:
    b = Bench(metrics=(Metric(name="reward", required=True, aggregate=aggregate),))
    values = [(3.0, 9), (1.0, 1), (5.0, 5)]  # value, observed at: arrives out of order
    b.step(b.interaction(), *(b.outcome(v, outcome_id=f"o{s}", observed_at=at(s)) for v, s in values))
    assert b.graded[-1].grade.metrics["reward"] == ("observed", expected)


def test_a_sum_beyond_float64_stays_finite() -> None:
    b = Bench(metrics=(Metric(name="reward", required=True, aggregate="sum"),))
    b.step(b.interaction(), *(b.outcome(1.7e308, outcome_id=f"o{n}") for n in range(3)))
    assert b.graded[-1].grade.reward == 1.7976931348623157e308


def test_outcomes_of_one_moment_are_ordered_by_their_ids() -> None:
    b = Bench()
    b.step(b.interaction(), b.outcome(2.0, outcome_id="b"), b.outcome(1.0, outcome_id="a"))
    assert b.graded[-1].grade.reward == 2.0


def test_null_by_its_source_is_absent_and_settles_the_row() -> None:
    b = Bench()
    b.step(b.interaction(), b.outcome(None))
    (row,) = b.graded
    assert row.grade.metrics["reward"] == ("absent", None)
    assert (row.grade.reward, row.provenance.outcome_ids) == (None, ["o1"])


def test_an_aggregate_skips_nulls_and_is_absent_when_nothing_else_is_there() -> None:
    b = Bench()
    b.step(b.interaction(), b.outcome(None, name="score"), b.outcome(0.5, name="score", outcome_id="o2"))
    assert b.progress[-1].grade.metrics["score"] == ("observed", 0.5)


def test_undeclared_metrics_are_kept_as_they_come_and_aggregate_by_last() -> None:
    b = Bench()
    b.step(
        b.interaction(),
        b.outcome(3, name="turns", outcome_id="x"),
        b.outcome("ok", name="mood", outcome_id="y"),
        b.outcome(None, name="gone", outcome_id="z"),
        b.outcome(4, name="turns", outcome_id="w", observed_at=at(5)),
    )
    metrics = b.progress[-1].grade.metrics
    assert metrics["turns"] == ("observed", 4)
    assert metrics["mood"] == ("observed", "ok")
    assert metrics["gone"] == ("absent", None)
    assert list(metrics) == ["reward", "score", "label", "gone", "mood", "turns"]


def test_absence_is_null_in_a_reward_unless_the_metric_says_what_it_stands_for() -> None:
    for absent, expected in ((None, None), (0.25, 1.25)):
        b = Bench(
            metrics=(Metric(name="reward", required=True), Metric(name="bonus", absent=absent)),
            reward="reward + bonus",
        )
        b.step(b.interaction(), b.outcome(1.0))
        assert b.graded[-1].grade.reward is None, "pending is NULL always"
        b.step(clock_ms=T0_MS + 30 * DAY_MS)
        assert b.graded[-1].grade.reward == expected


# --- retracts


def test_a_retract_without_outcome_id_takes_back_what_was_observed_up_to_its_own_time() -> None:
    b = Bench()
    b.step(b.interaction(), b.outcome(1.0, observed_at=at(10)), b.outcome(0.5, outcome_id="o2", observed_at=at(30)))
    b.step(b.outcome(..., op="retract", outcome_id=..., observed_at=at(30)))
    assert b.progress[-1].grade.metrics["reward"] == ("pending", None)
    b.step(b.outcome(0.7, outcome_id="o3", observed_at=at(20)))
    assert b.progress[-1].grade.metrics["reward"] == ("pending", None), "also what arrives later"
    b.step(b.outcome(0.9, outcome_id="o4", observed_at=at(31)))
    assert b.graded[-1].grade.reward == 0.9


def test_a_retract_may_come_before_its_outcome_and_before_the_interaction() -> None:
    b = Bench()
    b.step(b.outcome(..., op="retract", outcome_id="o1", observed_at=at(0)))
    b.step(b.outcome(1.0, observed_at=at(99)))
    b.step(b.interaction())
    assert b.graded == []
    assert b.progress[-1].grade.metrics["reward"] == ("pending", None)


def test_a_retract_by_id_leaves_the_other_outcomes_and_the_same_id_of_another_name() -> None:
    b = Bench()
    b.step(b.interaction(), b.outcome(1.0), b.outcome(0.5, outcome_id="o2", observed_at=at(-5)))
    b.step(b.outcome(..., op="retract", outcome_id="o1", name="score"))
    assert b.graded[-1].grade.reward == 1.0
    b.step(b.outcome(..., op="retract", outcome_id="o1"))
    assert b.graded[-1].grade.reward == 0.5


def test_a_row_whose_only_required_outcome_is_taken_back_in_time_is_unsettled_again() -> None:
    b = Bench()
    b.step(b.interaction(), b.outcome(1.0))
    b.step(b.outcome(..., op="retract", outcome_id="o1"))
    assert [(r.provenance.revision, r.grade.settled) for r in b.graded] == [(1, True), (2, False)]
    assert b.partition.meta.counts["settled"] == 0
    b.step(clock_ms=T0_MS + 20 * DAY_MS)
    assert b.graded[-1].grade.metrics["reward"] == ("absent", None)
    assert [(r.provenance.revision, r.grade.settled) for r in b.graded] == [(1, True), (2, False), (3, True)]


# --- imports


def opened(b: Bench) -> None:
    b.step(b.marker("interactions", "begin", T0_MS), b.marker("outcomes", "begin", T0_MS))


def test_a_row_that_an_unfinished_import_touched_does_not_settle_by_time_and_is_found_again() -> None:
    b = Bench()
    opened(b)
    b.step(b.interaction(import_id="imp", started_at="2020-01-01T00:00:00Z", ended_at="2020-01-01T00:00:00Z"))
    b.step(b.marker("interactions", "end", T0_MS + 30 * DAY_MS))
    b.step(b.interaction(T0_MS + 30 * DAY_MS, interaction_id="live", started_at=at(0), ended_at=at(0)))
    # the import is still at work on outcomes: its newest record is a moment old
    b.step(
        b.outcome(0.1, T0_MS + 30 * DAY_MS, import_id="imp", interaction_id="other"),
        clock_ms=T0_MS + 30 * DAY_MS + 1,
    )
    assert b.graded == []
    b.partition.restart()
    b.step(b.marker("outcomes", "end", T0_MS + 30 * DAY_MS + 2))
    assert [r.interaction_id for r in b.graded] == ["i"]
    assert b.graded[0].grade.metrics["reward"] == ("absent", None)
    assert b.partition.meta.imports == {}


def test_an_event_of_a_held_row_does_not_let_its_other_metrics_go_absent() -> None:
    b = Bench()
    opened(b)
    b.step(b.interaction(import_id="imp", started_at="2020-01-01T00:00:00Z", ended_at="2020-01-01T00:00:00Z"))
    later = T0_MS + 2 * HOUR_MS
    b.step(b.outcome(0.1, later, import_id="imp", interaction_id="other"), b.interaction(later, interaction_id="other"))
    b.step(b.outcome("x", later, name="label"), clock_ms=later)
    assert b.progress[-1].grade.metrics["label"] == ("observed", "x")
    assert b.progress[-1].grade.metrics["reward"] == ("pending", None)
    b.step(b.marker("interactions", "end", later), b.marker("outcomes", "end", later), clock_ms=later)
    assert b.graded[-1].grade.metrics["reward"] == ("absent", None)


def test_an_import_without_end_is_over_an_hour_of_clock_after_its_last_record() -> None:
    b = Bench()
    opened(b)
    b.step(b.interaction(import_id="imp", started_at="2020-01-01T00:00:00Z", ended_at="2020-01-01T00:00:00Z"))
    b.step(clock_ms=T0_MS + IMPORT_PATIENCE_MS)
    assert b.graded == []
    b.step(clock_ms=T0_MS + IMPORT_PATIENCE_MS + 1)
    assert len(b.graded) == 1


def test_an_import_holds_no_row_back_whose_required_metrics_are_observed() -> None:
    b = Bench()
    opened(b)
    b.step(b.interaction(import_id="imp"), b.outcome(1.0, import_id="imp"))
    assert len(b.graded) == 1


def test_a_repeated_import_is_over_only_when_its_second_run_ended_on_both_topics() -> None:
    b = Bench()
    opened(b)
    b.step(b.marker("interactions", "end", T0_MS), b.marker("interactions", "begin", T0_MS))
    b.step(b.interaction(import_id="imp", started_at="2020-01-01T00:00:00Z", ended_at="2020-01-01T00:00:00Z"))
    b.step(b.marker("interactions", "end", T0_MS))
    b.step(b.marker("outcomes", "end", T0_MS), clock_ms=T0_MS + HOUR_MS)
    assert b.graded == [], "outcomes are still in the first run"
    b.step(b.marker("outcomes", "begin", T0_MS + HOUR_MS), b.marker("outcomes", "end", T0_MS + HOUR_MS))
    b.step(clock_ms=T0_MS + HOUR_MS + 1)
    assert len(b.graded) == 1


def test_importing_again_unsettles_nothing() -> None:
    b = Bench()
    old = {"started_at": "2020-01-01T00:00:00Z", "ended_at": "2020-01-01T00:00:00Z"}
    b.step(b.interaction(**old))
    b.step(clock_ms=T0_MS + 2 * HOUR_MS)
    assert b.graded[-1].grade.settled
    later = T0_MS + 3 * HOUR_MS
    b.step(b.marker("interactions", "begin", later), b.marker("outcomes", "begin", later))
    b.step(b.interaction(later, import_id="imp", **old))
    b.step(b.outcome("x", later, name="label", import_id="imp"))
    assert all(r.grade.settled for r in b.graded)


def test_many_parked_and_due_rows_are_worked_off_in_bounded_batches() -> None:
    b = Bench()
    b.step(*(b.interaction(interaction_id=f"i{n}") for n in range(1200)))
    before = b.partition.transactions
    b.step(clock_ms=T0_MS + 30 * DAY_MS)
    assert len(b.graded) == 1200
    assert b.partition.transactions - before == 3


# --- dead letters


def test_whatever_is_wrong_becomes_a_dead_letter_with_reason_and_place_and_the_stream_goes_on() -> None:
    b = Bench()
    first = b.interaction()
    deep: Any = {"x": 1}
    for _ in range(70):
        deep = {"x": deep}
    toys: Any = codec.make_headers(codec.INTERACTION, "toys", source="test")
    cases: list[tuple[str, Arrival]] = [
        ("malformed", b.record("interactions", codec.INTERACTION, b"{not json", EPISODE, T0_MS)),
        ("malformed", b.record("interactions", codec.INTERACTION, b"[]", EPISODE, T0_MS)),
        ("malformed", b.record("interactions", codec.INTERACTION, None, EPISODE, T0_MS)),
        ("malformed", b.record("interactions", codec.INTERACTION, '{"a":1}'.encode("utf-16"), EPISODE, T0_MS)),
        ("malformed", b.interaction(messages=...)),
        ("malformed", b.interaction(messages=[])),
        ("malformed", b.interaction(ended_at="yesterday")),
        ("malformed", b.interaction(tags={"a": {"b": 1}})),
        ("malformed", b.interaction(sampling=deep)),
        ("malformed", b.record("interactions", codec.INTERACTION, b'{"x": 1e999}', EPISODE, T0_MS)),
        ("malformed", b.interaction()._replace(headers=[("ce_workspace", b"shop")])),
        ("malformed", b.interaction()._replace(key=b"another")),
        ("malformed", b.interaction()._replace(key=None)),
        ("malformed", b.record("outcomes", codec.INTERACTION, interaction(), EPISODE, T0_MS)),
        ("malformed", b.record("interactions", codec.IMPORT_MARKER, {"import_id": "x", "phase": "mid"}, None, T0_MS)),
        ("malformed", b.outcome(1.0, outcome_id=...)),
        ("malformed", b.outcome(1.0, observed_at="2026-01-01T00:00:00")),
        ("malformed", b.outcome(1.0, interaction_id=..., episode_id=...)),
        ("unknown_type", b.record("outcomes", "dev.treadle.outcome.v2", outcome(), EPISODE, T0_MS)),
        ("unknown_type", b.record("outcomes", "com.example.other", outcome(), EPISODE, T0_MS)),
        ("wrong_workspace", b.interaction()._replace(headers=toys)),
        ("bad_value", b.outcome("good")),
        ("bad_value", b.outcome(True)),
        ("bad_value", b.outcome(1.5, name="score")),
        ("bad_value", b.outcome(3, name="label")),
        ("bad_value", b.outcome("x" * 5000, name="mood")),
        ("bad_value", b.outcome(2**70, name="mood")),
        ("malformed", b.record("references", codec.OUTCOME, {}, "x", T0_MS)),
        ("malformed", b.record("references", codec.OUTCOME, outcome(), EPISODE, T0_MS)),
        ("malformed", b.record("references", codec.REFERENCE, {"name": "x"}, "x", T0_MS)),
        ("malformed", b.record("outcomes", codec.REFERENCE, {}, "x", T0_MS)),
        ("malformed", b.interaction(references=["x", ""])),
        ("malformed", b.interaction(references=[f"pr:{n}" for n in range(101)])),
        ("too_large", b.interaction(error="x" * (8 << 20))),
    ]
    b.step(first, *(a for _, a in cases), b.outcome(1.0))
    assert [d["reason"] for d in b.dead] == [reason for reason, _ in cases]
    for dead, (_, arrival) in zip(b.dead, cases, strict=True):
        assert dead["detail"]
        assert dead["topic"] == f"treadle.shop.{arrival.kind}"
        assert (dead["partition"], dead["offset"], dead["timestamp"]) == ("0", str(arrival.offset), str(T0_MS))
    written = [e for e in b.partition.outputs if e.stream == "dead-letter"]
    assert [(e.key, e.value) for e in written] == [(a.key, a.value) for _, a in cases], "original bytes"
    assert [r.grade.reward for r in b.graded] == [1.0]
    assert sum(b.partition.meta.dead_letters.values()) == len(cases)


def test_an_event_in_a_wrong_partition_is_a_dead_letter_not_a_second_row() -> None:
    b = Bench(partitions=8)
    b.partition.partition = partition_of(EPISODE.encode(), 8)
    right, wrong = b.interaction(), b.interaction()
    b.step(right._replace(partition=b.partition.partition))
    b.step(wrong._replace(partition=(b.partition.partition + 1) % 8))
    assert [d["reason"] for d in b.dead] == ["wrong_partition"]


def test_the_partitioner_is_kafkas() -> None:
    # from org.apache.kafka.common.utils.UtilsTest.testMurmur2, as toPositive(hash) % 1,000,003
    hashes = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"abc": 479470107}
    for key, signed in hashes.items():
        assert partition_of(key, 1_000_003) == (signed & 0x7FFFFFFF) % 1_000_003


def test_a_row_takes_ten_thousand_outcomes_and_no_more() -> None:
    b = Bench(metrics=(Metric(name="reward", required=True, aggregate="sum"),))
    b.step(b.interaction(), *(b.outcome(1.0, outcome_id=f"o{n}") for n in range(10_001)))
    assert b.graded[-1].grade.reward == 10_000.0
    assert [d["reason"] for d in b.dead] == ["row_full"]


# --- state


def test_a_row_survives_its_bytes_and_the_interaction_stays_verbatim() -> None:
    b = Bench()
    body = json.dumps(interaction(error="Grüße \ud800"), indent=1).encode()
    b.step(
        b.record("interactions", codec.INTERACTION, body, EPISODE, T0_MS, "imp"),
        b.outcome("sch\ud800n", name="mood"),
        b.outcome(..., op="retract", outcome_id="x"),
        b.outcome(..., op="retract", outcome_id=...),
    )
    row = b.partition.row(EPISODE, "i")
    assert row is not None
    assert row.captured is not None
    assert row.captured.body == body
    assert decode(encode(row)) == row
    assert row.parked
    assert [k[:2] for k in index_keys(row.key, encode(row))] == [b"\0i"]


def test_row_keys_are_injective() -> None:
    pairs = [("a", "b"), ("ab", ""), ("", "ab"), ("a\0", "b"), ("a", "\0b"), ("ä", "b"), ("a" * 256, "b")]
    assert len({row_key(*p) for p in pairs}) == len(pairs)
    assert all(row_key(*p)[:1] == b"r" for p in pairs)


def test_damaged_state_is_refused_by_a_typed_error() -> None:
    for junk in (b"", b"R" + bytes(8), b"X" * 40, b"R" + bytes(8) + b"\0\0\0\2[]"):
        with pytest.raises(StateError):
            decode(junk)
    with pytest.raises(StateError):
        Meta.decode(b"nothing")


def test_nothing_to_do_needs_no_transaction_and_a_position_past_markers_does() -> None:
    b = Bench()
    b.step(b.interaction())
    before = b.partition.transactions
    b.step(clock_ms=T0_MS + 1000)
    assert b.partition.transactions == before
    b.partition.step(positions={"outcomes": 7})
    assert b.partition.transactions == before + 1
    assert b.partition.meta.offsets == {"interactions": 1, "outcomes": 7}
