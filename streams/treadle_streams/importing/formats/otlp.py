"""OpenTelemetry: OTLP JSON as the collector's file exporter writes it, one `{"resourceSpans": [...]}` a line."""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from typing import Any

from treadle_schemas.errors import FieldError, shown
from treadle_schemas.moments import from_micros

from treadle_streams.importing.formats._items import Bad, Item, Passed, Recall
from treadle_streams.importing.formats._node import Node
from treadle_streams.importing.formats._spans import Raw, items_of

__all__ = ["attributes_of", "otlp"]


def otlp(document: dict[str, Any], recall: Recall) -> Iterator[Item]:
    """The items of one export request."""
    node = Node(document)
    if "resourceSpans" not in document:
        for other in ("resourceLogs", "resourceMetrics"):
            if other in document:
                yield Passed(other)
                return
        raise FieldError("$.resourceSpans", "is missing: this is no OTLP JSON of spans")
    for path, resource_spans in node.nodes("resourceSpans"):
        try:
            yield from _resource(Node(resource_spans, path))
        except FieldError as err:
            yield Bad(err)


def _resource(node: Node) -> Iterator[Item]:
    resource = node.object("resource")
    about = attributes_of(resource) if resource else {}
    service = about.get("service.name")
    for path, scope in node.nodes("scopeSpans"):
        for place, span in Node(scope, path).nodes("spans"):
            try:
                yield from items_of(_raw(Node(span, place), service if isinstance(service, str) else None))
            except FieldError as err:
                yield Bad(err)


def _raw(node: Node, service: str | None) -> Raw:
    started = _nanos(node, "startTimeUnixNano")
    status = node.object("status")
    events = []
    failure = None
    for path, event in node.nodes("events"):
        told = Node(event, path)
        attributes = attributes_of(told)
        events.append((told.text("name") or "", attributes))
        if told.any("name") == "exception":
            failure = str(attributes.get("exception.message") or attributes.get("exception.type") or "") or failure
    attributes = attributes_of(node)
    failed = status is not None and status.any("code") in (2, "STATUS_CODE_ERROR")
    kind = attributes.get("error.type")
    parent = _identity(node, "parentSpanId") if node.any("parentSpanId") else None
    return Raw(
        span_id=_identity(node, "spanId"),
        trace_id=_identity(node, "traceId"),
        parent_id=parent,
        name=node.text("name") or "",
        started_at=started,
        ended_at=_nanos(node, "endTimeUnixNano") if "endTimeUnixNano" in node else started,
        attributes=attributes,
        where=f"{node.path}.attributes",
        error=((status and status.text("message")) or failure or (str(kind) if kind else None) or "error")
        if failed
        else None,
        events=events,
        service=service,
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


def _nanos(node: Node, name: str) -> str:
    given = node.any(name)
    if isinstance(given, str) and given.isdecimal() and len(given) < 25:
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int) or given <= 0:
        raise FieldError(node.where(name), f"is {shown(given)}, not nanoseconds since the epoch")
    try:
        return from_micros(given // 1000)
    except (OverflowError, ValueError):
        raise FieldError(node.where(name), f"{shown(given)} is no time") from None


def _identity(node: Node, name: str) -> str:
    """Hexadecimal, also where a protobuf library wrote it in base64."""
    text = node.needed(name)
    if len(text) in (24, 12) and not all(c in "0123456789abcdefABCDEF" for c in text):
        try:
            return binascii.a2b_base64(text, strict_mode=True).hex()
        except ValueError:
            raise FieldError(node.where(name), f"{shown(text)} is neither hexadecimal nor base64") from None
    return text.lower()
