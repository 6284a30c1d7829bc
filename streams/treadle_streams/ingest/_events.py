"""From the body of a request to the events in it: a JSON object, an array, JSON lines, or CloudEvents (structured, batch, binary mode).

Pure. What is wrong with one event of several does not concern the others.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from treadle import targets
from treadle.errors import TargetError
from treadle_schemas.canonical import dumps, loads
from treadle_schemas.codec import INTERACTION, OUTCOME
from treadle_schemas.errors import ContractError, FieldError, HandleError, shown
from treadle_schemas.events import MAX_EVENT_BYTES, default_outcome_id, read_interaction, read_outcome
from treadle_schemas.ids import Handle, new_id
from treadle_schemas.moments import now

from treadle_streams.ingest.errors import Invalid, Malformed, Refused, TooLarge, UnsupportedType

__all__ = ["Given", "Prepared", "check_size", "given", "media_type", "prepared"]

MAX_EVENTS: Final = 10_000
"""Most events of one request."""
_JSON: Final = "application/json"
_LINES: Final = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines", "application/jsonlines")
_CLOUD: Final = "application/cloudevents+json"
_CLOUD_BATCH: Final = "application/cloudevents-batch+json"
_HINT: Final = f"use {_JSON}, {_LINES[0]} or {_CLOUD}"
_STORED: Final = ("transcript", "claims")
"""Fields that stand for parts sent before: a thing between an SDK and Kafka."""
_UNKNOWN_ID: Final = "none"


@dataclass(frozen=True, kw_only=True)
class Given:
    """One event as it was sent."""

    kind: str | None
    """Its type, None where nothing says it."""
    value: Any
    event_id: str | None = None
    """The CloudEvent's id, which becomes the event's own where it has none."""
    workspace: str | None = None
    """The workspace that the CloudEvent says it is for."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An event that may be recorded, and what its sender is told about it."""

    kind: str
    value: dict[str, Any]
    key: str
    answer: dict[str, Any] = field(default_factory=dict)


def media_type(headers: Mapping[str, str]) -> str:
    """The content type without its parameters; without one it is JSON."""
    return headers.get("content-type", _JSON).partition(";")[0].strip().lower()


def given(body: bytes, headers: Mapping[str, str], kind: str | None) -> tuple[list[Given | Refused], bool]:
    """The events of a body, and whether it could hold several. `kind` is what a bare object is; None: it has to be a CloudEvent.

    Raises Malformed, UnsupportedType, TooLarge.
    """
    media = media_type(headers)
    if "ce-specversion" in headers or "ce-type" in headers:
        if media != _JSON:
            raise UnsupportedType(f"the data of a CloudEvent is {media}", hint=f"use {_JSON}")
        value = _loaded(body)
        return [_binary(value, headers)], False
    if media in _LINES:
        lines = [raw for raw in body.split(b"\n") if raw.strip()]
        _check_count(len(lines))
        return [_line(raw, n, kind) for n, raw in enumerate(lines)], True
    if media not in (_JSON, _CLOUD, _CLOUD_BATCH):
        raise UnsupportedType(f"content type {media[:80]} is not read here", hint=_HINT)
    value = _loaded(body)
    cloud = media != _JSON
    if not isinstance(value, list):
        return [_structured(value, kind, cloud)], False
    if media == _CLOUD:
        raise Malformed("is a list, not a CloudEvent", field="$", hint=f"a list of them is {_CLOUD_BATCH}")
    _check_count(len(value))
    return [_structured(item, kind, cloud) for item in value], True


def prepared(event: Given, workspace: str, only: str | None) -> Prepared:
    """An event with its ids and times, checked. `only` is the type that is taken here, None: both. Raises Refused, and its like."""
    if event.kind not in (INTERACTION, OUTCOME) or only not in (None, event.kind):
        takes = only or f"{INTERACTION} or {OUTCOME}"
        raise Invalid(
            f"type {shown(event.kind)} is not taken here", code="wrong_type", field="type", hint=f"send {takes}"
        )
    if event.workspace not in (None, workspace):
        # which workspaces there are is nobody's business
        raise Invalid("the event says that it is of another workspace than the address", field="workspace")
    if not isinstance(event.value, dict):
        raise Malformed(f"is a {type(event.value).__name__}, not an object", field="$")
    try:
        if event.kind == INTERACTION:
            return _interaction(dict(event.value), event.event_id, workspace)
        return _outcome(dict(event.value), event.event_id, workspace)
    except FieldError as err:
        raise Invalid(err.problem, field=err.field) from None
    except (TargetError, HandleError) as err:
        raise Invalid(str(err), code="bad_target", field="$.target") from None
    except ContractError as err:
        raise Invalid(str(err)) from None


def check_size(event: Given) -> None:
    """Raises TooLarge. Encodes the event: ask only where the body is beyond the limit."""
    if len(dumps(event.value)) > MAX_EVENT_BYTES:
        raise TooLarge(f"an event has at most {MAX_EVENT_BYTES} bytes", field="$")


def _interaction(value: dict[str, Any], event_id: str | None, workspace: str) -> Prepared:
    for name in _STORED:
        if value.get(name) is not None:
            raise FieldError(f"$.{name}", "is not taken over HTTP; send all messages, they are stored once here")
    moment = now()
    value.setdefault("interaction_id", event_id or new_id())
    value.setdefault("ended_at", moment)
    value.setdefault("started_at", value["ended_at"])
    event = read_interaction(value)
    handle = Handle(workspace, event.episode, event.interaction_id)
    return Prepared(
        kind=INTERACTION,
        value=value,
        key=event.episode,
        answer={"interaction_id": event.interaction_id, "handle": str(handle)},
    )


def _outcome(value: dict[str, Any], event_id: str | None, workspace: str) -> Prepared:
    if "target" in value:
        value |= _named(value.pop("target"), workspace)
    timed = value.get("observed_at") is not None
    value.setdefault("observed_at", now())
    if value.get("outcome_id") is None and value.get("op", "set") == "set":
        value["outcome_id"] = event_id or _UNKNOWN_ID
        event = read_outcome(value)
        if event_id is None:
            # a request that is repeated says the same time, and is the same outcome
            value["outcome_id"] = default_outcome_id(event) if timed else new_id()
    event = read_outcome(value)
    return Prepared(kind=OUTCOME, value=value, key=event.key, answer={"outcome_id": value.get("outcome_id")})


def _named(target: Any, workspace: str) -> dict[str, str]:
    if not isinstance(target, str):
        raise FieldError("$.target", f"is a {type(target).__name__}, not a handle or a reference")
    found = targets.resolve(target, workspace)
    if found.workspace not in (None, workspace):
        raise FieldError("$.target", "is a handle of another workspace than the address")
    said = {"interaction_id": found.interaction_id, "episode_id": found.episode_id, "reference": found.reference}
    return {name: text for name, text in said.items() if text is not None}


def _loaded(body: bytes) -> Any:
    try:
        return loads(body)
    except FieldError as err:
        raise Malformed(err.problem, field=err.field) from None


def _check_count(count: int) -> None:
    if count > MAX_EVENTS:
        raise TooLarge(f"{count} events in one request; at most {MAX_EVENTS}", hint="send them in several requests")


def _line(raw: bytes, number: int, kind: str | None) -> Given | Refused:
    try:
        return _structured(loads(raw), kind, False)
    except FieldError as err:
        return Malformed(err.problem, field=f"line {number + 1}")


def _structured(value: Any, kind: str | None, cloud: bool) -> Given | Refused:
    """A bare value, or a CloudEvent around one. On an address of both types everything is a CloudEvent."""
    if not cloud and kind is not None:
        return Given(kind=kind, value=value)
    if not isinstance(value, dict):
        return Malformed(f"is a {type(value).__name__}, not a CloudEvent", field="$")
    for name in ("specversion", "type"):
        if not isinstance(value.get(name), str):
            return Malformed("is missing or no text: this is no CloudEvent", field=f"$.{name}")
    if not value["specversion"].startswith("1."):
        return Invalid(f"{shown(value['specversion'])} is no version that is read here", field="$.specversion")
    data = value.get("data")
    if "data_base64" in value:
        try:
            data = loads(base64.b64decode(value["data_base64"], validate=True))
        except (binascii.Error, TypeError, ValueError):
            return Malformed("is no base64", field="$.data_base64")
        except FieldError as err:
            return Malformed(err.problem, field="$.data_base64")
    return Given(
        kind=value["type"], value=data, event_id=_text(value.get("id")), workspace=_text(value.get("workspace"))
    )


def _binary(value: Any, headers: Mapping[str, str]) -> Given | Refused:
    # header values are percent-encoded (CloudEvents, HTTP binding, section 3.1.3.2)
    headers = {name: unquote(text) for name, text in headers.items() if name.startswith("ce-")}
    version = headers.get("ce-specversion", "1.0")
    if not version.startswith("1."):
        return Invalid(f"{shown(version)} is no version that is read here", field="ce-specversion")
    return Given(
        kind=headers.get("ce-type"),
        value=value,
        event_id=headers.get("ce-id") or None,
        workspace=headers.get("ce-workspace"),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
