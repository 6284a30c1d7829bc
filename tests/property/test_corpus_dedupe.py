"""Dedupe on three levels against an oracle that compares every pair with every other one. Pure; Deeplake is in tests/integration."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from itertools import combinations, product
from typing import Any

import msgspec
import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st
from treadle_corpus import Policy
from treadle_corpus._decide import decide
from treadle_corpus._near import components, near_any
from treadle_corpus._rows import Key, RowMeta, absorb
from treadle_corpus._sketch import SIZE, minima, sketch, turns
from treadle_corpus.testing import graded

TOPICS = [[f"{topic}{n * n % 83}" for n in range(70)] for topic in "ab"]
Said = list[dict[str, Any]]


def said(topic: int, changes: list[int], answers: int, loud: bool = False) -> Said:
    """A conversation of 70 words on a topic, of which some are replaced, cut into so many answers."""
    words = list(TOPICS[topic])
    for place in changes:
        words[place] = f"new{place}"
    text = " ".join(words)
    shared = {"role": "system", "content": " ".join(f"rule{n}" for n in range(300))}
    asked = {"role": "user", "content": text.upper() if loud else text}
    return [shared, asked, *({"role": "assistant", "content": "yes"} for _ in range(answers))]


CONVERSATION = st.builds(
    said,
    st.integers(0, 1),
    st.lists(st.integers(0, 69), max_size=5),
    st.sampled_from([1, 1, 1, 2]),
    st.booleans(),
)
ROW = st.tuples(
    CONVERSATION,
    st.sampled_from([None, 0.5, 1.0, 1.0, 2.0]),
    st.sampled_from(["train", "train", "train", "heldout"]),
    st.sampled_from(["selected"] * 6 + ["rejected"]),
)
ROWS = st.lists(ROW, max_size=14)
THRESHOLD = st.sampled_from([0.7, 0.8, 0.85, 0.95, 1.0])


def metas(drawn: list[tuple[Any, ...]]) -> dict[Key, RowMeta]:
    rows: dict[Key, RowMeta] = {}
    for n, (messages, reward, side, decision) in enumerate(drawn):
        record = graded(f"r{n:02}", messages=messages, reward=reward, split=side)
        meta = absorb(None, record)
        assert meta is not None
        rows[record.key] = msgspec.structs.replace(meta, decision=decision, sketch=sketch(messages))
    return rows


def similar(one: bytes, other: bytes) -> float:
    """What the library itself says of two sketches."""
    a, b = (MinHash(hashvalues=minima([s])[0], scheme="affine32") for s in (one, other))
    return float(a.jaccard(b))


def is_near(one: bytes, other: bytes, threshold: float) -> bool:
    return similar(one, other) >= threshold


def oracle(rows: Mapping[Key, RowMeta], threshold: float) -> dict[Key, str]:
    """The statuses, said as plainly as possible."""
    out: dict[Key, str] = {k: "member" if m.decision == "selected" else "rejected" for k, m in rows.items()}
    held = [k for k, s in out.items() if s == "member" and rows[k].side == "heldout"]
    for key in [k for k, s in out.items() if s == "member" and rows[k].side == "train"]:
        if any(rows[key].twin == rows[h].twin or is_near(rows[key].sketch, rows[h].sketch, threshold) for h in held):
            out[key] = "leak"
    order = sorted(
        (k for k, s in out.items() if s == "member"),
        key=lambda k: (-rows[k].reward if rows[k].reward is not None else float("inf"), k),  # type: ignore[operator]
    )
    for side in ("train", "heldout"):
        winners: dict[bytes, Key] = {}
        for key in (k for k in order if rows[k].side == side):
            if winners.setdefault(rows[key].twin, key) != key:
                out[key] = "duplicate"
        left = list(winners.values())
        while left:
            best, group = left[0], [left[0]]
            for here in group:
                group += [
                    k
                    for k in left
                    if k not in group
                    and is_near(rows[here].sketch, rows[k].sketch, threshold)
                    and turns([rows[here].sketch]) == turns([rows[k].sketch])
                ]
            for key in group:
                out[key] = "member" if key == best else "near_duplicate"
            left = [k for k in left if k not in group]
    return out


@given(ROWS, THRESHOLD, st.randoms(use_true_random=False))
@settings(max_examples=120, deadline=None)
def test_statuses_are_those_of_comparing_every_pair_whatever_the_order(
    drawn: list[tuple[Any, ...]], threshold: float, chance: random.Random
) -> None:
    rows = metas(drawn)
    policy = Policy(dedupe="near", threshold=threshold)
    statuses = decide(rows, policy)
    assert statuses == oracle(rows, threshold)
    mixed = list(rows.items())
    chance.shuffle(mixed)
    assert decide(dict(mixed), policy) == statuses


@given(ROWS.filter(bool), THRESHOLD, st.data())
@settings(max_examples=120, deadline=None)
def test_when_a_winner_leaves_the_best_of_its_losers_returns_and_nobody_else_goes(
    drawn: list[tuple[Any, ...]], threshold: float, data: st.DataObject
) -> None:
    rows = metas(drawn)
    policy = Policy(dedupe="near", threshold=threshold)
    before = decide(rows, policy)
    winners = [k for k, s in before.items() if s == "member" and rows[k].side == "train"]
    if not winners:
        return
    gone = data.draw(st.sampled_from(winners))
    after = decide({**rows, gone: msgspec.structs.replace(rows[gone], decision="rejected")}, policy)
    assert after[gone] == "rejected"
    assert all(after[k] == "member" for k in winners if k != gone)
    alike = [
        k
        for k, s in before.items()
        if s in ("duplicate", "near_duplicate")
        and rows[k].side == "train"
        and turns([rows[k].sketch]) == turns([rows[gone].sketch])
        and is_near(rows[k].sketch, rows[gone].sketch, threshold)
    ]
    returned = [k for k, s in after.items() if s == "member" and before[k] != "member"]
    assert bool(returned) >= bool(alike)
    back = decide({**rows, gone: rows[gone]}, policy)
    assert back == before


@given(st.lists(CONVERSATION, max_size=30), THRESHOLD)
@settings(max_examples=80, deadline=None)
def test_groups_are_the_chains_of_near_rows(conversations: list[Said], threshold: float) -> None:
    sketches = [sketch(c) for c in conversations]
    found = components(sketches, threshold).tolist()
    chained = list(range(len(sketches)))
    for a, b in combinations(range(len(sketches)), 2):
        if is_near(sketches[a], sketches[b], threshold) and turns([sketches[a]]) == turns([sketches[b]]):
            old, new = sorted((chained[a], chained[b]), reverse=True)
            chained = [new if c == old else c for c in chained]
    assert found == chained


@given(st.lists(CONVERSATION, max_size=12), st.lists(CONVERSATION, max_size=12), THRESHOLD)
@settings(max_examples=80, deadline=None)
def test_what_is_near_another_side_is_found(mine: list[Said], theirs: list[Said], threshold: float) -> None:
    a, b = [sketch(c) for c in mine], [sketch(c) for c in theirs]
    expected = [any(is_near(x, y, threshold) for y in b) for x in a]
    assert near_any(a, b, threshold).tolist() == expected


def test_thousands_of_rows_are_grouped_as_the_pairs_say() -> None:
    """Enough rows for buckets of all sizes, sketches made up: all that counts is which minima agree."""
    chance = np.random.default_rng(7)
    values = chance.integers(0, 2**32, (40, 128), np.uint32)[chance.integers(0, 40, 1500)]
    changed = chance.random(values.shape) < chance.choice([0.02, 0.1, 0.2], (1500, 1))
    values = np.where(changed, chance.integers(0, 2**32, values.shape, np.uint32), values)
    sketches = [b"\x01\x00\x01" + row.astype("<u4").tobytes() for row in values]
    alike = np.stack([np.count_nonzero(values == row, axis=1) for row in values]) >= 109
    label = np.arange(len(values))
    while True:
        smaller = np.array([label[row].min() for row in alike])
        if (smaller == label).all():
            break
        label = smaller
    assert components(sketches, 0.85).tolist() == label.tolist()
    assert 40 < len(set(label.tolist())) < 1500


@given(CONVERSATION)
@settings(max_examples=50, deadline=None)
def test_case_ids_and_what_the_system_says_change_no_sketch(messages: Said) -> None:
    other = [{**m, "content": m["content"].title(), "id": "x"} for m in messages if m["role"] != "system"]
    assert sketch(other) == sketch(messages)
    assert len(sketch(messages)) == SIZE
    assert sketch([*messages, {"role": "user", "content": "and something else"}]) != sketch(messages)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{}],
        [{"role": "user"}],
        [{"role": "system", "content": "only this"}],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"n": [1, 2.5, None, True]}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}, 7]}],
        [{"role": "user", "content": "\ud83d \x00"}],
        [{"role": "user", "content": "w " * 20_000 + " ".join(map(str, range(20_000)))}],
    ],
)
def test_any_conversation_has_a_sketch_and_is_near_itself(messages: Said) -> None:
    made = sketch(messages)
    assert len(made) == SIZE
    assert near_any([made], [made], 1.0).tolist() == [True]


def test_a_sketch_is_the_same_for_ever() -> None:
    """Stored sketches are compared with new ones: another version of the library must not make others unnoticed."""
    made = sketch([{"role": "user", "content": "where is my parcel"}, {"role": "assistant", "content": "on its way"}])
    assert made[:3] == b"\x01\x00\x01"
    assert hashlib.sha256(made).hexdigest()[:16] == "c3212978e7fa1152"


def test_the_estimate_is_that_of_the_sets() -> None:
    errors = []
    for share, seed in product((0.5, 0.7, 0.9), range(10)):
        words = [f"w{seed}x{n}" for n in range(400)]
        other = [w if n < 400 * share else f"o{w}" for n, w in enumerate(words)]
        sets = [{tuple(s[n : n + 3]) for n in range(398)} for s in (words, other)]
        truth = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        pair = [sketch([{"content": " ".join(s)}]) for s in (words, other)]
        errors.append(similar(*pair) - truth)
    assert abs(float(np.mean(errors))) < 0.03
    assert max(map(abs, errors)) < 0.2
