"""The decoder, the readers and the join on anything: each input is an event or a typed error, and nothing changes silently.

The same oracle as the long run under atheris (tests/fuzz), on inputs that Hypothesis makes: JSON bent in every way, events with one
field wrong, records with bent headers, and the values that a program may hand in.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from treadle_schemas.codec import INTERACTION, OUTCOME, PART, TYPES
from treadle_schemas.errors import FieldError
from treadle_schemas.events import Interaction, Outcome, read_interaction, read_outcome
from treadle_schemas.parts import SentParts, split

_SPEC = importlib.util.spec_from_file_location("fuzz_oracle", Path(__file__).parent.parent / "fuzz" / "oracle.py")
assert _SPEC is not None
assert _SPEC.loader is not None
oracle = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(oracle)

NOON = "2024-05-15T12:00:00Z"
TEXT = st.text(st.characters(), max_size=12)  # every code point, lone surrogates too
NUMBERS = (
    st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([2**63, 2**64, -(2**63) - 1, 1e22, 5e-324, -0.0])
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "x"])}, optional={"content": TEXT | st.none(), "more": JSON}
)
GOOD_INTERACTION = st.fixed_dictionaries(
    {
        "interaction_id": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
        "agent": TEXT,
        "messages": st.lists(MESSAGE, min_size=1, max_size=3),
        "started_at": st.just(NOON),
        "ended_at": st.just(NOON),
    },
    optional={
        "episode_id": st.just("e"),
        "tags": st.dictionaries(TEXT, NUMBERS | TEXT, max_size=2),
        "usage": JSON,
        "later": JSON,
    },
)
GOOD_OUTCOME = st.fixed_dictionaries(
    {
        "interaction_id": st.just("i"),
        "name": st.just("reward"),
        "value": NUMBERS | st.booleans(),
        "observed_at": st.just(NOON),
        "outcome_id": st.just("o"),
    }
)
FIELDS = sorted(
    {*Interaction.__struct_fields__, *Outcome.__struct_fields__, "episode_id", "part", "messages", "count", "prev"}
)
BENT = st.builds(
    lambda good, wrong: {**good, **wrong},
    GOOD_INTERACTION | GOOD_OUTCOME,
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=2),
)
TOKENS = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "\\",
    "\\u",
    "\\ud800",
    "\\udc00",
    "NaN",
    "Infinity",
    "-",
    "0",
    "1e400",
    "1e-400",
]
TOKENS += ["9" * 30, "null", "true", " ", "\n", "\ufeff", "\u2028"]
PLAIN_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
BROKEN = st.lists(st.sampled_from(TOKENS) | PLAIN_TEXT, max_size=12).map(lambda parts: "".join(parts).encode())


def encoded(value: Any, escape: bool) -> bytes:
    return json.dumps(value, ensure_ascii=escape).encode(errors="surrogatepass")


VALUES = st.builds(encoded, BENT | JSON, st.booleans()) | BROKEN | st.binary(max_size=40) | st.none()
BENT_HEADERS = ["ce_type", "ce_specversion", "ce_importid", "ce_workspace"]
HEADERS = st.builds(
    lambda kind, more: [("ce_type", kind), ("ce_workspace", b"w"), *more],
    st.sampled_from([name.encode() for name in sorted(TYPES)] + [b"dev.treadle.interaction.v2", b"\xff"]) | st.none(),
    st.lists(
        st.tuples(
            st.sampled_from(["ce_type", "ce_specversion", "ce_importid", "ce_workspace"]),
            st.binary(max_size=8) | st.none(),
        ),
        max_size=1,
    ),
)
DEEP: Any = 1
for _ in range(64):
    DEEP = [DEEP]


@given(VALUES, HEADERS, st.none() | st.sampled_from([b"e", b"i", b""]))
@example(b'{"a":1e400}', [("ce_type", INTERACTION.encode())], None)
@example(b"\xef\xbb\xbf{}", [("ce_type", INTERACTION.encode())], None)
@example(b'{"a":"\xed\xa0\xbd"}', [("ce_type", INTERACTION.encode())], None)
@example(b'{"\\ud83d\\ude00":1,"\\ud83d":2}', [("ce_type", OUTCOME.encode()), ("ce_workspace", b"w")], b"i")
@settings(max_examples=600, deadline=None)
def test_every_record_is_an_event_or_a_typed_error(value: bytes | None, headers: Any, key: bytes | None) -> None:
    assert oracle.judge(value, headers, key).startswith(("accepted", "refused"))


@given(GOOD_INTERACTION)
@settings(max_examples=200, deadline=None)
def test_a_good_interaction_and_its_parts_are_accepted(value: dict[str, Any]) -> None:
    headers = [("ce_type", INTERACTION.encode()), ("ce_workspace", b"w")]
    key = (value.get("episode_id") or value["interaction_id"]).encode()
    if "usage" in value and not isinstance(value["usage"], dict):
        del value["usage"]
    assert oracle.judge(encoded(value, True), headers, key) == f"accepted {INTERACTION}"
    long = {**value, "messages": [*value["messages"], {"role": "user", "content": "x" * 2000}]}
    whole, parts = split(long, SentParts())
    assert oracle.judge(encoded(whole, True), headers, key) == f"accepted {INTERACTION}"
    for part in parts:
        assert oracle.judge(encoded(part, True), [("ce_type", PART.encode()), *headers[1:]], key) == f"accepted {PART}"


PYTHON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.binary(max_size=3)
    | st.just(10**1000)
    | st.just(10**999),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXT | st.integers() | st.none(), inner, max_size=3)
        | st.tuples(inner)
    ),
    max_leaves=10,
)


@given(PYTHON)
@example(DEEP)
@example([DEEP])
@example({"a": [math.nan]})
@example({"a": [None, 1.5, math.inf]})
@settings(max_examples=600, deadline=None)
def test_every_value_of_a_program_is_written_whole_or_refused_by_name(value: Any) -> None:
    assert oracle.judge_value(value) in ("accepted value", "refused FieldError")


def test_the_oracle_sees_each_class() -> None:
    headers = [("ce_type", INTERACTION.encode()), ("ce_workspace", b"w")]
    good = {"interaction_id": "i", "agent": "a", "messages": [{"role": "user"}], "started_at": NOON, "ended_at": NOON}
    seen = Counter(
        oracle.judge(value, kind, b"i")
        for value, kind in [
            (encoded(good, True), headers),
            (encoded({**good, "messages": []}, True), headers),
            (b"{", headers),
            (b"{}", [("ce_type", b"x")]),
            (encoded(good, True), [*headers, ("ce_workspace", b"other")]),
        ]
    )
    assert seen == {
        f"accepted {INTERACTION}": 1,
        f"refused {INTERACTION}: malformed": 1,
        "refused FieldError": 1,
        "refused UnknownType": 1,
        "refused by the join: wrong_workspace": 1,
    }


LONE = {"interaction_id": "i", "agent": "a", "messages": [{"role": "user"}], "started_at": NOON, "ended_at": NOON}
SAID = {"interaction_id": "i", "name": "reward", "value": 1, "observed_at": NOON, "outcome_id": "o"}


@pytest.mark.parametrize(
    ("read", "value", "field"),
    [
        (read_interaction, {**LONE, "status": "\ud83d"}, "$.status"),
        (read_interaction, {**LONE, "rights": {"train": "\udc00"}}, "$.rights"),
        (read_outcome, {**SAID, "kind": "\ud83d"}, "$.kind"),
        (read_outcome, {**SAID, "op": "\ud83d", "\ud83d": 1}, "$.op"),
    ],
    ids=range(4),
)
def test_a_lone_surrogate_where_a_literal_belongs_is_a_typed_error(
    read: Any, value: dict[str, Any], field: str
) -> None:
    # found by the fuzzer: msgspec raises UnicodeEncodeError there, which ended the worker
    with pytest.raises(FieldError) as caught:
        read(value)
    assert caught.value.field == field


def test_a_lone_surrogate_in_the_name_of_an_unknown_field_is_no_harm() -> None:
    value = {**LONE, "\ud83d": 1, "rights": {"train": "deny", "\ud83d": 2}, "tags": {"\ud83d": "x"}}
    read = read_interaction(value)
    assert read.rights is not None
    assert (read.rights.train, read.tags) == ("deny", {"\ud83d": "x"})
