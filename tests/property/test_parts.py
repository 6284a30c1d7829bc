"""Long contexts: what is split comes back byte for byte, and what is sent does not depend on what was sent before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from treadle_schemas import FieldError, canonical_json, parts
from treadle_schemas.canonical import _canonical_fast, _text, dumps, loads
from treadle_schemas.errors import PartErased, PartMissing
from treadle_schemas.events import read_interaction
from treadle_schemas.parts import LONG_BYTES, Part, SentParts, read_part, resolve, split

# every code point, lone surrogates too
TEXT = st.text(st.characters(), max_size=20)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
LONG = st.tuples(st.text(st.characters(), min_size=1, max_size=3), st.integers(20, 100)).map(lambda t: t[0] * t[1])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
ODD = JSON | LONG | st.dictionaries(TEXT, LONG | JSON, max_size=2) | st.lists(LONG | JSON, max_size=2)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool"])}, optional={"content": ODD, "x": ODD}
    ),
    min_size=1,
    max_size=6,
)


@st.composite
def interactions(draw: st.DrawFn) -> dict[str, Any]:
    value: dict[str, Any] = {"interaction_id": "i", "agent": "a"}
    if draw(st.booleans()):
        value["episode_id"] = "e"
    messages = draw(MESSAGES)
    if draw(st.booleans()):
        messages[0]["content"] = "x" * draw(st.sampled_from([40, 100, 300]))
    value["messages"] = messages
    if draw(st.booleans()):
        value["tools"] = draw(st.none() | st.lists(st.dictionaries(TEXT, ODD, max_size=2), max_size=2))
    value |= {"started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:00Z"}
    return value | draw(st.dictionaries(TEXT.map(lambda t: "x" + t), ODD, max_size=2))


@pytest.fixture
def small_limits() -> Iterator[None]:
    """Limits a thousand times smaller: examples stay readable, and every one of them crosses some limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "SHORT_BYTES", 50)
        patch.setattr(parts, "LONG_BYTES", 64)
        patch.setattr(parts, "LINK_BYTES", 400)
        yield


def wire(value: Any) -> Any:
    return loads(dumps(value))


def store(values: list[dict[str, Any]], into: dict[str, Part] | None = None) -> dict[str, Part]:
    """What a reader keeps of part records that came over the wire."""
    kept = {} if into is None else into
    for value in values:
        _, found = read_part(wire(value))
        kept.update({part.hash: part for part in found})
    return kept


@pytest.mark.usefixtures("small_limits")
@settings(max_examples=500, deadline=None)
@given(interactions())
def test_what_is_split_comes_back_with_the_same_bytes(value: dict[str, Any]) -> None:
    before = dumps(value)
    body, sent = split(value, SentParts())
    assert dumps(value) == before, "split changes nothing that it is given"
    kept = store(sent)
    assert dumps(resolve(wire(body), kept.get)) == dumps(wire(value))
    read_interaction(wire(body))
    parts.check_claims(wire(body))
    again = [parts.part_value("i", [part], 1) for part in kept.values() if part.prev is None]
    assert set(store(again)) <= set(kept)


@pytest.mark.usefixtures("small_limits")
@settings(max_examples=200, deadline=None)
@given(st.lists(interactions(), min_size=1, max_size=4), st.integers(0, 10))
def test_the_body_does_not_depend_on_what_was_sent_before(values: list[dict[str, Any]], limit: int) -> None:
    memory, forgetful = SentParts(), SentParts(limit)
    kept: dict[str, Part] = {}
    for value in values:
        fresh, _ = split(value, SentParts())
        body, sent = split(value, memory)
        assert dumps(body) == dumps(fresh) == dumps(split(value, forgetful)[0])
        store(sent, kept)
        # messages that differ in the order of their keys alone are one part: the content is the same, the bytes are the first one's
        assert canonical_json(resolve(wire(body), kept.get)) == canonical_json(wire(value))
        assert split(value, memory)[1] == []


def test_fifty_steps_that_resend_their_history_take_at_most_twice_the_final_transcript() -> None:
    transcript = [{"role": "system", "content": "You are a careful agent. " * 40}]
    tools = [{"type": "function", "function": {"name": f"f{n}", "description": "d" * 300}} for n in range(20)]
    memory = SentParts()
    total = 0
    kept: dict[str, Part] = {}
    for step in range(50):
        transcript += [{"role": "assistant", "content": f"step {step} " * 60}, {"role": "tool", "content": "z" * 900}]
        value = {
            "interaction_id": f"i{step}",
            "episode_id": "e",
            "agent": "a",
            "step": step,
            "messages": list(transcript),
            "tools": tools,
            "started_at": "2026-01-01T00:00:00Z",
            "ended_at": "2026-01-01T00:00:00Z",
        }
        body, sent = split(value, memory)
        total += len(dumps(body)) + sum(len(dumps(part)) for part in sent)
        store(sent, kept)
        assert dumps(resolve(wire(body), kept.get)) == dumps(value)
    final = len(dumps(transcript)) + len(dumps(tools))
    assert total <= 2 * final
    assert total <= 1.4 * final, f"{total / final:.2f}: it was 1.3 when this was written"


def test_a_branch_of_an_episode_continues_where_it_leaves_the_trunk() -> None:
    memory = SentParts()
    trunk = [{"role": "user", "content": f"{n} " * 300} for n in range(4)]
    base = {"episode_id": "e", "agent": "a", "started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:00Z"}
    _, first = split({"interaction_id": "i", **base, "messages": trunk}, memory)
    branch = [*trunk[:2], {"role": "user", "content": "other"}]
    body, second = split({"interaction_id": "j", **base, "messages": branch}, memory)
    assert [len(part["messages"]) for part in second] == [1]
    assert resolve(body, store(second, store(first)).get)["messages"] == branch


def test_a_history_that_was_rewritten_is_hashed_anew() -> None:
    memory = SentParts()
    base = {"episode_id": "e", "agent": "a", "started_at": "2026-01-01T00:00:00Z", "ended_at": "2026-01-01T00:00:00Z"}
    first = [{"role": "user", "content": f"{n} " * 300} for n in range(3)]
    _, parts_ = split({"interaction_id": "i", **base, "messages": first}, memory)
    kept = store(parts_)
    edited = [first[0], {"role": "user", "content": "1 " * 301}, *first[2:], {"role": "user", "content": "more"}]
    body, again = split({"interaction_id": "j", **base, "messages": edited}, memory)
    assert [len(part["messages"]) for part in again] == [3]
    assert resolve(body, store(again, kept).get)["messages"] == edited
    with pytest.raises(FieldError, match="messages"):
        split(
            {"interaction_id": "k", **base, "messages": [*edited[:3], {"role": "user", "content": float("nan")}]},
            memory,
        )
    edited[0]["x"] = float("nan")  # type: ignore[assignment]
    with pytest.raises(FieldError):
        split({"interaction_id": "k", **base, "messages": edited}, memory)


def test_what_was_refused_meanwhile_in_another_thread_is_not_taken_for_sent() -> None:
    memory = SentParts()
    _, mark = memory.tail("e")
    memory.forget("e")
    memory.add("e", {"0" * 32}, None, mark)
    assert memory.missing("e", ["0" * 32]) == {"0" * 32}


def test_parts_that_were_refused_are_sent_again_after_forget() -> None:
    value = {"interaction_id": "i", "episode_id": "e", "messages": [{"role": "user", "content": "x" * 2_000}]}
    memory = SentParts()
    _, first = split(value, memory)
    memory.forget("e")
    assert split(value, memory)[1] == first


def test_a_long_message_goes_as_links_of_bounded_size_and_its_long_strings_as_values() -> None:
    messages = [{"role": "user", "content": "y" * 60_000} for _ in range(20)]
    messages.append({"role": "user", "content": [{"type": "image", "data": "i" * 100_000}]})  # type: ignore[dict-item]
    body, sent = split({"interaction_id": "i", "messages": messages}, SentParts())
    assert body["transcript"]["count"] == 21
    links = [part for part in sent if "messages" in part]
    assert len(links) == 3
    assert all(len(dumps(part)) <= parts.LINK_BYTES + 1000 for part in links)
    assert list(links[-1]["claims"]) == [f"/messages/{len(links[-1]['messages']) - 1}/content/0/data"]


def test_what_is_missing_or_erased_is_named() -> None:
    value = {"interaction_id": "i", "episode_id": "e", "messages": [{"role": "user", "content": "x" * 2_000}]}
    body, sent = split(value, SentParts())
    with pytest.raises(PartMissing, match=body["transcript"]["head"]):
        resolve(body, lambda name: None)
    episode, erased = read_part({"episode_id": "e", "part": sent[0]["part"], "erased": "asked by the subject"})
    assert episode == "e"
    with pytest.raises(PartErased, match="asked by the subject"):
        resolve(body, {p.hash: p for p in erased}.get)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"part": "0" * 32}, r"\$\.part: is 0"),
        ({"part": "XY"}, r"\$\.part"),
        ({"messages": [{"role": "user", "content": "another"}]}, r"\$\.part"),
        ({"messages": []}, r"\$\.messages"),
        ({"messages": [{}]}, r"role"),
        ({"count": 2}, r"\$\.count"),
        ({"count": True}, r"\$\.count"),
        ({"prev": "0" * 32}, r"\$\.count"),
        ({"claims": {"/messages/0/content": "0" * 32}}, r"\$\.claims"),
        ({"claims": {"/messages/9/content": "0" * 32}}, r"\$\.claims"),
        ({"value": 1}, r"\$: is no part"),
        ({"episode_id": 7}, r"\$\.episode_id"),
    ],
)
def test_a_part_that_is_not_what_its_hash_says_is_refused(change: dict[str, Any], problem: str) -> None:
    _, sent = split(
        {"interaction_id": "i", "episode_id": "e", "messages": [{"role": "user", "content": "x" * 2_000}]}, SentParts()
    )
    with pytest.raises(FieldError, match=problem):
        read_part(sent[0] | change)


@settings(max_examples=500, deadline=None)
@given(JSON)
@example(5.960464477539063e-08)
@example([0.00001, -0.0, 1e22, 1e-7, 0.0001])
@example({"a": "1e5:1e5", "b": [float("1e5"), 123456789012345680.0]})
def test_the_fast_way_to_canonical_json_gives_the_same_bytes(value: Any) -> None:
    fast = _canonical_fast(value)
    if fast is not None:
        assert fast == _text(value).encode()
    assert json.loads(canonical_json(value)) == json.loads(dumps(value))


@pytest.mark.parametrize("value", [[None, float("nan")], {"a": float("inf"), "b": None}, {1: 2}, {1, 2}])
def test_the_fast_way_refuses_what_the_slow_one_refuses(value: Any) -> None:
    with pytest.raises(FieldError):
        canonical_json(value)


def test_a_string_below_the_limit_is_not_taken_out() -> None:
    value = {"interaction_id": "i", "messages": [{"role": "user", "content": "x"}], "error": "e" * LONG_BYTES}
    assert split(value, SentParts())[0].get("claims") is None
    value["error"] = "e" * (LONG_BYTES + 1)
    assert list(split(value, SentParts())[0]["claims"]) == ["/error"]
