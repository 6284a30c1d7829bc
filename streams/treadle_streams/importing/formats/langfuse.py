"""Langfuse: observations, traces and scores, as the blob storage export (snake_case, times without a zone), the table export of the UI
and the public API (camelCase) write them. A page of the API (`{"data": [...]}`) will do, and a trace with its `observations` and `scores`
inside.

Generations are interactions; agents, tools and other spans say who called whom. Scores are outcomes: a number, a boolean, a category;
a comment beside one and a text score are comments, a correction is a demonstration.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from treadle.integrations._formats._messages import as_messages, as_tools, usage_of
from treadle_schemas.canonical import loads
from treadle_schemas.errors import FieldError, shown

from treadle_streams.importing.formats._items import Bad, Call, Item, Passed, Recall, Score, Span, Trace
from treadle_streams.importing.formats._node import Node

__all__ = ["langfuse"]

_CALLS: Final = ("GENERATION",)
_SAMPLING_NOT: Final = frozenset({"tools", "functions", "messages", "model"})


def langfuse(document: dict[str, Any], recall: Recall) -> Iterator[Item]:
    """The items of one record, or of one page of records."""
    node = Node(document)
    if isinstance(document.get("data"), list) and "id" not in document:
        for path, record in node.nodes("data"):
            yield from _guarded(record, path)
    else:
        yield from _record(node)


def _guarded(record: Any, path: str) -> Iterator[Item]:
    try:
        yield from _record(Node(record, path))
    except FieldError as err:
        yield Bad(err)


def _record(node: Node) -> Iterator[Item]:
    if node.any("type") is not None and node.any("start_time", "startTime") is not None:
        yield from _observation(node)
    elif node.any("data_type", "dataType") is not None:
        yield from _score(node)
    elif node.any("timestamp") is not None and node.any("trace_id", "traceId") is None:
        yield from _trace(node)
    else:
        raise FieldError(
            node.path, "is no observation (type, start_time), score (data_type) or trace (timestamp) of Langfuse"
        )


def _observation(node: Node) -> Iterator[Item]:
    kind = node.needed("type").upper()
    started = node.when("start_time", "startTime")
    ended = node.time("end_time", "endTime") or node.time("completion_start_time", "completionStartTime") or started
    common: dict[str, Any] = {
        "id": node.needed("id"),
        "trace_id": node.text("trace_id", "traceId") or node.needed("id"),
        "parent_id": node.text("parent_observation_id", "parentObservationId"),
        "name": node.text("name") or "",
        "session": node.text("session_id", "sessionId"),
        "subject": node.text("user_id", "userId"),
        "ended_at": ended,
    }
    if node.text("trace_name", "traceName") is not None or common["session"] is not None:
        yield Trace(
            id=common["trace_id"],
            name=node.text("trace_name", "traceName") or "",
            session=common["session"],
            subject=common["subject"],
            tags=_labels(node),
        )
    if kind not in _CALLS:
        yield Span(**common, agent=kind == "AGENT")
        yield Passed(f"observation {kind}")
        return
    asked = _maybe_json(node, "input")
    tools = asked.get("tools", asked.get("functions")) if isinstance(asked, dict) else None
    messages = as_messages(asked, "user", node.where("input"))
    answer = as_messages(_maybe_json(node, "output"), "assistant", node.where("output"))
    level, problem = node.text("level"), node.text("status_message", "statusMessage")
    parameters = node.object("model_parameters", "modelParameters")
    sampling = (
        {k: v for k, v in parameters.value.items() if k not in _SAMPLING_NOT and v is not None} if parameters else {}
    )
    usage = node.object("usage_details", "usageDetails") or node.object("usage")
    cost = node.object("cost_details", "costDetails")
    dollars = node.number("total_cost", "totalCost", "calculatedTotalCost")
    metadata = node.object("metadata")
    if dollars is None and cost is not None:
        dollars = cost.number("total")
    # the time itself is exact, the latency is rounded
    first = node.number("time_to_first_token", "timeToFirstToken")
    yield Call(
        **common,
        messages=messages + answer,
        response=len(answer),
        started_at=started,
        fields={
            "model": node.text("provided_model_name", "providedModelName", "model"),
            "tools": as_tools(_declared(node) or tools or (parameters.any("tools") if parameters else None)),
            "status": "error" if level == "ERROR" else None,
            "error": (problem or "error") if level == "ERROR" else None,
            "sampling": sampling or None,
            "usage": usage_of(usage.value if usage else None),
            "cost": dollars or None,
            "first_token_ms": first * 1000 if first is not None else None,
            "task_id": metadata.text("task_id") if metadata and isinstance(metadata.any("task_id"), str) else None,
            "tags": _tags(node),
        },
    )


def _declared(node: Node) -> Any:
    """Tool definitions of the export's field group `tools`: name -> JSON text, or a list."""
    given = node.any("tool_definitions", "toolDefinitions")
    if isinstance(given, dict):
        return [
            {"name": name, **(loads(text) if isinstance(text, str) and text.startswith("{") else {})}
            for name, text in given.items()
        ]
    return given


def _tags(node: Node) -> dict[str, Any] | None:
    tags: dict[str, Any] = {}
    for name in ("environment", "version", "release", "prompt_name", "promptName"):
        found = node.text(name)
        if found is not None and found != "default":
            tags["langfuse_prompt" if name.startswith("prompt") else name] = found
    return tags or None


def _labels(node: Node) -> dict[str, Any]:
    return {str(label): True for label in node.list("tags")}


def _trace(node: Node) -> Iterator[Item]:
    yield Trace(
        id=node.needed("id"),
        name=node.text("name") or "",
        session=node.text("session_id", "sessionId"),
        subject=node.text("user_id", "userId"),
        tags=_labels(node),
    )
    yield Passed("trace")
    for name in ("observations", "scores"):
        for path, record in node.nodes(name):
            if isinstance(record, dict):  # the list form of the API holds ids only
                yield from _guarded(record, path)


def _score(node: Node) -> Iterator[Item]:
    kind = node.needed("data_type", "dataType").upper()
    subject = node.object("subject")
    told: dict[str, Any] = {
        "observed_at": node.when("timestamp"),
        "source": f"langfuse/{(node.text('source') or 'api').lower()}",
        "span_id": node.text("observation_id", "observationId"),
        "trace_id": node.text("trace_id", "traceId"),
        "session": node.text("session_id", "sessionId"),
    }
    if subject is not None:  # the third version of the API
        place = {"observation": "span_id", "trace": "trace_id", "session": "session"}.get(subject.needed("kind"))
        if place is None:
            yield Passed(f"score of {subject.needed('kind')}")
            return
        told[place] = subject.needed("id")
        told["trace_id"] = told["trace_id"] or subject.text("traceId", "trace_id")
    if not (told["span_id"] or told["trace_id"] or told["session"]):
        if node.text("dataset_run_id", "datasetRunId") is not None:
            yield Passed("score of a dataset run")
            return
        raise FieldError(node.where("trace_id", "traceId"), "is missing: the score is about nothing")
    told["name"] = node.needed("name")
    identity = node.needed("id")
    said = node.any("string_value", "stringValue")
    value = node.any("value")
    match kind:
        case "NUMERIC":
            yield Score(**told, id=identity, value=node.number("value"))
        case "BOOLEAN":
            if value not in (0, 1) and said not in ("True", "False", "true", "false"):
                raise FieldError(node.where("value"), f"{shown(value)} is no boolean: 0 or 1")
            yield Score(**told, id=identity, value=bool(value) if value in (0, 1) else str(said).lower() == "true")
        case "CATEGORICAL":
            yield Score(**told, id=identity, value=said if isinstance(said, str) else str(value))
        case "TEXT" | "CORRECTION":
            text = said if isinstance(said, str) else value
            if not isinstance(text, str) or not text:
                raise FieldError(node.where("string_value", "stringValue"), "is missing: the score says nothing")
            if kind == "TEXT":
                yield Score(**told, id=identity, value=text, kind="comment")
            else:
                right = as_messages(text, "assistant", node.where("string_value", "stringValue"))
                yield Score(**told, id=identity, value=None, kind="demonstration", messages=right)
        case _:
            raise FieldError(
                node.where("data_type", "dataType"), f"{shown(kind)} is no kind of score that this version knows"
            )
    comment = node.text("comment")
    if comment is not None:
        yield Score(**told, id=f"{identity}:comment", value=comment, kind="comment")


def _maybe_json(node: Node, name: str) -> Any:
    """Input and output are JSON text in the blob export, values elsewhere."""
    found = node.any(name)
    if isinstance(found, str) and found[:1] in ("[", "{", '"'):
        try:
            return loads(found)
        except FieldError:
            return found
    return found
