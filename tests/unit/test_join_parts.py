"""Long contexts and usage rights in the join: rows wait for their parts, parts go out once, words on rights count in any order."""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec
import pytest
from treadle_schemas import GradedRow, Metric, WorkspaceSettings, codec, split_group
from treadle_schemas.canonical import dumps, loads
from treadle_schemas.parts import Part, SentParts, read_part, resolve, split
from treadle_streams.join import (
    END_MARGIN_MS,
    Arrival,
    Emission,
    Grading,
    MemoryPartition,
    Meta,
    decode,
    encode,
    index_keys,
    row_key,
)

T0_MS = 1_700_000_000_000
DAY_MS = 86_400_000
SETTINGS = WorkspaceSettings(workspace="shop", partitions=1, metrics=(Metric(name="reward", required=True),))
MESSAGES = [{"role": "user", "content": "please " * 200}, {"role": "assistant", "content": "done " * 200}]


class Bench:
    """A partition, what was written, and what a reader of `.graded` makes of it."""

    def __init__(self) -> None:
        self.partition = MemoryPartition(Grading(SETTINGS))
        self.offsets = {"interactions": 0, "outcomes": 0, "references": 0}

    def record(self, kind: Any, event_type: str, data: Any, key: str = "e") -> Arrival:
        headers: Any = codec.make_headers(event_type, "shop", source="test")
        self.offsets[kind] += 1
        return Arrival(kind, 0, self.offsets[kind] - 1, T0_MS, key.encode(), dumps(data), headers)

    def split(self, sent: SentParts | None = None, **changes: Any) -> tuple[Arrival, list[Arrival]]:
        body, values = split(interaction(**changes), sent or SentParts())
        return self.record("interactions", codec.INTERACTION, body), [self.part(value) for value in values]

    def part(self, value: dict[str, Any]) -> Arrival:
        return self.record("interactions", codec.PART, value)

    def outcome(self, value: Any = 1.0, interaction_id: str = "i", **changes: Any) -> Arrival:
        data = {
            "interaction_id": interaction_id,
            "episode_id": "e",
            "name": "reward",
            "value": value,
            "outcome_id": f"o{self.offsets['outcomes']}",
            "observed_at": "2023-11-14T22:13:20Z",
        }
        return self.record("outcomes", codec.OUTCOME, data | changes)

    def right(self, name: str, value: Any, observed_at: str = "2023-11-14T22:13:20Z", **changes: Any) -> Arrival:
        return self.outcome(value, name=name, kind="rights", observed_at=observed_at, **changes)

    def step(self, *arrivals: Arrival, clock_ms: int | None = None) -> list[Emission]:
        # offsets rise in the order of delivery, as they do in a log
        written: list[Emission] = []
        at = dict(self.partition.meta.offsets)
        renumbered = []
        for arrival in arrivals:
            at[arrival.kind] = at.get(arrival.kind, 0) + 1
            renumbered.append(arrival._replace(offset=at[arrival.kind] - 1))
        ends = None if clock_ms is None else dict.fromkeys(self.offsets, clock_ms + END_MARGIN_MS)
        written += self.partition.step(renumbered, at_end_ms=ends)
        return written

    @property
    def streams(self) -> list[str]:
        return [e.stream for e in self.partition.outputs if e.stream in ("graded", "part")]

    def read(self) -> list[tuple[GradedRow, Any]]:
        """Rows as a reader of `.graded` resolves them with the parts before them; None where it cannot."""
        kept: dict[str, Part] = {}
        rows: list[tuple[GradedRow, Any]] = []
        for e in self.partition.outputs:
            if e.stream == "part":
                episode, found = read_part(loads(e.value or b""))
                assert e.key == episode.encode()
                for part in found:
                    assert part.hash not in kept or part.kind == "erased", "each part is emitted once"
                    kept[part.hash] = part
            elif e.stream == "graded":
                row = msgspec.json.decode(e.value or b"", type=GradedRow)
                rows.append((row, None if row.erased else resolve(row.interaction, kept.get)))
        return rows

    @property
    def dead(self) -> list[dict[str, str]]:
        return [{k: v.decode() for k, v in e.headers} for e in self.partition.outputs if e.stream == "dead-letter"]

    def gauge(self, name: str) -> int:
        return self.partition.meta.counts.get(name, 0)


def interaction(**changes: Any) -> dict[str, Any]:
    value = {
        "interaction_id": "i",
        "episode_id": "e",
        "agent": "bot",
        "task_id": "t",
        "messages": MESSAGES,
        "started_at": "2023-11-14T22:13:10Z",
        "ended_at": "2023-11-14T22:13:20Z",
    } | changes
    return {k: v for k, v in value.items() if v is not None}


def test_a_row_comes_out_behind_its_parts_and_resolves_to_what_was_recorded() -> None:
    bench = Bench()
    row, parts = bench.split()
    bench.step(*parts, row, bench.outcome())
    assert bench.streams == ["part", "graded"]
    [(graded, whole)] = bench.read()
    assert graded.grade.settled
    assert whole == interaction()
    assert graded.interaction["messages"] == []


@pytest.mark.parametrize("restart", [False, True])
def test_a_row_waits_for_its_parts_and_settles_when_they_come(restart: bool) -> None:
    bench = Bench()
    row, parts = bench.split(tools=[{"type": "function", "description": "d" * 2_000}])
    bench.step(row, bench.outcome())
    assert bench.streams == []
    assert bench.gauge("waiting") == 1
    assert bench.gauge("settled") == 0
    for part in reversed(parts):
        if restart:
            bench.partition.restart()
        bench.step(part)
    assert bench.gauge("waiting") == 0
    assert bench.streams == ["part", "part", "graded"]
    assert bench.read()[0][1]["tools"] == [{"type": "function", "description": "d" * 2_000}]


def test_a_row_whose_parts_never_come_is_a_dead_letter_once_and_stays_pending() -> None:
    bench = Bench()
    row, parts = bench.split()
    bench.step(row, bench.outcome())
    bench.step(clock_ms=T0_MS + 8 * DAY_MS)
    bench.step(clock_ms=T0_MS + 30 * DAY_MS)
    assert [d["reason"] for d in bench.dead] == ["part_missing"]
    assert bench.streams == []
    assert bench.gauge("waiting") == 1
    bench.step(*parts)
    assert bench.streams == ["part", "graded"], "it settles when they come after all"


def test_each_part_of_a_growing_episode_goes_out_once() -> None:
    bench, sent = Bench(), SentParts()
    transcript: list[dict[str, Any]] = []
    for n in range(6):
        transcript += [{"role": "user", "content": f"{n} " * 400}, {"role": "assistant", "content": f"ok {n}"}]
        row, parts = bench.split(sent, interaction_id=f"i{n}", messages=list(transcript))
        bench.step(*parts, row)
    for n in (3, 5, 0, 1, 2, 4):
        bench.step(bench.outcome(interaction_id=f"i{n}"))
    rows = bench.read()
    assert [len(whole["messages"]) for _, whole in rows] == [8, 12, 2, 4, 6, 10]
    assert bench.streams == ["part", "graded", "part", "graded", "graded", "graded", "graded", "graded"]


def test_parts_that_come_twice_or_cut_in_another_way_change_nothing() -> None:
    bench = Bench()
    row, parts = bench.split()
    bench.step(*parts, row, bench.outcome())
    again = SentParts()
    _, [first] = split(interaction(messages=MESSAGES[:1]), again)
    _, [second] = split(interaction(), again)
    before = dict(bench.partition.records)
    bench.step(bench.part(first), bench.part(second), *parts)
    now = dict(bench.partition.records)
    assert {k for k in now if now[k] != before.get(k)} == {b"\0m"}
    assert bench.gauge("duplicates") == 3


def test_without_a_task_the_resolved_messages_make_the_split_group() -> None:
    bench = Bench()
    row, parts = bench.split(task_id=None)
    bench.step(row)
    bench.step(*parts)
    bench.step(bench.outcome())
    [(graded, _)] = bench.read()
    assert graded.split_group == split_group(None, MESSAGES)
    assert graded.split == SETTINGS.split.side(graded.split_group)


def test_content_lies_in_the_changelog_once_and_marks_do_not_rewrite_it() -> None:
    bench = Bench()
    row, parts = bench.split()
    bench.step(*parts, row)
    contents = {k: v for k, v in bench.partition.records.items() if k.startswith(b"c")}
    assert len(contents) == 2
    written: list[bytes] = []
    apply = bench.partition._apply
    bench.partition._apply = lambda made: (written.extend(made.puts), apply(made))[1]  # type: ignore[func-returns-value, method-assign]
    bench.step(bench.outcome())
    assert not [k for k in written if k.startswith(b"c")]
    assert len([k for k in written if k.startswith(b"n")]) == 2


@pytest.mark.parametrize("first", ["part", "erasure"])
@pytest.mark.parametrize("task_id", ["t", None])
def test_an_erased_part_wins_over_its_content_and_its_rows_say_so(first: str, task_id: str | None) -> None:
    bench = Bench()
    row, parts = bench.split(task_id=task_id)
    name = read_part(loads(parts[0].value or b""))[1][0].hash  # the first message: the second depends on it
    erasure = bench.part({"episode_id": "e", "part": name, "erased": "asked for"})
    steps = [*parts, erasure] if first == "part" else [erasure, *parts]
    bench.step(row, bench.outcome())
    for arrival in steps:
        bench.step(arrival)
    last, _ = bench.read()[-1]
    assert last.erased
    assert last.grade.settled
    assert last.split_group == (task_id or bench.read()[-1][0].interaction["transcript"]["head"])
    assert not [v for v in bench.partition.records.values() if b"please please" in v]


def test_a_winner_whose_parts_are_missing_unsettles_its_row_until_they_come() -> None:
    bench = Bench()
    first, parts = bench.split()
    bench.step(*parts, first, bench.outcome())
    earlier: dict[str, Any] = {
        "ended_at": "2023-11-14T22:13:15Z",
        "messages": [{"role": "user", "content": "other " * 300}],
    }
    second, more = bench.split(**earlier)
    bench.step(second)
    states = [json.loads(e.value or b"")["grade"]["settled"] for e in bench.partition.outputs if e.stream == "graded"]
    assert states == [True, False]
    bench.step(*more)
    assert [d["reason"] for d in bench.dead] == ["conflict"]
    last = bench.partition.outputs[-2:]
    assert [e.stream for e in last] == ["graded", "progress"]
    assert bench.streams == ["part", "graded", "graded", "part", "graded"]


def test_rows_with_more_parts_than_a_transaction_takes_follow_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["treadle_streams.join.batch"], "MAX_PART_BYTES", 5_000)
    bench = Bench()
    for n in range(9):
        row, parts = bench.split(interaction_id=f"i{n}", messages=[{"role": "user", "content": f"{n} " * 1_000}])
        bench.step(*parts, row)
    before = bench.partition.transactions
    bench.step(*[bench.outcome(interaction_id=f"i{n}") for n in range(9)])
    assert bench.partition.transactions - before > 1
    assert len(bench.read()) == 9
    assert (bench.gauge("settled"), bench.gauge("captured"), bench.gauge("orphans")) == (9, 9, 0)
    assert {
        k for key, value in bench.partition.records.items() for k in index_keys(key, value)
    } == bench.partition.index


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"episode_id": "e", "part": "0" * 32, "value": 1}, "bad_value"),
        ({"episode_id": "e", "part": "x", "value": 1}, "bad_value"),
        ({"episode_id": "other", "part": "0" * 32, "erased": "r"}, "malformed"),
    ],
)
def test_a_part_that_is_not_what_it_says_is_a_dead_letter(data: dict[str, Any], reason: str) -> None:
    bench = Bench()
    bench.step(bench.part(data))
    assert [d["reason"] for d in bench.dead] == [reason]


def test_a_claim_without_a_place_and_a_transcript_of_another_length_are_not_taken() -> None:
    bench = Bench()
    row, parts = bench.split()
    body = json.loads(row.value or b"")
    wrong = body | {"claims": {"/nowhere": "0" * 32}}
    bench.step(bench.record("interactions", codec.INTERACTION, wrong))
    assert [d["reason"] for d in bench.dead] == ["malformed"]
    longer = body | {"interaction_id": "j", "transcript": body["transcript"] | {"count": 3}}
    bench.step(*parts, bench.record("interactions", codec.INTERACTION, longer), bench.outcome(interaction_id="j"))
    bench.step(clock_ms=T0_MS + 8 * DAY_MS)
    assert [d["reason"] for d in bench.dead] == ["malformed", "part_missing"]
    assert bench.streams == []


def test_rights_are_part_of_a_row_and_a_change_corrects_it() -> None:
    bench = Bench()
    row, parts = bench.split(rights={"train": "deny"})
    bench.step(*parts, row, bench.outcome())
    bench.step(bench.right("train", "allow", "2023-11-14T22:13:20Z"))
    bench.step(bench.right("eval", "deny", "2023-11-14T22:13:21Z"))
    bench.step(bench.right("eval", "deny", "2023-11-14T22:13:21Z"))
    said = [row.rights for row, _ in bench.read()]
    assert [r and (r.train, r.eval) for r in said] == [("deny", "allow"), None, ("allow", "deny")]
    assert bench.gauge("corrections") == 2


@pytest.mark.parametrize(
    "words",
    [
        [("allow", "2024-01-01T00:00:00Z"), ("deny", "2024-01-01T00:00:00Z")],
        [("deny", "2024-01-02T00:00:00Z"), ("allow", "2024-01-01T00:00:00Z")],
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_the_later_word_counts_and_of_two_at_one_time_deny(words: list[tuple[str, str]], backwards: bool) -> None:
    bench = Bench()
    row, parts = bench.split()
    for value, at in reversed(words) if backwards else words:
        bench.step(bench.right("train", value, at))
    bench.step(*parts, row, bench.outcome())
    [(graded, _)] = bench.read()
    assert graded.rights is not None
    assert graded.rights.train == "deny"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "sell"}, "malformed"),
        ({"value": "maybe"}, "malformed"),
        ({"op": "retract"}, "bad_value"),
    ],
)
def test_rights_that_say_nothing_known_are_dead_letters(changes: dict[str, Any], reason: str) -> None:
    bench = Bench()
    bench.step(bench.outcome(**({"value": "deny", "kind": "rights", "name": "train"} | changes)))
    assert [d["reason"] for d in bench.dead] == [reason]


def test_the_index_of_what_waits_is_rebuilt_from_the_changelog_alone() -> None:
    bench = Bench()
    row, parts = bench.split(tools=[{"d": "d" * 2_000}])
    bench.step(row, parts[-1])
    rebuilt = {k for key, value in bench.partition.records.items() for k in index_keys(key, value)}
    assert rebuilt == bench.partition.index
    assert Meta.decode(bench.partition.records[b"\0m"]).counts["parts"] == 1


def test_state_that_an_earlier_version_wrote_is_read() -> None:
    bench = Bench()
    short = interaction(messages=[{"role": "user", "content": "hi"}])
    bench.step(bench.record("interactions", codec.INTERACTION, short), bench.outcome())
    key = row_key("e", "i")
    data = bench.partition.records[key]
    length = int.from_bytes(data[9:13])
    header = json.loads(data[13 : 13 + length])
    header[4] = header[4][:11]  # before parts and rights
    old = json.dumps(header[:15], separators=(",", ":")).encode()
    row = decode(data[:9] + len(old).to_bytes(4) + old + data[13 + length :])
    assert row == decode(data)
    assert encode(row) == data
