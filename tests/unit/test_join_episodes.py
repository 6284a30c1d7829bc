"""Outcomes of whole episodes, their ends, and what steps have in common, in memory with time passed in."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from treadle_schemas import Credit, GradedRow, Metric, Progress, WorkspaceSettings, codec, split_group
from treadle_schemas.moments import from_micros
from treadle_streams.join import END_MARGIN_MS, Arrival, Emission, Grading, MemoryPartition, episodes
from treadle_streams.join.credit import IDLE_MS
from treadle_streams.join.episode_state import EpisodeState, Step, decode_episode, encode_episode
from treadle_streams.join.errors import StateError
from treadle_streams.join.state import Seen, episode_key

T0_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
REWARD = Metric(name="reward", required=True)
SOLVED = Metric(name="reward", required=True, level="episode")


class Bench:
    """A partition and its log. Every record is appended a second after the one before."""

    def __init__(self, credit: Credit | None = None, **changes: Any) -> None:
        plain: dict[str, Any] = {"workspace": "shop", "partitions": 1, "metrics": (REWARD,)}
        plain |= {"credit": credit or Credit()} | changes
        self.settings = WorkspaceSettings(**plain).checked()
        self.partition = MemoryPartition(Grading(self.settings))
        self.offsets = {"interactions": 0, "outcomes": 0, "references": 0}
        self.now_ms = T0_MS

    def record(self, kind: Any, event_type: str, data: Any, import_id: str | None = None) -> Arrival:
        headers: Any = codec.make_headers(event_type, "shop", source="test", import_id=import_id)
        self.offsets[kind] += 1
        self.now_ms += 1000
        key = (data.get("episode_id") or data["interaction_id"]).encode()
        return Arrival(kind, 0, self.offsets[kind] - 1, self.now_ms, key, json.dumps(data).encode(), headers)

    def step(self, name: str, number: int = 0, import_id: str | None = None, **changes: Any) -> Arrival:
        data = {
            "interaction_id": name,
            "episode_id": "e",
            "task_id": "t",
            "step": number,
            "agent": "bot",
            "messages": [{"role": "user", "content": name}, {"role": "assistant", "content": "done"}],
            "started_at": at(number),
            "ended_at": at(number + 0.5),
        }
        merged = {k: v for k, v in (data | changes).items() if v is not ...}
        return self.record("interactions", codec.INTERACTION, merged, import_id)

    def outcome(self, value: Any = 1.0, import_id: str | None = None, **changes: Any) -> Arrival:
        data = {"episode_id": "e", "name": "reward", "value": value, "outcome_id": "o", "observed_at": at(100)}
        merged = {k: v for k, v in (data | changes).items() if v is not ...}
        return self.record("outcomes", codec.OUTCOME, merged, import_id)

    def end(self, second: float, episode: str = "e") -> Arrival:
        return self.record("interactions", codec.EPISODE_END, {"episode_id": episode, "ended_at": at(second)})

    def send(self, *arrivals: Arrival, clock_ms: int | None = None) -> list[Emission]:
        ends = None if clock_ms is None else dict.fromkeys(self.offsets, clock_ms + END_MARGIN_MS)
        return self.partition.step(arrivals, at_end_ms=ends)

    @property
    def graded(self) -> dict[str, GradedRow]:
        """The last revision of each row."""
        return {r.interaction_id: r for r in self._all("graded", GradedRow)}

    @property
    def rewards(self) -> dict[str, float | None]:
        return {name: row.grade.reward for name, row in self.graded.items() if row.grade.settled}

    @property
    def states(self) -> dict[str, Any]:
        """By row, what `.progress` says last of the metric reward."""
        return {p.interaction_id: p.grade.metrics["reward"] for p in self._all("progress", Progress)}

    @property
    def dead(self) -> list[str]:
        return [dict(e.headers)["reason"].decode() for e in self.partition.outputs if e.stream == "dead-letter"]

    def episode(self, name: str = "e") -> EpisodeState | None:
        data = self.partition.records.get(episode_key(name))
        return None if data is None else decode_episode(data)

    def _all(self, stream: str, kind: Any) -> list[Any]:
        return [msgspec.json.decode(e.value or b"", type=kind) for e in self.partition.outputs if e.stream == stream]


def at(second: float) -> str:
    return from_micros(T0_MS * 1000 + int(second * 1e6))


# --- credit


@pytest.mark.parametrize(
    ("credit", "expected"),
    [
        (Credit(), {"c": 1.0}),
        (Credit(rule="all"), {"a": 1.0, "b": 1.0, "c": 1.0}),
        (Credit(rule="discounted", gamma=0.5), {"a": 0.25, "b": 0.5, "c": 1.0}),
    ],
)
@pytest.mark.parametrize("when", ["first", "between", "last"])
def test_an_outcome_of_an_episode_is_credited_to_its_steps_by_the_rule_whenever_it_comes(
    credit: Credit, expected: dict[str, float], when: str
) -> None:
    b = Bench(credit)
    steps = [b.step("a", 1), b.step("b", 2), b.step("c", 3)]
    steps.insert({"first": 0, "between": 2, "last": 3}[when], b.outcome())
    for arrival in steps:
        b.send(arrival)
    settled = {
        name: value for name, value in b.rewards.items() if b.graded[name].grade.metrics["reward"][1] is not None
    }
    assert settled == expected
    assert {name: state[1] for name, state in b.states.items() if state[0] == "observed"} == expected
    for name in expected:
        assert b.graded[name].provenance.outcome_ids == ["o"]


def test_steps_are_ordered_by_step_then_start_then_id() -> None:
    b = Bench()
    b.send(
        b.step("z", 1, started_at=at(1)),
        b.step("y", 1, started_at=at(0)),
        b.step("x", 0, started_at=at(9), ended_at=at(9)),
    )
    b.send(b.outcome())
    assert b.rewards == {"z": 1.0}
    b.send(b.step("zz", 1, started_at=at(1)))
    assert b.states == {"x": ("pending", None), "y": ("pending", None), "z": ("pending", None), "zz": ("observed", 1.0)}


def test_a_later_step_takes_the_credit_and_the_step_before_is_corrected() -> None:
    b = Bench()
    b.send(b.step("a", 1), b.outcome())
    assert b.rewards == {"a": 1.0}
    b.send(b.step("b", 2))
    assert b.rewards == {"b": 1.0}
    assert not b.graded["a"].grade.settled, "what it was settled by belongs to another step"
    assert b.graded["a"].provenance.revision == 2


def test_a_credited_outcome_is_aggregated_with_the_rows_own() -> None:
    b = Bench(Credit(rule="all"), metrics=(Metric(name="reward", required=True, aggregate="mean"),))
    b.send(b.step("a", 1), b.step("b", 2), b.outcome(1.0), b.outcome(0.0, interaction_id="a", outcome_id="p"))
    assert b.rewards == {"a": 0.5, "b": 1.0}
    assert b.graded["a"].provenance.outcome_ids == ["o", "p"]


def test_of_an_outcome_on_the_step_and_one_on_the_episode_the_one_observed_last_counts() -> None:
    b = Bench()
    b.send(b.step("a", 1), b.outcome(1.0), b.outcome(0.25, interaction_id="a", observed_at=at(50)))
    assert b.rewards == {"a": 1.0}
    b.send(b.outcome(0.5, interaction_id="a", observed_at=at(200), outcome_id="p"))
    assert b.rewards == {"a": 0.5}


def test_only_numbers_are_discounted() -> None:
    kinds = (REWARD, Metric(name="ok", type="bool"), Metric(name="label", type="category"))
    b = Bench(Credit(rule="discounted", gamma=0.5), metrics=kinds)
    b.send(b.step("a", 1), b.step("b", 2), b.outcome(), b.outcome(True, name="ok", outcome_id="p"))
    b.send(b.outcome("x", name="label", outcome_id="q"), b.outcome(8, name="loose", outcome_id="r"))
    found = b.graded["a"].grade.metrics
    assert (found["ok"], found["label"], found["loose"]) == (("observed", True), ("observed", "x"), ("observed", 4.0))


def test_a_retract_of_an_episode_takes_back_its_outcomes_and_not_those_of_its_steps() -> None:
    b = Bench(Credit(rule="all"))
    b.send(b.outcome(op="retract", value=..., outcome_id=..., observed_at=at(150)))  # before anything
    b.send(b.step("a", 1), b.step("b", 2), b.outcome(), b.outcome(0.5, interaction_id="b", outcome_id="p"))
    assert b.rewards == {"b": 0.5}
    b.send(b.outcome(0.75, outcome_id="later", observed_at=at(151)))
    assert b.rewards == {"a": 0.75, "b": 0.75}
    b.send(b.outcome(op="retract", value=..., outcome_id="later"))
    assert {n: s[0] for n, s in b.states.items()} == {"a": "pending", "b": "observed"}


def test_an_outcome_of_an_episode_waits_for_its_first_step_as_an_orphan() -> None:
    b = Bench()
    b.send(b.outcome())
    assert b.partition.meta.counts["orphans"] == 1
    b.send(b.step("a"))
    assert b.partition.meta.counts["orphans"] == 0
    assert b.rewards == {"a": 1.0}


def test_conflicts_duplicates_and_ranges_are_those_of_rows() -> None:
    b = Bench(metrics=(Metric(name="reward", required=True, low=0.0, high=1.0),))
    b.send(
        b.step("a"), b.outcome(0.5), b.outcome(0.5), b.outcome(0.75, observed_at=at(99)), b.outcome(2.0, outcome_id="x")
    )
    assert b.rewards == {"a": 0.5}
    assert b.dead == ["conflict", "bad_value"]
    assert b.partition.meta.counts["duplicates"] == 1


def test_rights_of_an_episode_hold_for_every_step_and_the_later_word_counts() -> None:
    b = Bench(Credit(rule="all"))
    right: dict[str, Any] = {"kind": "rights", "name": "train", "outcome_id": "w"}
    b.send(b.step("a", 1), b.step("b", 2), b.outcome(), b.outcome("deny", **right))
    assert [row.rights and row.rights.train for row in b.graded.values()] == ["deny", "deny"]
    b.send(b.outcome("allow", interaction_id="a", **right | {"outcome_id": "v", "observed_at": at(300)}))
    assert {n: row.rights and row.rights.train for n, row in b.graded.items()} == {"a": None, "b": "deny"}


# --- ends


def test_a_metric_of_episodes_settles_no_row_before_an_end_event() -> None:
    b = Bench(metrics=(SOLVED,))
    b.send(b.step("a", 1), b.step("b", 2), b.outcome())
    assert b.states["b"] == ("observed", 1.0)
    assert b.rewards == {}
    b.send(b.end(3))
    assert b.rewards == {"a": None, "b": 1.0}
    assert b.graded["a"].grade.metrics["reward"] == ("absent", None), "the rule gives it to another step"


def test_without_an_end_event_an_episode_is_over_after_a_day_of_idle_clock() -> None:
    b = Bench(Credit(rule="all"), metrics=(SOLVED,))
    b.send(b.step("a", 1), b.outcome())
    b.send(b.step("b", 2))
    over = b.now_ms + IDLE_MS
    b.send(clock_ms=over)
    assert b.rewards == {}
    b.send(clock_ms=over + 1)
    assert b.rewards == {"a": 1.0, "b": 1.0}
    assert b.partition.meta.counts["settled"] == 2


def test_a_single_interaction_is_an_episode_too() -> None:
    b = Bench(metrics=(SOLVED,))
    b.send(b.step("a", episode_id=...), b.outcome(interaction_id="a", episode_id="a"))
    assert b.rewards == {}
    b.send(b.end(3, "a"))
    assert b.rewards == {"a": 1.0}


def test_what_starts_after_the_end_opens_the_episode_again() -> None:
    b = Bench(Credit(rule="all"), metrics=(SOLVED,))
    b.send(b.step("a", 1), b.outcome(), b.end(3))
    assert b.rewards == {"a": 1.0}
    b.send(b.step("late", 2, started_at=at(3), ended_at=at(3)))
    assert set(b.rewards) == {"a", "late"}, "it started before the end and only came after it"
    b.send(b.step("b", 2, started_at=at(4), ended_at=at(4)))
    assert b.rewards == {}
    assert b.graded["a"].grade.metrics["reward"] == ("observed", 1.0)
    b.send(b.end(5))
    assert set(b.rewards) == {"a", "late", "b"}


def test_what_comes_after_a_day_of_idleness_opens_the_episode_again() -> None:
    b = Bench(Credit(rule="all"), metrics=(SOLVED,))
    b.send(b.step("a", 1), b.outcome())
    b.send(clock_ms=b.now_ms + IDLE_MS + 1)
    assert b.rewards == {"a": 1.0}
    b.now_ms += IDLE_MS + 60_000
    b.send(b.step("b", 2))
    assert b.rewards == {}
    b.send(clock_ms=b.now_ms + IDLE_MS + 1)
    assert b.rewards == {"a": 1.0, "b": 1.0}


def test_a_wrong_clock_of_the_agent_neither_keeps_an_episode_open_nor_closed() -> None:
    b = Bench(Credit(rule="all"), metrics=(SOLVED,))
    b.send(b.outcome(), b.step("a", 1, started_at=at(9e6), ended_at=at(9e6)), b.end(9e6 + 1))
    assert b.rewards == {"a": 1.0}
    b.send(b.step("b", 2, started_at=at(9e6 + 2), ended_at=at(9e6 + 2)))
    assert b.rewards == {}, "both count as their append times, in which it came after the end"


def test_time_alone_makes_no_metric_of_an_open_episode_absent() -> None:
    b = Bench(metrics=(Metric(name="reward", required=True, level="episode", horizon_s=60.0),))
    b.send(b.step("a", 1))
    b.send(clock_ms=T0_MS + 3 * HOUR_MS)
    assert b.states["a"] == ("pending", None)
    b.send(clock_ms=b.now_ms + IDLE_MS + 1)
    assert b.states["a"] == ("absent", None)


def test_steps_that_an_import_holds_back_are_not_over_by_time() -> None:
    b = Bench(Credit(rule="all"), metrics=(SOLVED,))
    begin = [
        b.record(k, codec.IMPORT_MARKER, {"import_id": "imp", "phase": "begin", "interaction_id": "x"})
        for k in ("interactions", "outcomes")
    ]
    b.send(*begin, b.step("a", 1), b.step("b", 2), b.outcome(import_id="imp"))
    b.now_ms += 3 * DAY_MS
    b.send(b.outcome(0.5, import_id="imp", outcome_id="again"), clock_ms=b.now_ms)
    assert b.rewards == {}
    ended = [
        b.record(k, codec.IMPORT_MARKER, {"import_id": "imp", "phase": "end", "interaction_id": "x"})
        for k in ("interactions", "outcomes")
    ]
    b.send(*ended, clock_ms=b.now_ms)
    assert b.rewards == {"a": 1.0, "b": 1.0}


# --- the split


def test_rows_without_a_task_belong_to_the_group_of_their_episodes_first_step() -> None:
    b = Bench(Credit(rule="all"))
    first = [{"role": "user", "content": "b"}]
    b.send(b.step("c", 3, task_id=...), b.outcome(), b.step("b", 2, task_id=...), b.step("d", 4, task_id="mine"))
    groups = {name: row.split_group for name, row in b.graded.items()}
    assert groups == {"b": split_group(None, first), "c": split_group(None, first), "d": "mine"}
    b.send(b.step("a", 1))  # it has a task, and its messages decide all the same
    group = split_group(None, [{"role": "user", "content": "a"}])
    assert {n: r.split_group for n, r in b.graded.items()} == {"a": "t", "b": group, "c": group, "d": "mine"}
    assert all(r.split == b.settings.split.side(r.split_group) for r in b.graded.values())


def test_a_first_step_that_loses_a_conflict_gives_the_group_back() -> None:
    b = Bench(Credit(rule="all"))
    b.send(b.outcome(), b.step("a", 1, task_id=...), b.step("b", 2, task_id=...))
    b.send(b.step("a", 3, task_id=..., started_at=at(0), ended_at=at(0)))  # the copy that ended first wins
    group = split_group(None, [{"role": "user", "content": "b"}])
    assert {row.split_group for row in b.graded.values()} == {group}
    episode = b.episode()
    assert episode is not None
    assert (episode.first, episode.last) == (Step(2, T0_MS * 1000 + 2_000_000, "b"), Step(3, T0_MS * 1000, "a"))


# --- bounds and costs


def test_an_episode_of_one_step_has_no_record_of_its_own() -> None:
    b = Bench()
    b.send(b.step("a", 1, episode_id="e"), b.outcome(interaction_id="a"))
    b.send(b.step("x", 1, episode_id=...))
    assert [key[:1] for key in b.partition.records if key[:1] not in (b"r", b"\0")] == []
    assert "episodes" not in b.partition.meta.counts


def test_many_steps_change_in_transactions_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "MAX_ROWS", 4)
    b = Bench(Credit(rule="discounted", gamma=0.5))
    b.send(*(b.step(f"s{n:02}", n) for n in range(10)))
    before = b.partition.transactions
    b.send(b.outcome())
    assert b.partition.transactions == before + 3
    assert b.rewards == {f"s{n:02}": 0.5 ** (9 - n) for n in range(10)}
    found = b.episode()
    assert found is not None
    assert found.todo == []
    assert not any(key[10:11] == b"e" and key[2:10] == bytes(8) for key in b.partition.index), "nothing is left to do"


def test_a_list_that_was_cut_off_goes_on_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "MAX_ROWS", 4)
    b = Bench(Credit(rule="all"))
    b.send(*(b.step(f"s{n:02}", n) for n in range(10)))
    b.partition.step([b.outcome()], most=1)
    assert len(b.rewards) == 4
    found = b.episode()
    assert found is not None
    assert len(found.todo) == 6
    b.partition.restart()
    b.send()
    assert set(b.rewards.values()) == {1.0}
    assert len(b.rewards) == 10


def test_lists_of_several_episodes_are_worked_off_when_each_transaction_is_full_with_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(episodes, "MAX_ROWS", 4)
    b = Bench(Credit(rule="all"))
    names = ("e", "f", "g")
    b.send(*(b.step(f"{name}{n}", n, episode_id=name) for name in names for n in range(6)))
    b.send(*(b.outcome(episode_id=name, outcome_id=name) for name in names))
    assert b.rewards == {f"{name}{n}": 1.0 for name in names for n in range(6)}


def test_an_episode_takes_ten_thousand_steps_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "MAX_STEPS", 3)
    b = Bench()
    b.send(b.step("a", 1), b.step("b", 2))
    b.send(b.step("c", 3), b.step("d", 4), b.step("a", 1))
    assert b.dead == ["episode_full"]
    assert b.partition.meta.counts["captured"] == 3


def test_an_episode_survives_its_bytes() -> None:
    seen = Seen("o", "reward", None, 5, 6, 7, "{}", kind="comment", fits=False)
    state = EpisodeState(
        "é", steps=2, first=Step(0, 1, "a"), last=Step(1, 2, "b"), group="g", taskless=True, started_us=3, appended_ms=4,
        end_us=5, append_ms=6, outcomes={"o": seen}, retracted_ids={("n", "x")}, retracted_until={"n": 3}, outcome_bytes=9,
        rights={"train": (3, "deny")}, imports={"i"}, version=2, todo=[("a", 1)], deadline_ms=0,
    )  # fmt: skip
    assert decode_episode(encode_episode(state)) == state
    for damaged in (b"", b"E", b"E" + bytes(8) + b"[1]", b"E" + bytes(8) + b"[2,3]", encode_episode(state)[:-5]):
        with pytest.raises(StateError):
            decode_episode(damaged)


# --- what is no metric, and strict workspaces


def test_comments_preferences_and_demonstrations_stay_with_the_row_and_can_be_taken_back() -> None:
    b = Bench()
    about: dict[str, Any] = {"interaction_id": "a"}
    answer = [{"role": "assistant", "content": "better"}]
    b.send(b.outcome("early", kind="comment", name="comment", outcome_id="c1", observed_at=at(1), **about))
    b.send(b.step("a"), b.outcome(1.0, **about))
    b.send(b.outcome(None, kind="preference", name="preference", outcome_id="p", observed_at=at(3), over="z", **about))
    b.send(
        b.outcome(
            None,
            kind="demonstration",
            name="demonstration",
            outcome_id="d",
            observed_at=at(2),
            messages=answer,
            **about,
        )
    )
    row = b.graded["a"]
    assert [(f.kind, f.value, f.over, f.messages) for f in row.feedback] == [
        ("comment", "early", None, None),
        ("demonstration", None, None, answer),
        ("preference", None, "z", None),
    ]
    assert set(row.grade.metrics) == {"reward"}
    assert (row.grade.reward, row.provenance.revision) == (1.0, 3)
    b.send(b.outcome(op="retract", value=..., name="comment", kind="comment", outcome_id="c1", **about))
    assert [f.kind for f in b.graded["a"].feedback] == ["demonstration", "preference"]


def test_what_is_said_of_an_episode_and_is_no_metric_belongs_to_its_last_step() -> None:
    b = Bench(Credit(rule="all"))
    b.send(
        b.step("a", 1), b.step("b", 2), b.outcome(), b.outcome("nice", kind="comment", name="comment", outcome_id="c")
    )
    assert {n: [f.value for f in r.feedback] for n, r in b.graded.items()} == {"a": [], "b": ["nice"]}
    b.send(b.step("c", 3))
    assert {n: [f.value for f in r.feedback] for n, r in b.graded.items()} == {"a": [], "b": [], "c": ["nice"]}


def test_a_strict_workspace_refuses_metrics_that_are_not_declared_and_nothing_else() -> None:
    b = Bench(strict=True)
    b.send(b.step("a"), b.outcome(3, name="mood"), b.outcome(3, name="mood", interaction_id="a", outcome_id="m"))
    b.send(b.outcome("ok", kind="comment", name="comment", outcome_id="c"), b.outcome(1.0))
    b.send(b.outcome(op="retract", value=..., name="mood", outcome_id=...))
    assert b.dead == ["undeclared", "undeclared"]
    assert set(b.graded["a"].grade.metrics) == {"reward"}
