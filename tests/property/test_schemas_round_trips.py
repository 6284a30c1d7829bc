"""Round trips of the contracts, and readers that raise nothing but their own error on anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from treadle_schemas import ContractError, Handle, ReleaseId, Split, canonical_json, content_hash, split_group
from treadle_schemas.canonical import dumps, loads
from treadle_schemas.codec import TYPES, decode, encode, make_headers, to_json
from treadle_schemas.events import Interaction, Outcome, read_interaction, read_outcome
from treadle_schemas.moments import from_micros, parse_duration_s, to_micros
from treadle_schemas.records import Grade, GradedRow, Provenance, row_content

# every code point, lone surrogates too
TEXT = st.text(st.characters(), max_size=20)
NUMBERS = st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
WORKSPACES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True).filter(lambda w: w != "workspaces")


def same(left: Any, right: Any) -> bool:
    """Equal as JSON: 1 and 1.0 and true differ, 0.0 and -0.0 do not."""
    return canonical_json(left) == canonical_json(right)


def attempt(call: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """What a call gives, or the text of its contract error. Anything else that it raises fails the test."""
    try:
        return call(*arguments), ""
    except ContractError as err:
        return None, str(err)


@given(JSON)
def test_canonical_json_is_a_fixed_point(value: Any) -> None:
    data = canonical_json(value)
    assert canonical_json(json.loads(data)) == data
    assert canonical_json(loads(data)) == data
    assert b" " not in canonical_json([[], {}, 1, "a"])


@given(st.dictionaries(TEXT, JSON, max_size=6))
def test_canonical_json_knows_no_order_of_keys(value: dict[str, Any]) -> None:
    backwards = dict(reversed(value.items()))
    assert canonical_json(backwards) == canonical_json(value)
    assert content_hash(backwards) == content_hash(value)


@given(JSON)
def test_what_is_encoded_decodes_to_the_same(value: Any) -> None:
    assert same(loads(dumps(value)), value)
    assert same(loads(dumps(value).decode()), value)


@given(st.binary(max_size=60) | JSON.map(lambda v: json.dumps(v).encode()))
@settings(max_examples=200)
def test_decoding_raises_nothing_but_contract_errors(data: bytes) -> None:
    try:
        value = loads(data)
    except ContractError:
        return
    assert same(loads(dumps(value)), value)


KEYS = st.sampled_from(sorted({*Interaction.__struct_fields__, *Outcome.__struct_fields__})) | TEXT
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["ce_type", "ce_importid", "ce_id"]) | st.text(max_size=5),
        st.none()
        | st.binary(max_size=10)
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
        | st.sampled_from(sorted(TYPES)).map(str.encode),
    ),
    max_size=4,
)


@given(
    st.none() | st.binary(max_size=60) | st.dictionaries(KEYS, JSON, max_size=8).map(lambda v: json.dumps(v).encode()),
    HEADERS,
)
@settings(max_examples=300)
def test_readers_raise_nothing_but_contract_errors_on_anything(value: bytes | None, headers: Any) -> None:
    event, problem = attempt(decode, value, headers)
    assert len(problem) < 1000
    if event is not None:
        assert event.import_id is None or isinstance(event.import_id, str)
        for read in (read_interaction, read_outcome):
            assert len(attempt(read, event.data)[1]) < 1000


MESSAGES = st.lists(
    st.dictionaries(TEXT, JSON, max_size=3).flatmap(lambda d: st.just({**d, "role": "user"})), min_size=1, max_size=3
)


@given(IDS, st.none() | IDS, MESSAGES, st.dictionaries(TEXT, JSON, max_size=3))
@example("a", None, [{"role": "user"}], {"\ud800": None})
def test_an_interaction_survives_the_wire(interaction: str, episode: str | None, messages: Any, more: Any) -> None:
    value = {f"x{key}": item for key, item in more.items()} | {
        "interaction_id": interaction,
        "episode_id": episode,
        "agent": "a",
        "messages": messages,
        "started_at": "2024-05-15T12:00:00Z",
        "ended_at": "2024-05-15T12:00:01Z",
    }
    event = decode(encode(value), list(make_headers("dev.treadle.interaction.v1", "w", source="s")))
    assert same(event.data, value)
    read = read_interaction(event.data)
    assert read.episode == (interaction if episode is None else episode)
    assert same(read.messages, messages)
    assert same(read_interaction(loads(encode(to_json(read)))).messages, messages)


@given(
    MESSAGES,
    st.dictionaries(
        TEXT, st.tuples(st.sampled_from(["pending", "observed", "absent"]), st.none() | NUMBERS | TEXT), max_size=3
    ),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_graded_row_survives_the_wire_with_its_content(messages: Any, metrics: Any, reward: float | None) -> None:
    row = GradedRow(
        episode_id="e",
        interaction_id="i",
        interaction={"messages": messages, "later": 1},
        grade=Grade(metrics=metrics, reward=reward, completeness=1.0, settled=True, grading_version=1),
        split="train",
        split_group="g",
        provenance=Provenance(
            revision=1, graded_at="", append_ms=0, interaction_offset=0, partition=0, outcome_ids=["o"]
        ),
    )
    back = msgspec.convert(loads(encode(to_json(row))), GradedRow)
    assert same(to_json(back), to_json(row))
    assert content_hash(row_content(back)) == content_hash(row_content(row))


@given(WORKSPACES, IDS, IDS)
def test_handles_come_back_from_their_text(workspace: str, episode: str, interaction: str) -> None:
    handle = Handle(workspace, episode, interaction)
    text = str(handle)
    assert Handle.parse(text) == handle
    assert text.isascii()
    assert text.count("/") == 2


@given(TEXT)
def test_parsing_a_handle_or_release_id_raises_nothing_but_contract_errors(text: str) -> None:
    for parse in (Handle.parse, ReleaseId.parse):
        found, problem = attempt(parse, text)
        assert (str(found).count("/") == 2) if found is not None else "is not a" in problem


@given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
def test_times_come_back(micros: int) -> None:
    assert to_micros(from_micros(micros), "$") == micros


@given(TEXT)
def test_reading_a_time_or_duration_raises_nothing_but_contract_errors(text: str) -> None:
    for read in (to_micros, parse_duration_s):
        found, problem = attempt(read, text, "$.t")
        assert found is not None or problem.startswith("$.t: ")


@given(TEXT, st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), TEXT)
def test_a_larger_share_only_adds_to_the_held_out(salt: str, one: float, other: float, group: str) -> None:
    small, large = sorted((one, other))
    if Split(salt=salt, share=small).side(group) == "heldout":
        assert Split(salt=salt, share=large).side(group) == "heldout"


@given(MESSAGES, MESSAGES)
def test_what_the_agent_answered_does_not_move_its_group(asked: Any, after: Any) -> None:
    assert split_group(None, [*asked, {"role": "assistant"}, *after]) == split_group(None, asked)
