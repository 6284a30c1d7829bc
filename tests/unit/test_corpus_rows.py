"""Hashes, revisions and decisions of rows: pure."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest
from treadle_corpus import Policy, content_hash, row_line
from treadle_corpus._decide import decide
from treadle_corpus._rows import GradedRecord, Key, RowMeta, absorb, decode_key, encode_key
from treadle_corpus.hashing import twin_digest
from treadle_corpus.testing import graded
from treadle_schemas.errors import FieldError
from treadle_schemas.records import Feedback


def fold(*records: GradedRecord, decision: str = "selected") -> dict[Key, RowMeta]:
    rows: dict[Key, RowMeta] = {}
    for record in records:
        after = absorb(rows.get(record.key), record)
        if after is not None:
            rows[record.key] = msgspec.structs.replace(after, decision=decision)
    return rows


def statuses(*records: GradedRecord, dedupe: str = "id") -> dict[str, str]:
    return {
        key[1]: status
        for key, status in decide(fold(*records), Policy(dedupe=dedupe)).items()  # type: ignore[arg-type]
    }


def test_the_line_of_a_row_is_this_golden_vector() -> None:
    record = graded(
        "i-1",
        episode_id="e-1",
        reward=-0.0,
        messages=[
            {"role": "user", "content": "naïve \u2028 \x1f", "n": 1e-7},
            {"role": "assistant", "content": None, "big": 2**70},
        ],
        metrics={"cost": ("observed", 1e16), "blame": ("absent", None)},
        tools=[],
    )
    assert row_line(record.row).decode() == (
        '{"episode_id":"e-1","interaction_id":"i-1","messages":[{"content":"naïve \u2028 \\u001f","n":1e-07,"role":"user"},'
        '{"big":1180591620717411303424,"content":null,"role":"assistant"}],"metrics":{"blame":["absent",null],'
        '"cost":["observed",1e+16],"reward":["observed",0.0]},"reward":0.0,"split":"train","task_id":"task","tools":[]}\n'
    )


def test_a_content_hash_is_sha256_over_the_lines() -> None:
    lines = [row_line(graded(i).row) for i in ("a", "b")]
    assert content_hash(lines) == hashlib.sha256(lines[0] + lines[1]).hexdigest()
    assert content_hash([]) == hashlib.sha256(b"").hexdigest()
    assert content_hash(lines) == "1e6dfbcb28e074328bf8865b99d113e2e9b0c6e70ddabe5a111c7eb7e34d4c83"


def test_keys_survive_storage() -> None:
    key = ("épisode/1", 'a"b')
    assert decode_key(encode_key(key)) == key


def test_provenance_is_not_content() -> None:
    one, two = graded("a", append_ms=1), graded("a", append_ms=2, revision=7)
    (before,), (after,) = fold(one).values(), fold(two).values()
    assert before.line == after.line
    assert absorb(before, graded("a", append_ms=2)) is None


@pytest.mark.parametrize(
    "record",
    [
        graded("a"),
        graded(
            "a", feedback=[Feedback(kind="comment", name="said", outcome_id="o", observed_at="2024-05-16T00:00:00Z")]
        ),
        graded("a", reward=None, claims={"tools": "h"}),
        graded("a", messages=[{"role": "user", "content": "\ud800"}]),
    ],
)
def test_a_repeated_revision_is_old_news(record: GradedRecord) -> None:
    (meta,) = fold(record).values()
    assert absorb(meta, record) is None


@pytest.mark.parametrize("revision", [1, 2, 3])
def test_a_revision_not_above_with_other_content_is_refused(revision: int) -> None:
    (meta,) = fold(graded("a", revision=3)).values()
    with pytest.raises(FieldError, match="not above revision 3"):
        absorb(meta, graded("a", revision=revision, reward=0.0))


def test_another_grading_version_with_the_same_metrics_is_other_content_for_the_sink_but_not_for_the_version() -> None:
    record = graded("a")
    regraded = json.loads(record.body)
    regraded["grade"]["grading_version"] = 2
    from treadle_corpus import read_record

    (one,) = fold(record).values()
    other = read_record(json.dumps(regraded).encode())
    (two,) = fold(other).values()
    assert one.line == two.line
    with pytest.raises(FieldError, match="its content differs"):
        absorb(one, other)


def test_a_row_unsettled_again_is_pending() -> None:
    assert statuses(graded("a"), graded("a", revision=2, reward=None, settled=False)) == {"a": "pending"}


def test_settled_on_both_sides_is_split_moved_for_good() -> None:
    moved = [graded("a"), graded("a", revision=2, split="heldout"), graded("a", revision=3)]
    assert statuses(*moved) == {"a": "split_moved"}


def test_a_side_named_while_unsettled_does_not_count() -> None:
    assert statuses(
        graded("a"), graded("a", revision=2, split="heldout", settled=False), graded("a", revision=3, reward=0.5)
    ) == {"a": "member"}


SAME = [{"role": "user", "content": "same"}, {"role": "assistant", "content": "answer"}]


def test_a_train_row_equal_to_a_heldout_row_is_a_leak() -> None:
    assert statuses(
        graded("h", messages=SAME, split="heldout"), graded("t", messages=SAME), graded("u"), dedupe="exact"
    ) == {"h": "member", "t": "leak", "u": "member"}


def test_leaks_leave_before_dedupe_so_that_they_push_nobody_out() -> None:
    shouted = [{"role": "user", "content": "SAME"}, {"role": "assistant", "content": "answer"}]
    found = statuses(
        graded("h", messages=SAME, split="heldout"),
        graded("t1", messages=shouted, reward=9.0),
        graded("t2", messages=shouted),
        dedupe="exact",
    )
    assert found == {"h": "member", "t1": "leak", "t2": "leak"}


def test_a_leak_returns_when_its_twin_leaves() -> None:
    rows = fold(graded("h", messages=SAME, split="heldout"), graded("t", messages=SAME))
    rows[("h", "h")].decision = "rejected"
    assert decide(rows, Policy()) == {("h", "h"): "rejected", ("t", "t"): "member"}


@pytest.mark.parametrize(
    ("rewards", "winner"),
    [
        ({"a": 0.0, "b": 1.0, "c": 0.5}, "b"),
        ({"c": 1.0, "b": 1.0}, "b"),
        ({"a": None, "b": -5.0}, "b"),
        ({"b": None, "a": None}, "a"),
    ],
)
def test_of_exact_duplicates_the_best_reward_wins_then_the_smallest_id(rewards: dict[str, float], winner: str) -> None:
    found = statuses(*(graded(i, messages=SAME, reward=r) for i, r in rewards.items()), dedupe="exact")
    assert {i for i, s in found.items() if s == "member"} == {winner}
    assert {s for i, s in found.items() if i != winner} == {"duplicate"}


def test_dedupe_by_id_keeps_exact_duplicates() -> None:
    assert set(statuses(graded("a", messages=SAME), graded("b", messages=SAME)).values()) == {"member"}


def test_normalised_messages_alone_tell_an_exact_duplicate_as_they_tell_a_leak() -> None:
    loud = [{**m, "content": m["content"].upper(), "id": "m-1"} for m in SAME]
    found = statuses(graded("a", messages=SAME), graded("b", messages=loud, tools=[{"name": "x"}]), dedupe="exact")
    assert found == {"a": "member", "b": "duplicate"}


@pytest.mark.parametrize(
    ("decision", "status"),
    [("rights", "rights"), ("incomplete", "incomplete"), ("rejected", "rejected"), ("absent", "unknown")],
)
def test_what_a_policy_says_of_a_row_by_itself_is_its_status(decision: str, status: str) -> None:
    rows = {k: msgspec.structs.replace(m, decision=decision) for k, m in fold(graded("a")).items()}
    assert set(decide(rows, Policy()).values()) == {status}


def test_a_row_expires_by_its_append_and_comes_before_the_filter() -> None:
    rows = fold(graded("old", append_ms=1_000), graded("new", append_ms=2_001))
    rows = {k: msgspec.structs.replace(m, decision="rejected") for k, m in rows.items()}
    found = decide(rows, Policy(retention_s=1.0), 3_001)
    assert found == {("old", "old"): "expired", ("new", "new"): "rejected"}


def call(arguments: str, call_id: str) -> list[dict[str, object]]:
    function = {"name": "book", "arguments": arguments}
    return [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": call_id, "type": "function", "function": function}],
        }
    ]


@pytest.mark.parametrize(
    ("one", "two", "equal"),
    [
        ([{"role": "user", "content": "Hello  World"}], [{"role": "user", "content": " hello\nworld "}], True),
        ([{"role": "user", "content": "ﬁne"}], [{"role": "user", "content": "fine"}], True),
        ([{"role": "user", "content": "a"}], [{"role": "tool", "content": "a"}], False),
        ([{"role": "user", "content": "a", "id": "1"}], [{"role": "user", "content": "a", "id": "2"}], True),
        (call('{"a": 1, "b": "X"}', "c1"), call('{"b":"x","a":1}', "c2"), True),
        (call('{"a": 1}', "c1"), call('{"a": 2}', "c1"), False),
        (call("not json", "c1"), call("Not  JSON", "c1"), True),
        (call("NaN", "c1"), call("nan", "c2"), True),
    ],
)
def test_normalised_messages_decide_who_is_a_twin(one: list[dict], two: list[dict], equal: bool) -> None:  # type: ignore[type-arg]
    assert (twin_digest(graded("a", messages=one).row) == twin_digest(graded("b", messages=two).row)) is equal


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"grade": None}, "$.grade"),
        ({"split": "both"}, "$.split"),
        ({"interaction": {"messages": "hello"}}, "$.interaction.messages"),
        ({"interaction": {"messages": ["hello"]}}, "$.interaction.messages"),
        ({"episode_id": 7}, "$.episode_id"),
    ],
)
def test_a_malformed_graded_record_names_its_field(change: dict[str, object], where: str) -> None:
    from treadle_corpus import read_record

    value = {**json.loads(graded("a").body), **change}
    with pytest.raises(FieldError) as caught:
        read_record(json.dumps(value).encode())
    assert caught.value.field == where
