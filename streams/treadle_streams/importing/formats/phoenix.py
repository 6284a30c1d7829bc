"""Arize Phoenix: spans as its REST API gives them (`GET /v1/projects/ID/spans`), as rows of `get_spans_dataframe()` written with
`to_json(orient="records", lines=True)`, or as OTLP JSON; annotations of spans, traces and sessions in the API's and the dataframe's form.

Spans of kind LLM are interactions, AGENT spans name the agents. An annotation's score is an outcome of its name; a label beside a score
is one more, `NAME.label`; an explanation is a comment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from treadle.integrations._spans import RawSpan, failure_of, nested
from treadle_schemas.errors import FieldError

from treadle_streams.importing.formats._items import Bad, Item, Passed, Recall, Score
from treadle_streams.importing.formats._node import Node
from treadle_streams.importing.formats._spans import items_of
from treadle_streams.importing.formats.otlp import otlp

__all__ = ["phoenix"]


def phoenix(document: dict[str, Any], recall: Recall) -> Iterator[Item]:
    """The items of one span, one annotation, or one page of either."""
    if "resourceSpans" in document:
        yield from otlp(document, recall)
        return
    node = Node(document)
    if isinstance(document.get("data"), list):
        for path, record in node.nodes("data"):
            try:
                yield from _record(Node(record, path))
            except FieldError as err:
                yield Bad(err)
    else:
        yield from _record(node)


def _record(node: Node) -> Iterator[Item]:
    if "annotator_kind" in node:
        yield from _annotation(node)
    elif "start_time" in node and ("context" in node or "context.span_id" in node):
        yield from items_of(_raw(node))
    else:
        raise FieldError(node.path, "is no span (start_time, context) and no annotation (annotator_kind) of Phoenix")


def _raw(node: Node) -> RawSpan:
    context = node.object("context") or Node(
        {"span_id": node.any("context.span_id"), "trace_id": node.any("context.trace_id")}, f"{node.path}.context"
    )
    attributes = node.object("attributes")
    if attributes is not None:
        told = attributes.value
    else:
        told = {
            name[len("attributes.") :]: v
            for name, v in node.value.items()
            if name.startswith("attributes.") and v is not None
        }
    started = node.when("start_time")
    failed = (node.text("status_code") or "").upper() == "ERROR"
    events: list[tuple[str, dict[str, Any]]] = []
    for path, event in node.nodes("events"):
        given = Node(event, path)
        inside = nested(given.value.get("attributes") or {}) if isinstance(given.value.get("attributes"), dict) else {}
        events.append((given.text("name") or "", inside))
    return RawSpan(
        span_id=context.needed("span_id"),
        trace_id=context.needed("trace_id"),
        parent_id=node.text("parent_id"),
        name=node.text("name") or "",
        started_at=started,
        ended_at=node.time("end_time") or started,
        attributes=told,
        where=f"{node.path}.attributes",
        error=failure_of(node.text("status_message"), events, told) if failed else None,
        kind=node.text("span_kind"),
        events=events,
    )


def _annotation(node: Node) -> Iterator[Item]:
    if node.any("document_position") is not None:
        yield Passed("annotation of a document")
        return
    result = node.object("result")
    flat = {name: node.any(name, f"result.{name}") for name in ("label", "score", "explanation")}
    told = result or Node({k: v for k, v in flat.items() if v is not None}, f"{node.path}.result")
    target = {
        "span_id": node.text("span_id", "context.span_id"),
        "trace_id": node.text("trace_id", "context.trace_id"),
        "session": node.text("session_id"),
    }
    if not any(target.values()):
        raise FieldError(f"{node.path}.span_id", "is missing: the annotation is about nothing")
    common: dict[str, Any] = {
        **target,
        "observed_at": node.when("updated_at", "created_at"),
        "source": f"phoenix/{node.needed('annotator_kind').lower()}",
    }
    name, identity = node.needed("name", "annotation_name"), node.text("id")
    score, label, explanation = told.number("score"), told.text("label"), told.text("explanation")

    def named(part: str) -> str | None:
        return f"{identity}:{part}" if identity else None

    if score is not None:
        yield Score(**common, id=identity, name=name, value=score)
        if label is not None:
            yield Score(**common, id=named("label"), name=f"{name}.label", value=label)
    elif label is not None:
        yield Score(**common, id=identity, name=name, value=label)
    elif explanation is None:
        yield Score(**common, id=identity, name=name, value=None)
    if explanation is not None:
        yield Score(**common, id=named("explanation"), name=name, value=explanation, kind="comment")
