"""The contracts: golden schemas, golden vectors, and what each reader refuses."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import treadle_schemas
from treadle_schemas import (
    ContractError,
    FieldError,
    Handle,
    HandleError,
    Metric,
    Outcome,
    ReleaseId,
    SettingError,
    Split,
    UnknownType,
    WorkspaceSettings,
    canonical_json,
    content_hash,
    golden,
    new_id,
    split_group,
)
from treadle_schemas.canonical import MAX_DEPTH, MAX_DIGITS, dumps, loads
from treadle_schemas.codec import CLOCK, INTERACTION, OUTCOME, TYPES, decode, encode, header_map, make_headers, to_json
from treadle_schemas.errors import shown
from treadle_schemas.events import default_outcome_id, read_interaction, read_outcome
from treadle_schemas.moments import from_micros, parse_duration_s, to_micros
from treadle_schemas.topics import CONTROL, KINDS, group, topic

NOON = "2024-05-15T12:00:00Z"
INTERACTION_VALUE: dict[str, Any] = {
    "interaction_id": "i",
    "agent": "a",
    "messages": [{"role": "user", "content": "hi"}],
    "started_at": NOON,
    "ended_at": NOON,
}
OUTCOME_VALUE: dict[str, Any] = {
    "name": "reward",
    "value": 1.0,
    "observed_at": NOON,
    "outcome_id": "o",
    "interaction_id": "i",
}


# Golden schemas.


@pytest.mark.parametrize("name", golden.SCHEMAS)
def test_the_committed_schema_is_the_one_the_types_give(name: str) -> None:
    committed = (golden.FOLDER / f"{name}.json").read_text()
    assert committed == golden.rendered(name), (
        "run `python -m treadle_schemas.golden` and review the change of contract"
    )


def test_no_schema_is_left_of_a_type_that_is_gone() -> None:
    assert {path.stem for path in golden.FOLDER.glob("*.json")} == set(golden.SCHEMAS)


def test_writing_schemas_tells_what_changed(tmp_path: Path) -> None:
    assert len(golden.write(tmp_path)) == len(golden.SCHEMAS)
    assert golden.write(tmp_path) == []


def test_exported_names_exist() -> None:
    assert all(hasattr(treadle_schemas, name) for name in treadle_schemas.__all__)


# Canonical JSON: vectors that a reader in another language has to reproduce.

CANONICAL = [
    (None, b"null"),
    ({"b": 1, "a": [1.0, -0.0, 1e22, 1e-7, 0.1, None, True]}, b'{"a":[1.0,0.0,1e+22,1e-07,0.1,null,true],"b":1}'),
    (2**64 + 1, b"18446744073709551617"),
    (-(2**63) - 1, b"-9223372036854775809"),
    (1e16, b"1e+16"),
    (123456789012345.6, b"123456789012345.6"),
    (5e-324, b"5e-324"),
    ('\u2028\x7f\x00\n"\\/ü', '"\u2028\x7f\\u0000\\n\\"\\\\/ü"'.encode()),
    # keys sort by code point, not by UTF-16 unit: U+FFFF before U+1F600
    ({"😀": 1, "\uffff": 2, "z": 3, "é": 4}, '{"z":3,"é":4,"\uffff":2,"😀":1}'.encode()),
    ("\ud83d", b'"\\ud83d"'),
    ("\ud83d\ude00 \ude00\ud83d", '"😀 \\ude00\\ud83d"'.encode()),
    ((1, [], {}), b"[1,[],{}]"),
]


@pytest.mark.parametrize(("value", "expected"), CANONICAL, ids=range(len(CANONICAL)))
def test_canonical_bytes(value: Any, expected: bytes) -> None:
    assert canonical_json(value) == expected


def test_a_content_hash_is_sha256_of_the_canonical_bytes() -> None:
    assert content_hash({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert content_hash(CANONICAL[1][0]) == "3f543495f3c2d7a3d72363cdaacb3d258a8111a5dcc16dcc2fb7ac3f9fa77ca6"


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


LOOP: list[Any] = []
LOOP.append({"again": LOOP})

NOT_JSON = [
    math.nan,
    math.inf,
    {1: 2},
    {"a": {"b": object()}},
    {"a": b"bytes"},
    {"a": {1, 2}},
    nested(MAX_DEPTH + 1),
    LOOP,
    10**MAX_DIGITS * 10,
    10**5000,
]


# without ids of its own pytest would print the values
@pytest.mark.parametrize("value", NOT_JSON, ids=range(len(NOT_JSON)))
@pytest.mark.parametrize("write", [canonical_json, dumps])
def test_what_json_cannot_carry_is_refused_by_name(write: Any, value: Any) -> None:
    with pytest.raises(FieldError) as caught:
        write(value)
    assert caught.value.field.startswith("$")
    assert len(str(caught.value)) < 1000


def test_the_field_is_named_by_its_path() -> None:
    with pytest.raises(FieldError, match=re.escape("$.a.b[1].c: ")):
        dumps({"a": {"b": [0, {"c": math.nan}]}})


@pytest.mark.parametrize("value", [nested(MAX_DEPTH), 10 ** (MAX_DIGITS - 1)], ids=["depth", "digits"])
def test_limits_are_reached_but_not_passed(value: Any) -> None:
    assert loads(dumps(value)) == value
    assert loads(canonical_json(value)) == value


BAD_JSON = [
    b"",
    b"{",
    b"NaN",
    b"[Infinity]",
    b"1e999",
    b"-1e999",
    b'{"a": 01}',
    b'"\xed\xa0\xbd"',
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\x00}\x00",
    b"{\x00}\x00",
    b'"\x01"',
    b"[" * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
    b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    b"9" * (MAX_DIGITS + 1),
    b"9" * 100_000,
    '"\ud83d"',
]


@pytest.mark.parametrize("data", BAD_JSON, ids=range(len(BAD_JSON)))
def test_what_is_no_json_is_refused(data: bytes | str) -> None:
    with pytest.raises(FieldError, match=r"not JSON|nested deeper"):
        loads(data)


def test_decoding_keeps_every_digit_and_lone_surrogates() -> None:
    assert loads(b"[123456789012345678901234567890, 18446744073709551616]") == [123456789012345678901234567890, 2**64]
    assert loads(b'"\\ud83d"') == "\ud83d"
    assert loads(dumps({"a": "\ud83d", "b": 2**70})) == {"a": "\ud83d", "b": 2**70}


# Events.

BAD_INTERACTIONS: list[tuple[dict[str, Any], str]] = [
    ({"interaction_id": ""}, "$.interaction_id"),
    ({"interaction_id": "é" * 129}, "$.interaction_id"),
    ({"interaction_id": "\ud83d"}, "$.interaction_id"),
    ({"episode_id": ""}, "$.episode_id"),
    ({"task_id": ""}, "$.task_id"),
    ({"slot": "Main"}, "slot"),
    ({"messages": []}, "$.messages"),
    ({"messages": [{}]}, "$.messages[0].role"),
    ({"messages": [{"role": "user"}, {"role": 1}]}, "$.messages[1].role"),
    ({"messages": ["hi"]}, "$.messages[0]"),
    ({"messages": [{"role": "user"}] * 10_001}, "$.messages"),
    ({"response": [0, 1]}, "$.response[1]"),
    ({"response": [-1]}, "$.response[0]"),
    ({"started_at": "2024-05-15T12:00:00"}, "$.started_at"),
    ({"ended_at": "2024-05-15T11:59:59Z"}, "$.ended_at"),
    ({"ended_at": "2024-13-15T12:00:00Z"}, "$.ended_at"),
    ({"status": "x" * 10_000}, "$.status"),
    ({"step": "1"}, "$.step"),
    ({"step": True}, "$.step"),
    ({"tags": {"a": [1]}}, "$.tags[...]"),
    ({"agent": None}, "$.agent"),
    ({"token_ids": [[1], ["a"]]}, "$.token_ids[1][0]"),
]


@pytest.mark.parametrize(("change", "field"), BAD_INTERACTIONS, ids=range(len(BAD_INTERACTIONS)))
def test_a_bad_interaction_names_its_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        read_interaction({**INTERACTION_VALUE, **change})
    assert caught.value.field == field
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("field", ["interaction_id", "agent", "messages", "started_at", "ended_at"])
def test_an_interaction_without_a_required_field_is_refused(field: str) -> None:
    with pytest.raises(FieldError, match=field):
        read_interaction({k: v for k, v in INTERACTION_VALUE.items() if k != field})


def test_an_episode_is_by_default_the_interaction() -> None:
    assert read_interaction(INTERACTION_VALUE).episode == "i"
    assert read_interaction({**INTERACTION_VALUE, "episode_id": "e"}).episode == "e"


BAD_OUTCOMES: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "$.name"),
    ({"name": "x" * 129}, "$.name"),
    ({"interaction_id": None}, "$.interaction_id"),
    ({"interaction_id": ""}, "$.interaction_id"),
    ({"episode_id": "x" * 257}, "$.episode_id"),
    ({"reference": "x" * 257}, "$.reference"),
    ({"outcome_id": None}, "$.outcome_id"),
    ({"outcome_id": ""}, "$.outcome_id"),
    ({"observed_at": "soon"}, "$.observed_at"),
    ({"value": [1]}, "$.value"),
    ({"op": "delete"}, "$.op"),
    ({"kind": "song"}, "$.kind"),
]


@pytest.mark.parametrize(("change", "field"), BAD_OUTCOMES)
def test_a_bad_outcome_names_its_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        read_outcome({**OUTCOME_VALUE, **change})
    assert caught.value.field == field


def test_a_set_needs_a_value_even_if_it_is_null_and_a_retract_needs_none() -> None:
    without = {k: v for k, v in OUTCOME_VALUE.items() if k != "value"}
    with pytest.raises(FieldError, match=r"\$\.value: is missing"):
        read_outcome(without)
    assert read_outcome({**without, "value": None}).value is None
    assert read_outcome({k: v for k, v in without.items() if k != "outcome_id"} | {"op": "retract"}).op == "retract"


def test_an_outcome_is_keyed_by_what_its_maker_knows_best() -> None:
    def key(**target: str) -> str:
        return read_outcome({**OUTCOME_VALUE, "interaction_id": None, **target}).key

    assert key(episode_id="e", interaction_id="i", reference="r") == "e"
    assert key(interaction_id="i", reference="r") == "i"
    assert key(reference="pr:org/repo#12") == "pr:org/repo#12"


def test_the_id_of_an_outcome_without_one_is_a_function_of_its_content() -> None:
    def of(**change: Any) -> str:
        fields = {"name": "reward", "value": 1.0, "observed_at": NOON, "interaction_id": "i", **change}
        return default_outcome_id(Outcome(**fields))

    assert of() == content_hash([[None, "i", None], "reward", 1.0, NOON])[:32] == "c8ea32d8396baa934d1cd7a5046c0d7c"
    others = [
        of(value=None),
        of(value=1),
        of(name="cost"),
        of(observed_at=NOON.replace("12", "13")),
        of(episode_id="e"),
    ]
    assert len({of(), *others}) == 6


# The codec.


def test_headers_are_cloudevents_in_binary_mode() -> None:
    headers = header_map(make_headers(INTERACTION, "shop", source="/agents/a", event_id="e1", import_id="im"))
    to_micros(headers.pop("ce_time").decode(), "ce_time")
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": b"e1",
        "ce_source": b"/agents/a",
        "ce_type": b"dev.treadle.interaction.v1",
        "ce_dataschema": b"urn:treadle:schema:dev.treadle.interaction.v1",
        "ce_workspace": b"shop",
        "ce_pii": b"off",
        "ce_importid": b"im",
        "content-type": b"application/json",
    }


def test_an_event_comes_back_with_fields_that_this_version_does_not_know() -> None:
    value = {**OUTCOME_VALUE, "colour": {"deep": [1, 2.0, None]}}
    event = decode(encode(value), list(make_headers(OUTCOME, "shop", source="s", import_id="im")))
    assert (event.type, event.data, event.import_id) == (OUTCOME, value, "im")
    assert read_outcome(event.data).name == "reward"


def test_a_clock_record_needs_no_value() -> None:
    assert decode(b"{}", [("ce_type", CLOCK.encode())]).data == {}


BAD_RECORDS: list[tuple[bytes | None, list[tuple[str, bytes | str | None]], type[ContractError]]] = [
    (b"{}", [], FieldError),
    (b"{}", [("ce_type", None)], FieldError),
    (b"{}", [("ce_type", b"\xff")], UnknownType),
    (b"{}", [("ce_type", b"dev.treadle.interaction.v2")], UnknownType),
    (b"{}", [("ce_type", b"x" * 10_000)], UnknownType),
    (None, [("ce_type", INTERACTION.encode())], FieldError),
    (b"[]", [("ce_type", INTERACTION)], FieldError),
    (b"not json", [("ce_type", INTERACTION.encode())], FieldError),
]


@pytest.mark.parametrize(("value", "headers", "error"), BAD_RECORDS, ids=range(len(BAD_RECORDS)))
def test_a_record_that_is_no_event_is_refused(
    value: bytes | None, headers: list[tuple[str, bytes | str | None]], error: type[ContractError]
) -> None:
    with pytest.raises(error) as caught:
        decode(value, headers)
    assert len(str(caught.value)) < 400


def test_too_large_an_event_is_refused_before_it_is_sent() -> None:
    with pytest.raises(FieldError, match="8388608"):
        encode({"a": "x" * 8 * 1024 * 1024})


def test_every_type_has_one_major_version() -> None:
    assert all(re.fullmatch(r"dev\.treadle\.[a-z-]+\.v1", name) for name in TYPES)


# Identity, time, topics.


def test_new_ids_are_uuid7_and_sort_by_time() -> None:
    ids = [new_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", i) for i in ids)
    assert [i[:11] for i in ids] == sorted(i[:11] for i in ids)


BAD_HANDLES = [
    "",
    "a",
    "a/b",
    "a/b/c/d",
    "A/b/c",
    "a//c",
    "a/b/",
    "a/%ff/c",
    "a/%ed%a0%bd/c",
    "-a/b/c",
    "workspaces/b/c",
    "a/b/" + "c" * 257,
]


@pytest.mark.parametrize("text", BAD_HANDLES)
def test_a_text_that_is_no_handle_is_refused(text: str) -> None:
    with pytest.raises(HandleError, match="is not a handle"):
        Handle.parse(text)


def test_release_ids_come_back() -> None:
    assert ReleaseId.parse("shop/main/r12") == ReleaseId("shop", "main", 12)
    assert str(ReleaseId("shop", "main", 12)) == "shop/main/r12"
    for text in ("shop/main", "shop/main/12", "shop/main/r01", "shop/Main/r1", "Shop/main/r1", "shop/main/r1/x"):
        with pytest.raises(HandleError, match="is not a release id"):
            ReleaseId.parse(text)


TIMES = [
    ("1970-01-01T00:00:00Z", 0),
    ("2024-05-15T20:33:23.490Z", 1_715_805_203_490_000),
    ("2024-05-15T22:33:23.490+02:00", 1_715_805_203_490_000),
    ("2024-05-15t20:33:23.4900009z", 1_715_805_203_490_000),
    ("0001-01-01T00:00:00+14:00", -62_135_647_200_000_000),
    ("9999-12-31T23:59:59.999999-12:00", 253_402_344_000_000_000 - 1),
]


@pytest.mark.parametrize(("text", "micros"), TIMES)
def test_times_are_microseconds_since_the_epoch(text: str, micros: int) -> None:
    assert to_micros(text, "$.t") == micros


NO_TIMES = [
    "",
    "now",
    "2024-05-15",
    "20240515T203323Z",
    "2024-W20-3T00:00:00Z",
    "2024-05-15T20:33Z",
    "2024-02-30T00:00:00Z",
    "2024-05-15T20:33:23",
    "2024-05-15T20:33:60Z",
    "٢٠٢٤-05-15T20:33:23Z",
    "2024-05-15T20:33:23.Z",
    "x" * 10_000,
]


@pytest.mark.parametrize("text", NO_TIMES, ids=range(len(NO_TIMES)))
def test_a_text_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(FieldError, match=r"^\$\.t: ") as caught:
        to_micros(text, "$.t")
    assert len(str(caught.value)) < 300


def test_times_come_back() -> None:
    assert from_micros(1_715_805_203_490_000) == "2024-05-15T20:33:23.490000Z"


def test_durations() -> None:
    assert [parse_duration_s(t, "d") for t in ("90", "1.5s", "250ms", "10m", "2h", "7d")] == [
        90,
        1.5,
        0.25,
        600,
        7200,
        604800,
    ]
    for text in ("", "7 days", "-1s", "1e3", "h"):
        with pytest.raises(FieldError):
            parse_duration_s(text, "d")


def test_everything_of_a_workspace_has_its_prefix() -> None:
    assert topic("shop", "dead-letter") == "treadle.shop.dead-letter"
    assert group("shop", "join") == "treadle.shop.join"
    assert not CONTROL.startswith("treadle.workspaces.")
    assert all(len(topic("w" * 63, kind)) <= 249 for kind in KINDS)
    with pytest.raises(ValueError, match="no topic kind"):
        topic("shop", "nothing")
    for name in ("", "a.b", "a_b", "Ab", "a-", "-a", "workspaces", "x" * 64, "ü", "a\n"):
        with pytest.raises(FieldError):
            topic(name, "graded")


# Metrics, settings, split.

FLOAT = Metric(name="reward", required=True, low=0.0, high=1.0)


@pytest.mark.parametrize(
    ("metric", "value", "kept"),
    [
        (FLOAT, 1, 1.0),
        (FLOAT, 0.25, 0.25),
        (FLOAT, None, None),
        (Metric(name="ok", type="bool"), True, True),
        (Metric(name="label", type="category"), "good", "good"),
    ],
)
def test_a_metric_keeps_what_fits_it(metric: Metric, value: Any, kept: Any) -> None:
    found = metric.check(value)
    assert (type(found), found) == (type(kept), kept)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        (FLOAT, True),
        (FLOAT, "1"),
        (FLOAT, 1.5),
        (FLOAT, 10**400),
        (Metric(name="r"), math.inf),
        (Metric(name="r"), math.nan),
        (Metric(name="ok", type="bool"), 1),
        (Metric(name="label", type="category"), True),
    ],
)
def test_a_metric_refuses_what_does_not(metric: Metric, value: Any) -> None:
    with pytest.raises(FieldError, match=r"\$\.value"):
        metric.check(value)


@pytest.mark.parametrize(
    "settings",
    [
        {"partitions": 0},
        {"partitions": 2000},
        {"split": Split(share=1.0)},
        {"split": Split(share=math.nan)},
        {"grace_s": -1.0},
        {"grace_s": math.nan},
        {"metrics": (FLOAT, FLOAT)},
        {"metrics": ()},
        {"metrics": (Metric(name="r"),)},
        {"metrics": (Metric(name="", required=True),)},
        {"metrics": (Metric(name="r", required=True, horizon_s=math.inf),)},
        {"metrics": (Metric(name="r", required=True, absent="none"),)},
        {"metrics": (Metric(name="r", required=True, low=1.0, high=0.0),)},
        {"metrics": (Metric(name="r", required=True, type="category", aggregate="mean"),)},
        {"metrics": (Metric(name="r", required=True, type="bool", low=0.0),)},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        WorkspaceSettings(workspace="shop", **settings).checked()


def test_a_new_workspace_grades_by_a_required_reward() -> None:
    settings = WorkspaceSettings(workspace="shop").checked()
    assert settings.metrics == (Metric(name="reward", required=True, horizon_s=7 * 86_400.0),)
    assert (settings.reward, settings.grace_s, settings.split.share) == ("reward", 3600.0, 0.1)
    assert settings.metric("reward") is settings.metrics[0]
    assert settings.metric("nothing") is None
    assert msgspec.convert(loads(encode(to_json(settings))), WorkspaceSettings) == settings


def test_the_split_is_a_fixed_function_of_salt_and_group() -> None:
    # sha256(b"treadle\0airline-1") begins with 0x0028_c7.., a fraction of 0.0006
    assert Split().side("airline-1") == "heldout"
    assert Split().side("airline-2") == "train"
    assert Split(share=0.0).side("airline-1") == "train"
    assert Split(salt="other").side("airline-1") == "train"
    share = sum(Split(share=0.3).side(f"g{n}") == "heldout" for n in range(5000)) / 5000
    assert abs(share - 0.3) < 0.03


def test_the_split_group_is_the_task_or_what_was_asked() -> None:
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    answered = [*asked, {"role": "assistant", "content": "a"}, {"role": "user", "content": "more"}]
    assert split_group("t", answered) == "t"
    assert split_group(None, answered) == split_group(None, asked) == content_hash(asked)


def test_what_an_error_shows_is_short() -> None:
    assert shown("abc") == "'abc'"
    assert len(shown("x" * 10_000_000)) < 150
    assert len(shown(list(range(100_000)))) < 150
    assert len(shown(10**100_000)) < 150
    assert json.dumps(shown("\ud83d"))


def test_a_forked_child_draws_ids_of_its_own() -> None:
    program = """
import os
from treadle_schemas import new_id
new_id()
ids = []
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, " ".join(new_id()[-12:] for _ in range(50)).encode())
    os._exit(0)
os.wait()
child = os.read(reader, 10_000).decode().split()
assert len(set(child) | {new_id()[-12:] for _ in range(50)}) == 100
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
