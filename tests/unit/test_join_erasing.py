"""The join and erasure: what goes, what is said of it, and what is sealed meanwhile. On one partition in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from treadle.keys import FolderKeys, KeyRing
from treadle_schemas import GradedRow, Metric, Progress, WorkspaceSettings, codec
from treadle_schemas.canonical import dumps
from treadle_schemas.erasing import Erasures, subject_digest
from treadle_schemas.errors import KeyUnavailable
from treadle_schemas.moments import from_micros
from treadle_schemas.parts import SentParts, split
from treadle_schemas.sealing import Cipher, about, is_sealed, opened
from treadle_streams.join import Arrival, Emission, Grading, MemoryPartition, RowState
from treadle_streams.join.sealed import using

T0_MS = 1_700_000_000_000
METRICS = (Metric(name="reward", required=True, horizon_s=100.0), Metric(name="label", type="category"))
SETTINGS = WorkspaceSettings(workspace="shop", partitions=1, grace_s=20.0, metrics=METRICS, encrypt="subjects")
SALT = "ab" * 32


class World:
    """One partition, and the keys of its subjects."""

    def __init__(self, folder: Path, settings: WorkspaceSettings = SETTINGS) -> None:
        self.now = [0.0]
        self.ring = KeyRing(FolderKeys(folder), clock=lambda: self.now[0])
        self.partition = MemoryPartition(Grading(settings, self.ring))
        self.offsets = {"interactions": 0, "outcomes": 0, "references": 0}

    def record(self, kind: Any, event_type: str, data: Any, subject: str | None, key: str = "e") -> Arrival:
        value = dumps(data)
        if subject is not None:
            value = self.ring.of_subject(subject).seal(value, about("shop", event_type, key.encode()))
        event_id = data.get("interaction_id") or "x"
        headers: Any = codec.make_headers(event_type, "shop", source="test", event_id=event_id)
        moment = str(data.get("ended_at") or at(0)).encode()
        headers = [(name, moment if name == "ce_time" else held) for name, held in headers]
        self.offsets[kind] += 1
        return Arrival(kind, 0, self.offsets[kind] - 1, T0_MS, key.encode(), value, headers)

    def said(self, name: str = "i", subject: str | None = "ann", **changes: Any) -> list[Arrival]:
        value = interaction(name) | changes
        body, parts = split(value, SentParts())
        parts_ = [self.record("interactions", codec.PART, part, subject) for part in parts]
        return [*parts_, self.record("interactions", codec.INTERACTION, body, subject)]

    def outcome(self, of: str = "i", subject: str | None = "ann", **changes: Any) -> Arrival:
        data = {"episode_id": "e", "interaction_id": of, "name": "reward", "value": 0.5, "outcome_id": "o"}
        return self.record("outcomes", codec.OUTCOME, data | {"observed_at": at(1)} | changes, subject)

    def comment(self, text: str, subject: str | None = "ann", outcome_id: str = "c") -> Arrival:
        return self.outcome(subject=subject, name="comment", kind="comment", value=text, outcome_id=outcome_id)

    def erasure(self, episode: str = "e") -> Arrival:
        return self.record(
            "interactions", codec.ERASURE, {"episode_id": episode, "erased_at": at(9)}, None, key=episode
        )

    def step(self, *arrivals: Arrival) -> list[Emission]:
        return self.partition.step(arrivals, at_end_ms={"references": T0_MS + 10**7})

    def destroy(self, subject: str) -> None:
        for key_id in self.ring.store.of(subject):
            self.ring.store.destroy(key_id)
        self.now[0] += 60

    def row(self, name: str = "i") -> RowState | None:
        with using(self.ring):
            return self.partition.row("e", name)

    def graded(self) -> list[GradedRow]:
        values = [self.open(e, codec.GRADED) for e in self.partition.outputs if e.stream == "graded"]
        return [msgspec.json.decode(value, type=GradedRow) for value in values if value is not None]

    def open(self, emission: Emission, event_type: str) -> bytes | None:
        value = emission.value or b""
        return opened(value, self.ring, about("shop", event_type, emission.key))

    @property
    def kept(self) -> bytes:
        """Every byte of the state."""
        return b"\n".join(key + value for key, value in self.partition.records.items())

    @property
    def written(self) -> bytes:
        """Every byte of the outputs."""
        return b"\n".join((e.value or b"") + repr(e.headers).encode() for e in self.partition.outputs)


def interaction(name: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": "secret " * 300}, {"role": "assistant", "content": "secretanswer"}]
    return {
        "interaction_id": name,
        "episode_id": "e",
        "agent": "desk",
        "subject": "ann",
        "tags": {"t": "secrettag"},
        "messages": messages,
        "started_at": at(0),
        "ended_at": at(0),
    }


def at(second: int) -> str:
    return from_micros((T0_MS + second * 1000) * 1000)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("subject", [None, "ann"], ids=["clear", "sealed"])
def test_an_erasure_leaves_ids_and_tells_all_who_follow(world: World, subject: str | None) -> None:
    world.step(*world.said(subject=subject), world.outcome(subject=subject), world.comment("secretcomment", subject))
    before = world.graded()[-1]
    assert before.grade.reward == 0.5
    assert [said.value for said in before.feedback] == ["secretcomment"]
    outputs = world.step(world.erasure())
    assert b"secret" not in world.kept
    row = world.graded()[-1]
    assert (row.erased, row.interaction["messages"], row.grade.metrics, row.feedback) == (True, [], {}, [])
    assert row.provenance.revision == before.provenance.revision + 1
    progress = [msgspec.json.decode(e.value or b"", type=Progress) for e in outputs if e.stream == "progress"]
    assert [said.erased for said in progress] == [True]
    erased_parts = [json.loads(e.value or b"")["erased"] for e in outputs if e.stream == "part"]
    assert erased_parts == ["erased", "erased"]
    assert not [key for key in world.partition.records if key[:1] in b"nck"]
    # and nothing comes after it
    world.step(*world.said(subject=subject), *world.said("j", subject), world.comment("secretlate", subject))
    assert b"secret" not in world.kept
    assert [row.erased for row in world.graded()[2:]] == [True]
    assert world.partition.meta.counts["came_erased"] >= 4
    assert world.partition.meta.dead_letters == {}


def test_what_is_of_a_subject_is_sealed_in_state_and_outputs(world: World) -> None:
    world.step(*world.said(), world.outcome(), world.comment("secretcomment"))
    assert b"secret" not in world.kept
    assert b"secret" not in world.written
    assert world.graded()[-1].interaction["tags"] == {"t": "secrettag"}
    assert all(is_sealed(e.value) for e in world.partition.outputs if e.stream in ("graded", "part"))
    row = world.row()
    assert row is not None
    assert row.captured is not None
    assert b"secrettag" in row.captured.body
    # another copy loses, and its dead letter is sealed as it came
    (*_, other) = world.said(agent="another", ended_at=at(5))
    world.step(other)
    (letter,) = [e for e in world.partition.outputs if e.stream == "dead-letter"]
    assert letter.value == other.value
    assert b"secret" not in world.written


def test_an_older_copy_that_loses_later_is_sealed_as_it_came(world: World) -> None:
    (*_, first) = world.said(messages=[{"role": "user", "content": "secretfirst"}], ended_at=at(5))
    (*_, second) = world.said(messages=[{"role": "user", "content": "secretsecond"}], ended_at=at(4))
    world.step(first)
    world.step(second)
    (letter,) = [e for e in world.partition.outputs if e.stream == "dead-letter"]
    assert letter.value == first.value


def test_a_destroyed_key_erases_what_it_sealed_whenever_it_is_met(world: World) -> None:
    world.step(*world.said(), world.outcome(), world.comment("secretcomment"))
    late = world.said("late")
    world.destroy("ann")
    world.step(*late, world.outcome(value=1.0, outcome_id="p"))
    erased = {row.interaction_id for row in map(decoded, world.partition.outputs) if row is not None and row.erased}
    assert erased == {"i", "late"}
    assert world.partition.meta.dead_letters == {}
    assert world.partition.meta.counts["captured"] == 2


def test_time_alone_meets_a_destroyed_key_too(world: World) -> None:
    world.step(*world.said())
    world.destroy("ann")
    world.partition.step(at_end_ms=dict.fromkeys(("interactions", "outcomes", "references"), T0_MS + 10**6))
    rows = [row for row in map(decoded, world.partition.outputs) if row is not None]
    assert [row.erased for row in rows] == [True]


def test_a_key_destroyed_in_the_middle_of_a_batch_is_met_by_the_next_one(world: World) -> None:
    arrivals = world.said()

    class Going:
        """Keys of which one is destroyed as soon as it was used."""

        def cipher(self, key_id: str) -> Cipher:
            found = world.ring.cipher(key_id)
            world.destroy("ann")
            return found

    partition = MemoryPartition(Grading(SETTINGS, Going()))
    partition.step(arrivals)
    assert b"secret" not in b"".join(partition.records.values())
    partition.step(at_end_ms=dict.fromkeys(("interactions", "outcomes", "references"), T0_MS + 10**6))
    assert [row.erased for row in map(decoded, partition.outputs) if row is not None] == [True]


def test_an_outcome_of_a_destroyed_subject_reaches_no_further_row_of_its_name(world: World) -> None:
    def of_name(subject: str, outcome_id: str) -> Arrival:
        said = {"interaction_id": "i", "name": "reward", "value": 0.5, "outcome_id": outcome_id, "observed_at": at(1)}
        return world.record("outcomes", codec.OUTCOME, said, subject, key="i")

    own = interaction("i") | {"episode_id": "i", "messages": interaction("i")["messages"][1:]}
    world.step(of_name("ann", "a"), of_name("bob", "b"))
    world.step(world.record("interactions", codec.INTERACTION, own, "ann", key="i"))
    world.destroy("bob")
    # an interaction of the same id in another episode is announced
    (announced,) = [e for e in world.step(*world.said()) if e.stream == "announcement"]
    world.step(world.record("references", codec.REFERENCE, json.loads(announced.value or b""), None, key="i"))
    sent = [e for e in world.partition.outputs if e.stream == "rekeyed" and dict(e.headers).get("target")]
    assert {json.loads(world.open(e, codec.OUTCOME) or b"")["outcome_id"] for e in sent} == {"a"}


def test_a_missing_key_is_no_erasure(world: World, tmp_path: Path) -> None:
    arrivals = world.said()
    other = World(tmp_path / "elsewhere")
    with pytest.raises(KeyUnavailable, match="elsewhere"):
        other.step(*arrivals)


def test_one_subject_is_erased_and_the_other_stays(world: World) -> None:
    world.step(*world.said(), world.outcome())
    bob = interaction("b") | {"episode_id": "f", "subject": "bob", "messages": [{"role": "user", "content": "hello"}]}
    world.step(world.record("interactions", codec.INTERACTION, bob, "bob", key="f"))
    world.destroy("ann")
    world.step(world.erasure())
    with using(world.ring):
        row = world.partition.row("f", "b")
    assert row is not None
    assert row.captured is not None
    assert json.loads(row.captured.body)["messages"] == bob["messages"]


def test_a_dead_letter_of_something_sealed_quotes_nothing(world: World) -> None:
    world.step(*world.said(), world.outcome(value="secretvalue"), world.outcome(name="mood", value="secretmood"))
    letters = [e for e in world.partition.outputs if e.stream == "dead-letter"]
    assert [dict(e.headers)["reason"] for e in letters] == [b"bad_value", b"bad_value"]
    assert b"secret" not in world.written


@pytest.mark.parametrize(("started", "erased"), [(at(0), True), (at(20), False)])
def test_a_subject_that_was_erased_does_not_come_back_but_may_begin_anew(
    tmp_path: Path, started: str, erased: bool
) -> None:
    digest = subject_digest(SALT, "ann")
    remembered = Erasures(SALT, {digest: at(10)})
    world = World(tmp_path, msgspec.structs.replace(SETTINGS, erased=remembered, encrypt="nothing"))
    world.step(*world.said(subject=None, started_at=started, ended_at=at(30)), world.outcome(subject=None))
    assert [row.erased for row in world.graded()] == [erased]
    assert (b"secret" in world.kept) is not erased


def decoded(emission: Emission) -> GradedRow | None:
    """A graded row that is in clear."""
    if emission.stream != "graded" or is_sealed(emission.value):
        return None
    return msgspec.json.decode(emission.value or b"", type=GradedRow)
