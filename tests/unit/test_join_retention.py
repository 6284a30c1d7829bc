"""How state ends: rows, orphans, parts and tombstones, each counted from its own append, in memory and with time passed in."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from treadle_schemas import GradedRow, Metric, SettingError, WorkspaceSettings, codec
from treadle_schemas.moments import from_micros
from treadle_schemas.parts import SentParts, split
from treadle_streams.join import END_MARGIN_MS, META_KEY, Arrival, Emission, Grading, MemoryPartition
from treadle_streams.join.batch import MAX_ROWS_BY_TIME
from treadle_streams.join.retention import TOMBSTONE_MS, tombstone_key

T0_MS = 1_700_000_000_000
DAY_MS = 86_400_000
KEEP_MS = 90 * DAY_MS


class Bench:
    """One partition whose topics are read to their ends at the moment of each step."""

    def __init__(self, **changes: Any) -> None:
        plain: dict[str, Any] = {"workspace": "shop", "partitions": 1}
        settings = WorkspaceSettings(**(plain | changes))
        self.partition = MemoryPartition(Grading(settings))
        self.offsets = {"interactions": 0, "outcomes": 0, "references": 0}

    def record(self, kind: Any, event_type: str, data: Any, key: str, at_ms: int) -> Arrival:
        headers: Any = codec.make_headers(event_type, "shop", source="test")
        self.offsets[kind] += 1
        return Arrival(kind, 0, self.offsets[kind] - 1, at_ms, key.encode(), json.dumps(data).encode(), headers)

    def interaction(self, at_ms: int = T0_MS, interaction_id: str = "i", **changes: Any) -> Arrival:
        data = {
            "interaction_id": interaction_id,
            "episode_id": "e",
            "task_id": "t",
            "agent": "bot",
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
            "started_at": at(-2),
            "ended_at": at(-1),
        } | changes
        return self.record("interactions", codec.INTERACTION, data, data["episode_id"], at_ms)

    def outcome(self, value: Any = 1.0, at_ms: int = T0_MS, **changes: Any) -> Arrival:
        data: dict[str, Any] = {
            "interaction_id": "i",
            "episode_id": "e",
            "name": "reward",
            "outcome_id": "o1",
            "observed_at": at(0),
        }
        data |= ({} if "op" in changes else {"value": value}) | changes
        return self.record("outcomes", codec.OUTCOME, {k: v for k, v in data.items() if v is not ...}, "e", at_ms)

    def parts(self, parts: list[dict[str, Any]], at_ms: int = T0_MS) -> list[Arrival]:
        return [self.record("interactions", codec.PART, part, "e", at_ms) for part in parts]

    def step(self, *arrivals: Arrival, clock_ms: int | None = None) -> list[Emission]:
        ends = None if clock_ms is None else dict.fromkeys(self.offsets, clock_ms + END_MARGIN_MS)
        return self.partition.step(arrivals, at_end_ms=ends)

    def count(self, name: str) -> int:
        return self.partition.meta.counts.get(name, 0)

    @property
    def rows(self) -> list[GradedRow]:
        return [msgspec.json.decode(e.value or b"", type=GradedRow) for e in self.of("graded")]

    @property
    def reasons(self) -> list[str]:
        return [dict(e.headers)["reason"].decode() for e in self.of("dead-letter")]

    def of(self, stream: str) -> list[Emission]:
        return [e for e in self.partition.outputs if e.stream == stream]

    @property
    def kept(self) -> set[bytes]:
        """First bytes of the keys of what is kept, META aside."""
        return {key[:1] for key in self.partition.records if key != META_KEY}


def at(seconds: float) -> str:
    return from_micros(T0_MS * 1000 + int(seconds * 1e6))


def test_a_row_ends_after_its_retention_and_leaves_a_tombstone_with_its_last_revision() -> None:
    b = Bench()
    b.step(b.interaction(), b.outcome(1.0))
    b.step(b.outcome(0.0, outcome_id="o2", observed_at=at(1)))
    b.step(clock_ms=T0_MS + KEEP_MS)
    assert (b.count("captured"), b.count("settled")) == (1, 1)
    b.step(clock_ms=T0_MS + KEEP_MS + 1)
    assert (b.count("captured"), b.count("settled"), b.count("tombstones"), b.count("expired")) == (0, 0, 1, 1)
    assert b.kept == {b"x"}
    assert len(b.partition.index) == 1, "the tombstone's own end"
    assert [row.provenance.revision for row in b.rows] == [1, 2]
    assert b.reasons == [], "a row that settled ends without a word"


def test_a_later_copy_or_outcome_does_not_extend_it() -> None:
    b = Bench()
    b.step(b.interaction(), b.outcome(1.0))
    b.step(b.interaction(T0_MS + 50 * DAY_MS, ended_at=at(-1.5)), b.outcome(2.0, T0_MS + 80 * DAY_MS, outcome_id="o2"))
    b.step(clock_ms=T0_MS + KEEP_MS + 1)
    assert b.kept == {b"x"}


@pytest.mark.parametrize("timers", [True, False])
def test_what_comes_for_an_ended_row_is_row_expired_whether_or_not_its_timer_has_fired(timers: bool) -> None:
    b = Bench()
    b.step(b.interaction(), b.outcome(1.0))
    if timers:
        b.step(clock_ms=T0_MS + KEEP_MS + 1)
    late_ms = T0_MS + KEEP_MS + 10
    b.step(
        b.outcome(0.0, late_ms, outcome_id="o2"),
        b.outcome(op="retract", at_ms=late_ms),
        b.outcome("deny", late_ms, kind="rights", name="train", outcome_id="r"),
        b.interaction(late_ms),
        b.interaction(late_ms, ended_at=at(-1.5)),
    )
    assert b.reasons == ["row_expired"] * 5
    assert [row.grade.reward for row in b.rows] == [1.0]


def test_a_tombstone_ends_too_and_then_a_row_may_begin_anew() -> None:
    b = Bench()
    b.step(b.interaction(), b.outcome(1.0))
    b.step(clock_ms=T0_MS + KEEP_MS + 1)
    b.step(clock_ms=T0_MS + KEEP_MS + TOMBSTONE_MS)
    assert tombstone_key(b"r\0\1ei") in b.partition.records
    b.step(clock_ms=T0_MS + KEEP_MS + TOMBSTONE_MS + 1)
    assert (b.kept, b.partition.index, b.count("tombstones")) == (set(), set(), 0)


def test_outcomes_that_wait_in_vain_end_as_orphans_each_in_its_own_time() -> None:
    b = Bench()
    b.step(b.outcome(1.0), b.outcome(op="retract", outcome_id="o9"))
    b.step(b.outcome(2.0, T0_MS + DAY_MS, outcome_id="o2"))
    b.step(clock_ms=T0_MS + KEEP_MS + 1)
    assert (b.reasons, b.count("orphans")) == (["orphan"], 1)
    b.step(clock_ms=T0_MS + DAY_MS + KEEP_MS + 1)
    assert (b.reasons, b.count("orphans")) == (["orphan", "orphan"], 0)
    assert [json.loads(e.value or b"")["value"] for e in b.of("dead-letter")] == [1.0, 2.0]
    assert (b.kept, b.partition.index) == (set(), set())
    b.step(b.interaction(T0_MS + 200 * DAY_MS))
    assert b.count("captured") == 1, "an orphan's end says nothing against the interaction"


@pytest.mark.parametrize("timers", [True, False])
@pytest.mark.parametrize("first", ["outcome", "interaction"])
def test_an_interaction_does_not_meet_an_outcome_that_had_waited_too_long(first: str, timers: bool) -> None:
    b = Bench()
    late_ms = T0_MS + KEEP_MS + 1
    early, row = b.outcome(1.0), b.interaction(late_ms)
    for arrival in (early, row) if first == "outcome" else (row, early):
        b.step(arrival, clock_ms=late_ms + 1 if timers and arrival is early and first == "outcome" else None)
    assert b.reasons == ["orphan"]
    assert b.rows == []


def test_a_retract_that_waits_in_vain_ends_silently() -> None:
    b = Bench()
    b.step(b.outcome(op="retract"))
    b.step(clock_ms=T0_MS + KEEP_MS + 1)
    assert (b.kept, b.reasons, b.count("orphans")) == (set(), [], 0)


def test_a_row_that_never_settled_says_so_when_it_ends() -> None:
    b = Bench()
    body: dict[str, Any] = {"transcript": {"head": "ab" * 16, "count": 1}, "messages": []}
    b.step(b.interaction(**body))
    b.step(clock_ms=T0_MS + KEEP_MS + 1)
    assert b.reasons == ["part_missing", "row_expired"]
    assert b.rows == []


def test_a_row_is_kept_at_least_until_it_settles() -> None:
    b = Bench(metrics=(Metric(name="reward", required=True, horizon_s=100 * 86_400.0),))
    b.step(b.interaction())
    b.step(clock_ms=T0_MS + 95 * DAY_MS)
    assert b.count("captured") == 1
    b.step(clock_ms=T0_MS + 101 * DAY_MS)
    assert [row.grade.metrics["reward"] for row in b.rows] == [("absent", None)]
    assert b.reasons == []
    assert b.kept == {b"x"}


def test_the_parts_of_an_episode_end_with_its_last_row() -> None:
    b = Bench()
    messages = [{"role": "user", "content": "x" * 600}, {"role": "assistant", "content": "y" * 600}]
    value, parts = split({"interaction_id": "i", "episode_id": "e", "agent": "bot", "messages": messages}, SentParts())
    assert parts
    body = {k: v for k, v in value.items() if k in ("messages", "transcript", "claims")}
    b.step(*b.parts(parts), b.interaction(**body), b.outcome(1.0))
    b.step(b.interaction(T0_MS + DAY_MS, "j"))
    assert {b"n", b"c", b"k"} < b.kept
    b.step(clock_ms=T0_MS + KEEP_MS + 1)
    assert {b"n", b"c", b"k"} < b.kept, "another row of the episode is left"
    b.step(clock_ms=T0_MS + 3 * KEEP_MS)
    assert b.kept == {b"x"}
    assert not [key for key in b.partition.index if not key.startswith(b"\0t")]


def test_parts_whose_interaction_never_came_end_too() -> None:
    b = Bench()
    messages = [{"role": "user", "content": "x" * 600}, {"role": "assistant", "content": "y" * 600}]
    _, parts = split({"interaction_id": "i", "episode_id": "e", "agent": "bot", "messages": messages}, SentParts())
    b.step(*b.parts(parts))
    b.step(clock_ms=T0_MS + KEEP_MS + 1)
    assert (b.kept, b.partition.index) == (set(), set())


def test_an_episode_ends_with_its_last_row() -> None:
    b = Bench()
    said = {"interaction_id": ...}
    b.step(b.interaction(), b.interaction(T0_MS + DAY_MS, "j"), b.outcome(1.0, T0_MS + 2 * DAY_MS, **said))
    b.step(clock_ms=T0_MS + KEEP_MS + 1)
    assert b.kept == {b"e", b"r", b"x"}
    b.step(clock_ms=T0_MS + DAY_MS + KEEP_MS + 1)
    assert b.kept == {b"e", b"x"}, "it was spoken of a day later"
    b.step(clock_ms=T0_MS + 2 * DAY_MS + KEEP_MS + 2)
    assert (b.kept, b.count("episodes"), b.reasons) == ({b"x"}, 0, [])
    assert len(b.partition.index) == 2


def test_what_is_said_of_an_episode_that_never_came_ends_as_an_orphan() -> None:
    b = Bench()
    b.step(b.outcome(1.0, interaction_id=...))
    assert b.count("orphans") == 1
    b.step(clock_ms=T0_MS + KEEP_MS + 2)
    assert (b.reasons, b.count("orphans"), b.kept) == (["orphan"], 0, set())


def test_what_ends_in_one_transaction_is_bounded_and_all_of_it_ends() -> None:
    b = Bench()
    rows = MAX_ROWS_BY_TIME + 20
    b.step(*(b.interaction(interaction_id=f"i{n}", episode_id=f"e{n}") for n in range(rows)))
    b.step(clock_ms=T0_MS + 10 * DAY_MS)
    before = b.partition.transactions
    b.step(clock_ms=T0_MS + KEEP_MS + 1)
    assert b.partition.transactions == before + 2
    assert (b.count("captured"), b.count("tombstones")) == (0, rows)


def test_a_restart_ends_what_no_restart_ends() -> None:
    plain, restarted = Bench(), Bench()
    for b in (plain, restarted):
        b.step(b.interaction(), b.outcome(1.0), b.outcome(2.0, interaction_id="never"))
        b.step(b.outcome(3.0, T0_MS + DAY_MS, outcome_id="o2"))
        if b is restarted:
            b.partition.restart()
        b.step(clock_ms=T0_MS + KEEP_MS + 1)
    assert plain.partition.records == restarted.partition.records
    assert plain.partition.outputs == restarted.partition.outputs
    assert plain.partition.index == restarted.partition.index


def test_a_retention_that_makes_no_sense_is_refused() -> None:
    for seconds in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(SettingError, match="retention"):
            WorkspaceSettings(workspace="shop", retention_s=seconds).checked()
