"""Names on their own: outcomes by reference and by interaction id meet every row of that name, in memory, over several partitions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from treadle_schemas import GradedRow, Metric, WorkspaceSettings, codec
from treadle_schemas.moments import from_micros
from treadle_schemas.partitioner import partition_of
from treadle_streams.join import Emission, Grading, references
from treadle_streams.join.references import MAX_SENT, decode_name
from treadle_streams.join.state import name_key
from treadle_streams.join.workspace_memory import MemoryWorkspace

T0_MS = 1_700_000_000_000
DAY_MS = 86_400_000
PULL = "pr:org/repo#12"


class Bench:
    """Four partitions with their logs."""

    def __init__(self, **changes: Any) -> None:
        metrics = (Metric(name="reward", required=True, aggregate="sum"),)
        plain: dict[str, Any] = {"workspace": "shop", "partitions": 4, "metrics": metrics}
        settings = WorkspaceSettings(**(plain | changes))
        self.memory = MemoryWorkspace(Grading(settings), T0_MS)

    def interaction(self, interaction_id: str, episode_id: str | None = None, *references: str, **changes: Any) -> None:
        data = {
            "interaction_id": interaction_id,
            "episode_id": episode_id,
            "task_id": "t",
            "agent": "bot",
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
            "started_at": at(-2),
            "ended_at": at(-1),
            "references": list(references) or None,
        } | changes
        self._send("interactions", codec.INTERACTION, data, episode_id or interaction_id)

    def outcome(self, value: Any = 1.0, outcome_id: str | None = "o1", **said: Any) -> None:
        data = {"name": "reward", "value": value, "outcome_id": outcome_id, "observed_at": at(0)} | said
        self._send("outcomes", codec.OUTCOME, data, said.get("interaction_id") or said["reference"])

    def retract(self, **said: Any) -> None:
        data = {"name": "reward", "op": "retract", "observed_at": at(1)} | said
        self._send("outcomes", codec.OUTCOME, data, said.get("interaction_id") or said["reference"])

    def _send(self, kind: Any, event_type: str, data: dict[str, Any], key: str) -> None:
        value = json.dumps({k: v for k, v in data.items() if v is not None}).encode()
        self.memory.append(kind, key.encode(), value, list(codec.make_headers(event_type, "shop", source="test")))

    def rewards(self) -> dict[tuple[str, str], float | None]:
        """The reward of each row on `.graded`, as of its last revision."""
        rows = [msgspec.json.decode(e.value or b"", type=GradedRow) for e in self._of("graded")]
        return {(r.episode_id, r.interaction_id): r.grade.reward for r in rows}

    def dead(self) -> list[dict[str, str]]:
        return [{k: v.decode() for k, v in e.headers} for e in self._of("dead-letter")]

    def count(self, name: str) -> int:
        return sum(p.meta.counts.get(name, 0) for p in self.memory.partitions)

    def _of(self, stream: str) -> list[Emission]:
        return [e for p in self.memory.partitions for e in p.outputs if e.stream == stream]


def at(seconds: float) -> str:
    return from_micros(T0_MS * 1000 + int(seconds * 1e6))


@pytest.mark.parametrize("first", ["outcome", "interaction"])
def test_an_outcome_by_reference_counts_for_the_row_that_announced_it_whichever_came_first(first: str) -> None:
    b = Bench()
    steps: list[Callable[[], None]] = [lambda: b.outcome(reference=PULL), lambda: b.interaction("a", "e1", PULL)]
    for step in steps if first == "outcome" else steps[::-1]:
        step()
        b.memory.drain()
    assert b.rewards() == {("e1", "a"): 1.0}
    assert (b.count("orphans"), b.count("rekeyed")) == (0, 1)
    row = b.memory.partitions[partition_of(b"e1", 4)].row("e1", "a")
    assert row is not None
    (seen,) = row.outcomes.values()
    assert (seen.partition, seen.offset, seen.append_ms) == (partition_of(PULL.encode(), 4), 0, T0_MS), (
        "its first place"
    )


@pytest.mark.parametrize("first", ["outcome", "interaction"])
def test_an_outcome_that_knows_only_the_interaction_finds_the_episode_it_is_in(first: str) -> None:
    b = Bench()
    steps: list[Callable[[], None]] = [lambda: b.outcome(interaction_id="a"), lambda: b.interaction("a", "e1")]
    for step in steps if first == "outcome" else steps[::-1]:
        step()
        b.memory.drain()
    assert b.rewards() == {("e1", "a"): 1.0}
    assert b.count("orphans") == 0


def test_one_reference_on_several_episodes_reaches_them_all_now_and_later() -> None:
    b = Bench()
    b.interaction("a", "e1", PULL)
    b.interaction("b", "e2", PULL)
    b.memory.drain()
    b.outcome(reference=PULL)
    b.memory.drain()
    b.interaction("c", "e3", PULL)
    b.memory.drain()
    assert b.rewards() == {("e1", "a"): 1.0, ("e2", "b"): 1.0, ("e3", "c"): 1.0}
    assert b.count("rekeyed") == 3


def test_an_outcome_that_reaches_a_row_in_several_ways_counts_once() -> None:
    b = Bench()
    b.interaction("a", "e1", PULL, "response:chatcmpl-7")
    b.outcome(reference=PULL)
    b.outcome(reference="response:chatcmpl-7")
    b.outcome(reference=PULL)
    b.outcome(interaction_id="a")
    b.memory.drain()
    assert b.rewards() == {("e1", "a"): 1.0}
    assert b.dead() == []
    b.outcome(2.0, "o2", reference="response:chatcmpl-7")
    b.memory.drain()
    assert b.rewards() == {("e1", "a"): 3.0}


def test_retracts_are_rekeyed_too_also_when_they_come_first() -> None:
    b = Bench()
    b.retract(reference=PULL, outcome_id="o1")
    b.memory.drain()
    b.interaction("a", "e1", PULL)
    b.outcome(reference=PULL)
    b.outcome(5.0, "o2", reference=PULL)
    b.memory.drain()
    assert b.rewards() == {("e1", "a"): 5.0}
    b.retract(reference=PULL)
    b.memory.drain()
    assert b.rewards() == {("e1", "a"): None}


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (2, 1, 0), (1, 2, 0)])
def test_one_interaction_id_in_two_episodes_is_two_rows_and_an_outcome_by_that_id_counts_for_both(
    order: tuple[int, ...],
) -> None:
    b = Bench()
    steps: list[Callable[[], None]] = [
        lambda: b.interaction("a", "e1"),
        lambda: b.outcome(interaction_id="a"),
        lambda: b.interaction("a"),
    ]
    for n in order:
        steps[n]()
        b.memory.drain()
    assert b.rewards() == {("e1", "a"): 1.0, ("a", "a"): 1.0}
    assert (b.count("captured"), b.count("orphans"), b.count("shared_ids")) == (2, 0, 1)
    b.retract(interaction_id="a", outcome_id="o1")
    b.memory.drain()
    assert b.rewards() == {("e1", "a"): None, ("a", "a"): None}


def test_the_same_interaction_id_in_two_other_episodes_is_counted_too() -> None:
    b = Bench()
    b.interaction("a", "e1")
    b.interaction("a", "e2")
    b.interaction("a", "e2")
    b.memory.drain()
    assert (b.count("captured"), b.count("shared_ids")) == (2, 1)


def test_a_conflict_of_rekeyed_outcomes_names_the_place_where_the_loser_was_written() -> None:
    b = Bench()
    b.interaction("a", "e1", PULL)
    b.outcome(1.0, reference=PULL)
    b.memory.drain()
    b.outcome(2.0, reference=PULL, observed_at=at(5))
    b.memory.drain()
    b.outcome(3.0, reference=PULL, observed_at=at(-5))
    b.memory.drain()
    assert b.rewards() == {("e1", "a"): 2.0}
    place = str(partition_of(PULL.encode(), 4))
    assert [(d["reason"], d["topic"], d["partition"], d["offset"]) for d in b.dead()] == [
        ("conflict", "treadle.shop.outcomes", place, "0"),
        ("conflict", "treadle.shop.outcomes", place, "2"),
    ]
    assert [json.loads(e.value or b"")["value"] for e in b._of("dead-letter")] == [1.0, 3.0]
    assert not any(name in d for d in b.dead() for name in ("original.target", "original.origin"))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_every_copy_of_an_interaction_announces_its_names_also_one_that_loses(order: tuple[int, ...]) -> None:
    b = Bench()
    for n in order:
        b.interaction("a", "e1", f"x:{n}", ended_at=at(n))
        b.memory.drain()
    b.outcome(1.0, "o1", reference="x:0")
    b.outcome(2.0, "o2", reference="x:1")
    b.memory.drain()
    assert b.rewards() == {("e1", "a"): 3.0}


def test_a_row_with_its_own_id_as_episode_and_no_reference_announces_nothing() -> None:
    b = Bench()
    b.interaction("a")
    b.outcome(interaction_id="a")
    b.memory.drain()
    assert b.rewards() == {("a", "a"): 1.0}
    assert not any(b.memory.log["references", p] for p in range(4))
    assert b.count("names") == 0


def test_a_waiting_outcome_is_kept_once_it_met_its_own_row_only_where_the_row_does_not_keep_it() -> None:
    b = Bench()
    b.outcome(interaction_id="a")
    b.retract(interaction_id="a", outcome_id="o9")
    b.memory.drain()
    assert (b.count("orphans"), b.count("names")) == (1, 1)
    b.interaction("a")
    b.memory.drain()
    assert (b.count("orphans"), b.count("names")) == (0, 1)
    data = b.memory.partitions[partition_of(b"a", 4)].records[name_key("interaction", "a")]
    (waiting,) = decode_name(data).events
    assert json.loads(waiting.raw)["op"] == "retract"


def test_an_outcome_that_is_wrong_is_refused_before_it_waits() -> None:
    b = Bench()
    b.outcome("good", reference=PULL)
    b.memory.drain()
    assert [d["reason"] for d in b.dead()] == ["bad_value"]
    assert b.count("names") == 0


def test_what_a_name_has_to_say_is_bounded_in_one_transaction_and_none_of_it_is_lost() -> None:
    b = Bench(partitions=1)
    outcomes = MAX_SENT + 10
    for n in range(outcomes):
        b.outcome(1.0, f"o{n}", reference=PULL)
    b.memory.drain()
    b.interaction("a", "e1", PULL)
    (one,) = b.memory.partitions
    b.memory.step(0)
    before = one.transactions
    sent = len(b.memory.log["references", 0])
    b.memory.step(0)
    assert one.transactions - before > 1
    assert len(b.memory.log["references", 0]) - sent == outcomes
    b.memory.drain()
    assert b.rewards() == {("e1", "a"): float(outcomes)}


def test_what_several_names_have_to_say_goes_out_when_each_transaction_is_full_with_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(references, "MAX_SENT", 4)
    b = Bench(partitions=1)
    names = [f"pr:org/repo#{n}" for n in range(3)]
    for name in names:
        for n in range(6):
            b.outcome(1.0, f"{name}-{n}", reference=name)
    b.memory.drain()
    for n, name in enumerate(names):
        b.interaction(f"i{n}", f"e{n}", name)
    b.memory.drain()
    assert b.rewards() == {(f"e{n}", f"i{n}"): 6.0 for n in range(3)}


def test_a_name_keeps_ten_thousand_outcomes_and_no_more() -> None:
    b = Bench(partitions=1)
    for n in range(10_001):
        b.outcome(1.0, f"o{n}", reference=PULL)
    b.memory.drain()
    assert [d["reason"] for d in b.dead()] == ["row_full"]


# --- their end


def test_an_outcome_by_reference_that_met_nothing_ends_as_an_orphan_with_its_own_bytes() -> None:
    b = Bench()
    b.outcome(reference=PULL)
    b.memory.drain()
    b.memory.pass_time(T0_MS + 90 * DAY_MS)
    assert b.dead() == []
    b.memory.pass_time(T0_MS + 90 * DAY_MS + 1)
    (dead,) = b.dead()
    assert (dead["reason"], dead["topic"], dead["offset"]) == ("orphan", "treadle.shop.outcomes", "0")
    assert dead["original.ce_type"] == codec.OUTCOME
    assert [e.value for e in b._of("dead-letter")] == [b.memory.log["outcomes", int(dead["partition"])][0].value]
    assert (b.count("orphans"), b.count("names")) == (0, 0)
    assert not any(key[:1] == b"a" for p in b.memory.partitions for key in p.records)


def test_an_outcome_by_reference_that_met_a_row_ends_without_a_word() -> None:
    b = Bench()
    b.outcome(reference=PULL)
    b.interaction("a", "e1", PULL)
    b.memory.drain()
    b.memory.pass_time(T0_MS + 90 * DAY_MS + 1)
    assert b.dead() == []
    assert (b.count("names"), b.count("captured"), b.count("tombstones")) == (0, 0, 1)


@pytest.mark.parametrize("first", ["outcome", "interaction"])
@pytest.mark.parametrize(("gap_ms", "met"), [(90 * DAY_MS, True), (90 * DAY_MS + 1, False)])
def test_an_announcement_and_an_outcome_meet_when_their_appends_are_no_further_apart_than_state_is_kept(
    first: str, gap_ms: int, met: bool
) -> None:
    b = Bench()
    steps: list[Callable[[], None]] = [lambda: b.outcome(reference=PULL), lambda: b.interaction("a", "e1", PULL)]
    for n, step in enumerate(steps if first == "outcome" else steps[::-1]):
        b.memory.now_ms = T0_MS + n * gap_ms
        step()
        b.memory.drain()
    assert b.count("rekeyed") == met
    assert (b.rewards().get(("e1", "a")) == 1.0) is met
