"""Redaction of arbitrary interactions: never raises, changes nothing without a finding, is idempotent, lets no planted secret out."""

from __future__ import annotations

import copy
import json
import string
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from treadle.redaction import Redactor
from treadle_schemas.canonical import canonical_json
from treadle_schemas.events import read_interaction
from treadle_schemas.pii import FieldRule, Pattern, PiiPolicy, built_in

texts = st.text(st.characters(codec=None), max_size=60)
odd_texts = texts | st.sampled_from(
    [
        "\ud800",
        "\x00",
        "\u2028",
        "ſecret=İstanbul9!",
        "{",
        '{"a":',
        "[[[[",
        '{"a": NaN}',
        "[EMAIL_1]",
        "password=[SECRET_1]",
        "data:,",
        "@@@",
        "://:@",
    ]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False, allow_infinity=False)
    | odd_texts
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3), max_leaves=8
)


def called(arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}


calls = st.builds(
    called,
    odd_texts | json_values.map(lambda v: json.dumps(v)),
)
messages = st.builds(
    lambda role, content, tool_calls, more: {
        "role": role,
        "content": content,
        **({"tool_calls": tool_calls} if tool_calls else {}),
        **more,
    },
    st.sampled_from(["user", "assistant", "tool", "system"]),
    st.none() | odd_texts | st.lists(st.builds(lambda t: {"type": "text", "text": t}, odd_texts), max_size=2),
    st.lists(calls, max_size=2),
    st.dictionaries(st.sampled_from(["name", "refusal", "annotations"]), json_values, max_size=2),
)
interactions = st.builds(
    lambda said, tags, error, subject, episode: {
        "interaction_id": "i",
        "episode_id": episode,
        "agent": "a",
        "messages": said,
        "started_at": "2026-01-01T00:00:00Z",
        "ended_at": "2026-01-01T00:00:00Z",
        "tags": tags,
        "error": error,
        "subject": subject,
    },
    st.lists(messages, min_size=1, max_size=4),
    st.dictionaries(
        st.text(string.ascii_lowercase, min_size=1, max_size=5), odd_texts | st.none() | st.booleans(), max_size=3
    ),
    odd_texts,
    odd_texts,
    st.sampled_from(["e1", "e2"]),
)
policies = st.sampled_from(
    [
        built_in("secrets"),
        built_in("strict"),
        PiiPolicy(name="strict", actions={"email": "hash", "secret": "drop", "phone": "drop"}),
        PiiPolicy(
            name="custom",
            patterns=(Pattern(name="x", regex="[a-m]{2,9}"),),
            fields=(FieldRule(path="$.tags.*", action="drop"), FieldRule(path="$.messages[*].content")),
        ),
    ]
)
planted = st.sampled_from(
    [
        "sk" + "-proj-aB3dE5gH7jK9mN1pQ2rS4tU6vW8x",
        "gh" + "p_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
        "AK" + "IAQ3EGRT5ZXCVBNM7K",
        "gl" + "pat-x9Yz8wVu7tSr6qPo5nMl",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVPmB92K27uhbUJU1p1r",
    ]
)


@settings(max_examples=150, deadline=None)
@given(interactions, policies)
def test_it_never_raises_keeps_the_contract_and_is_idempotent(value: dict[str, Any], policy: PiiPolicy) -> None:
    before = copy.deepcopy(value)
    redactor = Redactor(policy, b"0123456789abcdef")
    done = redactor.redact(value)
    assert value == before
    assert "error" not in done["redaction"]
    read_interaction(done)
    assert redactor.redact(done) == done
    assert Redactor(policy, b"0123456789abcdef").redact(done) == done


@settings(max_examples=150, deadline=None)
@given(interactions)
def test_without_a_finding_every_byte_stays(value: dict[str, Any]) -> None:
    done = Redactor(built_in("strict", 2), b"k").redact({k: v for k, v in value.items() if k != "subject"})
    said = done.pop("redaction")
    if "counts" not in said:
        assert canonical_json(done) == canonical_json({k: v for k, v in value.items() if k != "subject"})


@settings(max_examples=200, deadline=None)
@given(
    planted,
    st.text(string.printable, max_size=30),
    st.sampled_from([" ", "\n", '"', "'", "=", "(", ": ", ",", "\t", "<", "/"]),
    st.sampled_from(["", " ", "\n", '"', "'", ")", ",", ">", ". ", "}"]),
    st.integers(0, 5),
)
def test_a_planted_secret_never_survives(secret: str, around: str, before: str, after: str, place: int) -> None:
    text = around + before + secret + after + around
    spots: list[dict[str, Any]] = [
        {"role": "user", "content": text},
        {"role": "user", "content": [{"type": "text", "text": text}]},
        {"role": "assistant", "content": None, "tool_calls": [called(json.dumps({"x": [text]}))]},
        {"role": "tool", "tool_call_id": "c", "content": json.dumps({"a": json.dumps({"b": text})})},
        {"role": "user", "content": "x", "extra": {text: 1}},
        {"role": "user", "content": json.dumps({"u": "".join(f"\\u{ord(c):04x}" for c in text)}).replace("\\\\u", "\\u")},
    ]  # fmt: skip
    value = {
        "interaction_id": "i", "agent": "a", "messages": [spots[place]], "error": text, "tags": {"t": text},
        "started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    done = Redactor(built_in("secrets")).redact(value)
    assert secret not in json.dumps(done)
    if place == 5:  # every character of it was an escape
        assert secret not in json.dumps(json.loads(done["messages"][0]["content"]))
    read_interaction(done)
