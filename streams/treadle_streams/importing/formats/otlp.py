"""OpenTelemetry: OTLP JSON as the collector's file exporter writes it, one `{"resourceSpans": [...]}` a line. `spans_of` reads a request of
OTLP/HTTP as well: its JSON, or its protobuf through `google.protobuf.json_format.MessageToDict`.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from typing import Any

from treadle.integrations._spans import FIRST_TOKEN_EVENTS, RawSpan, failure_of
from treadle_schemas.errors import FieldError, shown
from treadle_schemas.moments import from_micros

from treadle_streams.importing.formats._items import Bad, Item, Passed, Recall
from treadle_streams.importing.formats._node import Node
from treadle_streams.importing.formats._spans import items_of

__all__ = ["attributes_of", "otlp", "spans_of"]


def otlp(document: dict[str, Any], recall: Recall) -> Iterator[Item]:
    """The items of one export request."""
    if "resourceSpans" not in document:
        for other in ("resourceLogs", "resourceMetrics"):
            if other in document:
                yield Passed(other)
                return
    for span in spans_of(document):
        try:
            if isinstance(span, FieldError):
                raise span
            yield from items_of(span)
        except FieldError as err:
            yield Bad(err)


def spans_of(document: dict[str, Any]) -> Iterator[RawSpan | FieldError]:
    """The spans of one export request, and what is wrong with those that are none. Raises FieldError where the whole is no such request."""
    if "resourceSpans" not in document:
        raise FieldError("$.resourceSpans", "is missing: this is no OTLP JSON of spans")
    for path, resource_spans in Node(document).nodes("resourceSpans"):
        try:
            yield from _resource(Node(resource_spans, path))
        except FieldError as err:
            yield err


def _resource(node: Node) -> Iterator[RawSpan | FieldError]:
    resource = node.object("resource")
    about = attributes_of(resource) if resource else {}
    service = about.get("service.name")
    for path, scope in node.nodes("scopeSpans"):
        for place, span in Node(scope, path).nodes("spans"):
            try:
                yield _raw(Node(span, place), service if isinstance(service, str) else None)
            except FieldError as err:
                yield err


def _raw(node: Node, service: str | None) -> RawSpan:
    started = _micros(node, "startTimeUnixNano")
    status = node.object("status")
    events: list[tuple[str, dict[str, Any]]] = []
    first_token: float | None = None
    for path, event in node.nodes("events"):
        told = Node(event, path)
        name = told.text("name") or ""
        events.append((name, attributes_of(told)))
        if first_token is None and name in FIRST_TOKEN_EVENTS and "timeUnixNano" in told:
            first_token = max(0.0, (_micros(told, "timeUnixNano") - started) / 1000)
    attributes = attributes_of(node)
    failed = status is not None and status.any("code") in (2, "STATUS_CODE_ERROR")
    dropped = [node.any(name) for name in ("droppedAttributesCount", "droppedEventsCount")]
    return RawSpan(
        span_id=_identity(node, "spanId"),
        trace_id=_identity(node, "traceId"),
        parent_id=_identity(node, "parentSpanId") if node.any("parentSpanId") else None,
        name=node.text("name") or "",
        started_at=from_micros(started),
        ended_at=from_micros(_micros(node, "endTimeUnixNano") if "endTimeUnixNano" in node else started),
        attributes=attributes,
        where=f"{node.path}.attributes",
        error=failure_of(status.text("message") if status else None, events, attributes) if failed else None,
        events=events,
        service=service,
        dropped=sum(count for count in dropped if isinstance(count, int)),
        first_token_ms=first_token,
    )


def attributes_of(node: Node) -> dict[str, Any]:
    """OTLP's list of keys and typed values as an object."""
    found = {}
    for path, pair in node.nodes("attributes"):
        entry = Node(pair, path)
        found[entry.needed("key")] = _value(entry.any("value"), f"{path}.value")
    return found


def _value(given: Any, where: str) -> Any:
    if given is None:
        return None
    node = Node(given, where)
    for name, inner in node.value.items():
        match name:
            case "stringValue" | "boolValue" | "doubleValue" | "bytesValue":
                return inner
            case "intValue":  # 64-bit integers are text in protobuf's JSON
                return (
                    int(inner)
                    if isinstance(inner, str) and inner.lstrip("-").isdecimal() and len(inner) < 25
                    else inner
                )
            case "arrayValue":
                return [_value(item, place) for place, item in Node(inner, f"{where}.{name}").nodes("values")]
            case "kvlistValue":
                pairs = [Node(item, place) for place, item in Node(inner, f"{where}.{name}").nodes("values")]
                return {pair.needed("key"): _value(pair.any("value"), f"{pair.path}.value") for pair in pairs}
            case _:
                raise FieldError(f"{where}.{name}", "is no type of value that OTLP has")
    return None


def _micros(node: Node, name: str) -> int:
    """A moment in microseconds since the epoch."""
    given = node.any(name)
    if isinstance(given, str) and given.isdecimal() and len(given) < 25:
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int) or given <= 0:
        raise FieldError(node.where(name), f"is {shown(given)}, not nanoseconds since the epoch")
    try:
        from_micros(given // 1000)
    except (OverflowError, ValueError):
        raise FieldError(node.where(name), f"{shown(given)} is no time") from None
    return given // 1000


def _identity(node: Node, name: str) -> str:
    """Hexadecimal, also where a protobuf library wrote it in base64."""
    text = node.needed(name)
    if len(text) in (24, 12) and not all(c in "0123456789abcdefABCDEF" for c in text):
        try:
            return binascii.a2b_base64(text, strict_mode=True).hex()
        except ValueError:
            raise FieldError(node.where(name), f"{shown(text)} is neither hexadecimal nor base64") from None
    return text.lower()
