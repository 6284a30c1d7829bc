"""Lost state is rebuilt from the inputs, with `.graded` as the floor for revisions: in memory, batch by batch."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from treadle_schemas import GradedRow, Metric, WorkspaceSettings, codec
from treadle_schemas.moments import from_micros
from treadle_streams.join import END_MARGIN_MS, META_KEY, Arrival, Emission, Grading, MemoryPartition, Meta, encode
from treadle_streams.join.emissions import graded_hash_of
from treadle_streams.join.restoring import Restore, seed_of

T0_MS = 1_700_000_000_000
DAY_MS = 86_400_000
KINDS = ("interactions", "outcomes", "references")
GRADING = Grading(
    WorkspaceSettings(
        workspace="shop",
        partitions=1,
        metrics=(Metric(name="reward", required=True), Metric(name="score", low=0.0, high=1.0)),
    )
)


class Log:
    """The inputs of one partition, and its state."""

    def __init__(self) -> None:
        self.partition = MemoryPartition(GRADING)
        self.records: dict[str, list[Arrival]] = {kind: [] for kind in KINDS}

    def write(self, kind: Any, event_type: str, value: bytes, key: str, at_ms: int = T0_MS, **headers: bytes) -> None:
        said: Any = codec.make_headers(event_type, "shop", source="test") + list(headers.items())
        self.records[kind].append(Arrival(kind, 0, len(self.records[kind]), at_ms, key.encode(), value, said))

    def interaction(self, interaction_id: str, at_ms: int = T0_MS, **changes: Any) -> None:
        data = {
            "interaction_id": interaction_id,
            "agent": "bot",
            "task_id": "t",
            "messages": [{"role": "user", "content": "hi"}],
            "started_at": at(0),
            "ended_at": at(1),
        } | changes
        body = b" " + json.dumps(data, indent=1).encode() + b"\n"
        self.write("interactions", codec.INTERACTION, body, data.get("episode_id", interaction_id), at_ms)

    def outcome(self, value: Any, at_ms: int = T0_MS, outcome_id: str = "o", **target: Any) -> None:
        data = {"name": "reward", "value": value, "outcome_id": outcome_id, "observed_at": at(2)} | target
        key = data.get("episode_id") or data.get("interaction_id") or data.get("reference")
        self.write("outcomes", codec.OUTCOME, json.dumps(data).encode(), str(key), at_ms)

    def run(self, clock_ms: int | None = None, batch: int = 100) -> list[Emission]:
        """Take in what is there, and what the partition writes to itself."""
        out: list[Emission] = []
        while True:
            offsets = self.partition.meta.offsets
            found = [a for kind in KINDS for a in self.records[kind][offsets.get(kind, 0) :][:batch]]
            at_end = all(len(self.records[k]) - offsets.get(k, 0) <= batch for k in KINDS)
            ends = dict.fromkeys(KINDS, clock_ms + END_MARGIN_MS) if clock_ms is not None and at_end else None
            written = self.partition.step(found, at_end_ms=ends)
            out += written
            for e in written:
                if e.stream in ("announcement", "rekeyed"):
                    kind = codec.REFERENCE if e.stream == "announcement" else codec.OUTCOME
                    headers: Any = codec.make_headers(kind, "shop", source="treadle/join") + e.headers
                    log = self.records["references"]
                    log.append(Arrival("references", 0, len(log), T0_MS, e.key, e.value, headers))
            if not found and not written:
                return out

    def lose(self, *, known: bool = True) -> None:
        """The state is lost; seeds and META are written as `treadle restore` writes them."""
        last: dict[tuple[str, str], bytes] = {}
        for e in self.partition.outputs:
            if e.stream == "graded":
                row = msgspec.json.decode(e.value or b"", type=GradedRow)
                last[row.episode_id, row.interaction_id] = e.value or b""
        ends = {kind: len(log) for kind, log in self.records.items()}
        self.partition = MemoryPartition(GRADING)
        seeds = [seed_of(value) for value in last.values()]
        self.partition.records = {seed.key: encode(seed) for seed in seeds}
        meta = Meta(restore=Restore(ends, ends if known else {}), counts={"orphans": len(seeds)})
        self.partition.records[META_KEY] = meta.encode()
        self.partition.restart()


def at(second: int) -> str:
    return from_micros(T0_MS * 1000 + second * 1_000_000)


def streams(written: list[Emission]) -> list[str]:
    return [e.stream for e in written if e.stream != "progress"]


def busy_log() -> Log:
    log = Log()
    log.outcome(1.0, interaction_id="a")
    log.interaction("a")
    log.interaction("b", episode_id="e", references=["pr:1"])
    log.interaction("c", episode_id="e", task_id=None)
    log.outcome(0.5, reference="pr:1")
    log.outcome(0.25, interaction_id="c")
    log.outcome(7, interaction_id="c", name="score", outcome_id="bad")
    log.interaction("a", ended_at=at(5))
    log.outcome(1.0, episode_id="e", outcome_id="all")
    log.outcome(1.0, interaction_id="nobody")
    log.run()
    log.outcome(0.0, interaction_id="a", outcome_id="o2", observed_at=at(9))
    log.run(T0_MS + DAY_MS)
    return log


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_rebuilt_state_has_the_same_rows_and_says_nothing_again(batch: int) -> None:
    log = busy_log()
    before = {key: value for key, value in log.partition.records.items() if key != META_KEY}
    counts = {n: c for n, c in log.partition.meta.counts.items() if n in ("captured", "settled", "orphans", "names")}
    log.lose()
    written = log.run(T0_MS + DAY_MS, batch)
    assert streams(written) == []
    after = {key: value for key, value in log.partition.records.items() if key != META_KEY}
    assert after.keys() == before.keys()
    for key in before:
        if key[:1] == b"r":
            new, old = log.partition.row(*_ids(before[key])), _row(before[key])
            assert new is not None
            assert (new.captured, new.graded_hash, new.revision) == (old.captured, old.graded_hash, old.revision)
            assert (new.settled, new.append_ms, set(new.outcomes)) == (old.settled, old.append_ms, set(old.outcomes))
    meta = log.partition.meta
    assert {name: meta.counts.get(name, 0) for name in counts} == counts
    assert (meta.restore, meta.counts["restored"]) == (None, 1)
    log.partition.restart()
    assert log.run(T0_MS + DAY_MS) == []


def test_what_comes_after_goes_on_above_the_last_revision() -> None:
    log = busy_log()
    log.lose()
    log.run()
    log.outcome(0.75, interaction_id="a", outcome_id="o3", observed_at=at(20))
    (row,) = [msgspec.json.decode(e.value or b"", type=GradedRow) for e in log.run() if e.stream == "graded"]
    assert (row.grade.reward, row.provenance.revision) == (0.75, 3)


def test_what_the_lost_state_had_not_taken_in_is_graded_and_refused_as_ever() -> None:
    log = busy_log()
    log.lose()
    log.outcome(0.75, interaction_id="a", outcome_id="o3", observed_at=at(20))
    log.outcome("good", interaction_id="a", outcome_id="o4")
    assert streams(log.run()) == ["dead-letter", "graded"]


def test_where_the_lost_state_stood_is_not_known_dead_letters_are_said_again_and_rows_are_not() -> None:
    log = busy_log()
    log.lose(known=False)
    assert set(streams(log.run(T0_MS + DAY_MS))) == {"dead-letter", "announcement", "rekeyed"}


def test_rows_that_ended_end_again_and_keep_their_last_revision() -> None:
    log = busy_log()
    log.interaction("z", T0_MS + 100 * DAY_MS)
    log.run(T0_MS + 100 * DAY_MS)
    kept = {key for key in log.partition.records if key != META_KEY}
    log.lose()
    written = log.run(T0_MS + 100 * DAY_MS)
    assert {key for key in log.partition.records if key != META_KEY} == kept
    assert set(streams(written)) == {"dead-letter"}
    assert {dict(e.headers)["reason"] for e in written if e.stream == "dead-letter"} == {b"orphan"}


def test_a_row_whose_interaction_is_not_on_the_log_any_more_becomes_a_tombstone() -> None:
    log = busy_log()
    log.lose()
    for kind in KINDS:
        log.records[kind] = []
    meta = log.partition.meta
    meta.restore = Restore({}, {})
    log.partition.records[META_KEY] = meta.encode()
    assert streams(log.run()) == []
    assert {key[:1] for key in log.partition.records if key != META_KEY} == {b"x"}
    log.interaction("a")
    assert [dict(e.headers)["reason"] for e in log.run() if e.stream == "dead-letter"] == [b"row_expired"]


def test_the_fingerprint_of_a_record_is_that_of_its_row() -> None:
    log = busy_log()
    last: dict[Any, bytes] = {}
    for e in log.partition.outputs:
        if e.stream == "graded":
            row = msgspec.json.decode(e.value or b"", type=GradedRow)
            last[row.episode_id, row.interaction_id] = e.value or b""
    assert len(last) == 3
    for identity, value in last.items():
        kept = log.partition.row(*identity)
        assert kept is not None
        assert graded_hash_of(value) == kept.graded_hash


def _row(data: bytes) -> Any:
    from treadle_streams.join import decode

    return decode(data)


def _ids(data: bytes) -> tuple[str, str]:
    row = _row(data)
    return row.episode_id, row.interaction_id
