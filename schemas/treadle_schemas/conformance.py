"""What a producer in any language owes beyond what the join refuses: headers, known fields, one content an id.

Pure checks of one record, or of what was said before it. What the join itself refuses is found by the join's own code; the command
`treadle check-producer` puts both together. The contract in words is docs/contract.md.
"""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

import msgspec

from treadle_schemas import codec, golden
from treadle_schemas.canonical import content_hash, dumps
from treadle_schemas.errors import FieldError, shown
from treadle_schemas.moments import to_micros

__all__ = [
    "RECOMMENDED_HEADERS",
    "REQUIRED_HEADERS",
    "Finding",
    "RawHeaders",
    "SentRecord",
    "clock_findings",
    "expected_key",
    "header_findings",
    "identity",
    "moments_of",
    "record_of",
    "unknown_fields",
]

REQUIRED_HEADERS: Final = (
    "ce_specversion",
    "ce_id",
    "ce_source",
    "ce_type",
    "ce_workspace",
    "ce_pii",
    "content-type",
)
RECOMMENDED_HEADERS: Final = ("ce_time", "ce_dataschema")
_PII: Final = re.compile(r"off|[a-z][a-z0-9_-]*/(?:0|[1-9][0-9]*)")
_JSON_TYPE: Final = re.compile(r"application/json(?:\s*;\s*charset=\"?utf-8\"?)?", re.IGNORECASE)

RawHeaders = Sequence[tuple[str, bytes | str | None]]


class Finding(NamedTuple):
    """One departure from the contract. An error makes a producer not conforming, a warning does not."""

    level: Literal["error", "warning"]
    reason: str
    """A reason of dead letters where the join refuses the record, else a word of this module's."""
    detail: str
    """Names the field, the value and the way out."""


@dataclass(frozen=True, slots=True)
class SentRecord:
    """A record in the form of the golden examples. `kind` is that of the topic; None: not said."""

    kind: Literal["interactions", "outcomes"]
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | str | None]]
    partition: int | None = None
    append_ms: int | None = None


def record_of(said: Any) -> SentRecord:
    """A record from the JSON form of the golden examples.

    {"topic", "key", "headers", and one of "value" (JSON), "value_text", "value_base64"; optionally "partition", "timestamp_ms"}. Raises
    FieldError naming the field.
    """
    if not isinstance(said, dict):
        raise FieldError("$", f"is {shown(said)}, not an object with topic, key, headers and value")
    topic = said.get("topic")
    kind = topic.rpartition(".")[2] if isinstance(topic, str) else None
    if kind not in ("interactions", "outcomes"):
        raise FieldError("$.topic", f"{shown(topic)} is neither interactions nor outcomes")
    key, headers = said.get("key"), said.get("headers")
    if key is not None and not isinstance(key, str):
        raise FieldError("$.key", f"{shown(key)} is neither text nor null")
    if not isinstance(headers, dict) or not all(isinstance(item, str) for item in headers.values()):
        raise FieldError("$.headers", "is no object of texts")
    numbers = {name: said.get(name) for name in ("partition", "timestamp_ms")}
    for name, number in numbers.items():
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
            raise FieldError(f"$.{name}", f"{shown(number)} is no whole number of 0 or more")
    return SentRecord(
        "interactions" if kind == "interactions" else "outcomes",
        None if key is None else key.encode(errors="surrogatepass"),
        _value_of(said),
        [(name, item.encode(errors="surrogatepass")) for name, item in headers.items()],
        numbers["partition"],
        numbers["timestamp_ms"],
    )


def _value_of(said: dict[str, Any]) -> bytes | None:
    forms = [form for form in ("value", "value_text", "value_base64") if form in said]
    if len(forms) != 1:
        raise FieldError("$.value", "give one of value, value_text and value_base64")
    value = said[forms[0]]
    if forms[0] == "value":
        return None if value is None else dumps(value, "$.value")
    if not isinstance(value, str):
        raise FieldError(f"$.{forms[0]}", f"{shown(value)} is no text")
    if forms[0] == "value_text":
        return value.encode(errors="surrogatepass")
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as err:
        raise FieldError("$.value_base64", f"is not base64: {err}") from None


def header_findings(headers: RawHeaders) -> Iterator[Finding]:
    """What is missing or wrong in the headers of one record, whatever its value."""
    by_name = codec.header_map(headers)
    for name in REQUIRED_HEADERS:
        if name not in by_name and name not in ("ce_type", "ce_workspace"):  # the join refuses those itself
            yield Finding("error", "missing_header", f"headers.{name}: is missing; send {_wanted(name)}")
    for name in RECOMMENDED_HEADERS:
        if name not in by_name:
            yield Finding("warning", "missing_header", f"headers.{name}: is missing; send {_wanted(name)}")
    names = [name for name, _ in headers or ()]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Finding(
            "warning", "bad_header", f"headers.{name}: stands there {names.count(name)} times; the last counts"
        )
    for name, raw in by_name.items():
        problem = _header_problem(name, raw, by_name)
        if problem is not None:
            yield Finding("error", "bad_header", f"headers.{name}: {problem}; send {_wanted(name)}")


def _header_problem(name: str, raw: bytes, by_name: dict[str, bytes]) -> str | None:
    if not name.startswith("ce_") and name != "content-type":
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return f"{shown(raw)} is not UTF-8"
    match name:
        case "ce_id" | "ce_source":
            return None if text else "is empty"
        case "ce_time":
            try:
                to_micros(text, name)
            except FieldError as err:
                return err.problem
            return None
        case "ce_dataschema":
            wanted = f"urn:treadle:schema:{by_name.get('ce_type', b'').decode(errors='replace')}"
            return None if text == wanted else f"{shown(text)} is not {shown(wanted)}"
        case "ce_pii":
            return None if _PII.fullmatch(text) else f"{shown(text)} is neither off nor NAME/VERSION"
        case "content-type":
            return None if _JSON_TYPE.fullmatch(text) else f"{shown(text)} is not application/json"
        case _:
            return None


def _wanted(name: str) -> str:
    return {
        "ce_specversion": "1.0",
        "ce_id": "an id of this message, for tracing",
        "ce_source": "who sends it, for example /agents/desk",
        "ce_time": "the time of sending, RFC 3339 with a zone",
        "ce_dataschema": "urn:treadle:schema: and the type",
        "ce_pii": "the privacy policy that was carried out, NAME/VERSION, or off",
        "content-type": "application/json",
    }.get(name, "UTF-8")


def unknown_fields(event_type: str, data: dict[str, Any]) -> Iterator[Finding]:
    """Fields that this version does not know: kept, but they do nothing. A misspelt name is the usual reason."""
    struct = golden.SCHEMAS.get(event_type)
    if struct is not None:
        yield from _unknown(struct, data, "$")


def _unknown(struct: type[msgspec.Struct], data: dict[str, Any], where: str) -> Iterator[Finding]:
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    for name, item in data.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.75)
            meant = f"; is {near[0]} meant?" if near else ""
            yield Finding("warning", "unknown_field", f"{where}.{_shown_name(name)}: is kept, but means nothing{meant}")
        elif isinstance(item, dict):
            for inner in (fields[name], *get_args(fields[name])):
                if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                    yield from _unknown(inner, item, f"{where}.{name}")


def _shown_name(name: str) -> str:
    return name if name.isidentifier() and len(name) <= 64 else shown(name)


def expected_key(event_type: str, data: dict[str, Any]) -> str | None:
    """What a record of that type is keyed by, from a value that was read; None where nothing is asked."""
    names = {
        codec.INTERACTION: ("episode_id", "interaction_id"),
        codec.OUTCOME: ("episode_id", "interaction_id", "reference"),
        codec.PART: ("episode_id",),
        codec.EPISODE_END: ("episode_id",),
        codec.ERASURE: ("episode_id",),
    }.get(event_type, ())
    return next((str(data[name]) for name in names if data.get(name)), None)


def identity(event_type: str, data: dict[str, Any]) -> tuple[tuple[str | None, ...], str] | None:
    """What makes an event the same one again, and the hash of what it says. Two contents under one identity are a conflict."""
    match event_type:
        case codec.INTERACTION:
            name = data.get("interaction_id")
            return (event_type, data.get("episode_id") or name, name), content_hash(data)
        case codec.OUTCOME if data.get("outcome_id") and data.get("op", "set") == "set":
            target = (data.get("episode_id"), data.get("interaction_id"), data.get("reference"))
            return (event_type, *target, data.get("outcome_id")), content_hash(data)
        case _:
            return None


def moments_of(event_type: str, data: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """(field, text) of the event times that are compared with the broker's."""
    name = {codec.INTERACTION: "ended_at", codec.EPISODE_END: "ended_at", codec.OUTCOME: "observed_at"}.get(event_type)
    return [(f"$.{name}", data[name])] if name is not None and isinstance(data.get(name), str) else []


def clock_findings(event_type: str, data: dict[str, Any], append_ms: int) -> Iterator[Finding]:
    """Event times after the broker's append time, which counts in their place for windows."""
    for field, text in moments_of(event_type, data):
        ahead_ms = to_micros(text, field) // 1000 - append_ms
        if ahead_ms > 0:
            detail = (
                f"{field}: {text} is {ahead_ms / 1000:.3f} s after the broker took the event; set this machine's clock"
            )
            yield Finding("warning", "clock_ahead", detail)
