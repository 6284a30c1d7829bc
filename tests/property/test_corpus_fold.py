"""What a version holds does not depend on batches, repetitions or the order of partitions. Pure; Deeplake is in tests/integration."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from treadle_corpus import Policy, content_hash, read_record, row_line
from treadle_corpus._decide import decide
from treadle_corpus._rows import GradedRecord, Key, RowMeta, absorb, grade_of, stored_row
from treadle_corpus.hashing import LinePieces, line_middle
from treadle_corpus.testing import graded
from treadle_schemas.canonical import canonical_json, dumps, loads
from treadle_schemas.records import row_content

TEXT = st.text(st.characters(codec=None, exclude_categories=[]), max_size=8)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(st.dictionaries(TEXT, JSON, max_size=3), min_size=1, max_size=4), JSON)
@settings(max_examples=100, deadline=None)
def test_a_line_is_the_canonical_json_of_the_content_after_any_number_of_round_trips(
    messages: list[dict[str, Any]], tools: Any
) -> None:
    row = graded("a", messages=[{**m, "role": "user"} for m in messages], tools=tools).row
    assert row_line(row) == canonical_json(row_content(row)) + b"\n"
    assert LinePieces.of(row).line == row_line(row)
    assert canonical_json(loads(dumps(row.interaction))) == canonical_json(row.interaction)


REVISION = st.tuples(
    st.sampled_from("abcdef"),
    st.sampled_from([None, 0.0, 1.0]),
    st.sampled_from(["train", "train", "heldout"]),
    st.booleans(),
    st.integers(0, 2),
)


def revisions(drawn: list[tuple[Any, ...]]) -> list[GradedRecord]:
    counts: dict[str, int] = {}
    out = []
    for name, reward, side, settled, text in drawn:
        counts[name] = counts.get(name, 0) + 1
        messages = [{"role": "user", "content": f"t{text}"}]
        out.append(graded(name, reward=reward, split=side, settled=settled, messages=messages, revision=counts[name]))
    return out


def fold(records: list[GradedRecord]) -> dict[Key, RowMeta]:
    rows: dict[Key, RowMeta] = {}
    for record in records:
        after = absorb(rows.get(record.key), record)
        if after is not None:
            rows[record.key] = msgspec.structs.replace(
                after, decision="rejected" if after.reward == 0.0 else "selected" if after.reward else "absent"
            )
    return rows


@given(st.lists(REVISION, max_size=25), st.randoms(use_true_random=False), st.sampled_from(["id", "exact"]))
@settings(max_examples=200, deadline=None)
def test_repetitions_and_the_order_between_rows_change_nothing(
    drawn: list[tuple[Any, ...]], chance: random.Random, dedupe: str
) -> None:
    records = revisions(drawn)
    queues: dict[Key, list[GradedRecord]] = {}
    for record in records:
        queues.setdefault(record.key, []).append(record)
    mixed: list[GradedRecord] = []
    while queues:
        key = chance.choice(sorted(queues))
        mixed.append(queues[key].pop(0))
        if chance.random() < 0.3:
            mixed.append(mixed[-1])
        if not queues[key]:
            del queues[key]
    one, two = fold(records), fold(mixed)
    assert one == two
    policy = Policy(dedupe="exact" if dedupe == "exact" else "id")
    statuses = decide(one, policy)
    assert statuses == decide(dict(sorted(two.items(), reverse=True)), policy)
    check_version(one, statuses, dedupe)


def check_version(rows: dict[Key, RowMeta], statuses: Mapping[Key, str], dedupe: str) -> None:
    members = [rows[k] for k, s in statuses.items() if s == "member"]
    heldout = {m.twin for m in members if m.side == "heldout"}
    assert all(m.settled and m.sides in (1, 2) and m.decision == "selected" for m in members)
    assert not any(m.twin in heldout for m in members if m.side == "train")
    if dedupe == "exact":
        assert len({(m.side, m.twin) for m in members}) == len(members)
    else:
        assert "duplicate" not in statuses.values()


@given(TEXT, TEXT, JSON, JSON, st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)))
@settings(max_examples=100, deadline=None)
def test_a_row_is_stored_in_two_pieces_and_its_line_put_together_of_three(
    one: str, two: str, task: Any, tools: Any, reward: float | None
) -> None:
    hard = ',"messages":null,"task_id":"x"'
    body = loads(graded("i", reward=reward, tools=tools).body)
    body |= {"episode_id": one + hard, "interaction_id": hard + two, "unknown field": [task], "feedback": []}
    body["interaction"] |= {"task_id": task}
    record = read_record(dumps(body))
    bulk, rest = record.bulk_and_rest
    assert stored_row(bulk, rest) == record.row
    assert loads(bulk) | loads(rest) == body
    assert record.pieces.line == row_line(record.row)
    grade, side = grade_of(rest)
    assert record.pieces.middle == line_middle(grade.metrics, grade.reward, side)


@given(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1))
def test_a_content_hash_depends_on_every_row(ids: list[str]) -> None:
    lines = [row_line(graded(i).row) for i in sorted(ids)]
    assert content_hash(lines) != content_hash(lines[1:])
