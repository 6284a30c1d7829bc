"""OpenTelemetry spans that describe agents: the GenAI conventions (messages as attributes, as events, and the older indexed attributes of
OpenLLMetry) and OpenInference. From a span's attributes to the items of the import.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from treadle_schemas.canonical import loads
from treadle_schemas.errors import FieldError

from treadle_streams.importing.formats._items import Call, Item, Passed, Span, Trace
from treadle_streams.importing.formats._messages import as_messages, as_tools, usage_of

__all__ = ["Raw", "items_of", "nested"]

_CALLS: Final = frozenset({"chat", "completion", "text_completion", "generate_content", "responses"})
_AGENTS: Final = frozenset({"invoke_agent", "create_agent", "agent"})
_ROLE_EVENTS: Final = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}
_NOT_SAMPLING: Final = frozenset({"model", "type", "is_stream", "stream", "tools", "functions", "encoding_formats"})


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A span as its file says it. Attributes have dotted names or are nested already; `where` is their path."""

    span_id: str
    trace_id: str
    parent_id: str | None
    name: str
    started_at: str
    ended_at: str
    attributes: dict[str, Any]
    where: str
    error: str | None = None
    kind: str | None = None
    """OpenInference's kind, where the file says it beside the attributes."""
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    service: str | None = None


def items_of(raw: Raw) -> Iterator[Item]:
    """What a span is. Raises FieldError."""
    told = nested(raw.attributes)
    ai, llm = _mapping(told.get("gen_ai")), _mapping(told.get("llm"))
    agent = _mapping(ai.get("agent"))
    kind = _kind(raw, told, ai, llm)
    session = _text(_at(told, "session.id")) or _text(_at(ai, "conversation.id"))
    subject = _text(_at(told, "user.id")) or _text(_at(told, "enduser.id"))
    common: dict[str, Any] = {
        "id": raw.span_id,
        "trace_id": raw.trace_id,
        "parent_id": raw.parent_id,
        "name": _text(agent.get("name")) or _text(_at(told, "traceloop.entity.name")) or raw.name,
        "session": session,
        "subject": subject,
        "ended_at": raw.ended_at,
    }
    if raw.service is not None or session is not None or subject is not None:
        yield Trace(id=raw.trace_id, name=raw.service or "", session=session, subject=subject)
    if kind == "call":
        yield _call(raw, told, ai, llm, common)
        return
    yield Span(**common, agent=kind == "agent")
    yield Passed(f"span {kind}")


def nested(attributes: dict[str, Any]) -> dict[str, Any]:
    """Dotted names as objects, and objects whose names are 0, 1, 2... as lists: at every level."""
    found: dict[str, Any] = {}
    for name, given in sorted(attributes.items(), key=lambda item: item[0].count(".")):
        inner = _lists(given)
        *path, last = name.split(".")
        here = found
        for part in path:
            below = here.get(part)
            if not isinstance(below, dict):
                below = here[part] = {} if below is None else {"": below}
            here = below
        if isinstance(here.get(last), dict) and isinstance(inner, dict):
            here[last] |= inner
        else:
            here[last] = inner
    return {name: _numbered(given) for name, given in found.items()}


def _lists(given: Any) -> Any:
    if isinstance(given, dict):
        return nested(given)
    return [_lists(part) for part in given] if isinstance(given, list) else given


def _numbered(given: Any) -> Any:
    if isinstance(given, dict):
        inner = {name: _numbered(part) for name, part in given.items()}
        numbers = [name for name in inner if name]
        if numbers and all(name.isascii() and name.isdigit() for name in numbers):
            return [inner[name] for name in sorted(numbers, key=int)]
        return inner
    return given


def _kind(raw: Raw, told: dict[str, Any], ai: dict[str, Any], llm: dict[str, Any]) -> str:
    open_inference = (_text(_at(told, "openinference.span.kind")) or raw.kind or "").lower()
    operation = (_text(_at(ai, "operation.name")) or "").lower()
    loop = (_text(_at(told, "traceloop.span.kind")) or "").lower()
    if open_inference == "llm" or operation in _CALLS or _text(_at(llm, "request.type")) in _CALLS:
        return "call"
    if not operation and not loop and (not open_inference or open_inference == "unknown") and _at(ai, "request.model"):
        return "call"
    if open_inference == "agent" or operation in _AGENTS or loop == "agent":
        return "agent"
    return open_inference or operation or loop or "other"


def _call(raw: Raw, told: dict[str, Any], ai: dict[str, Any], llm: dict[str, Any], common: dict[str, Any]) -> Call:
    asked, answer = _conversation(raw, told, ai, llm)
    if not asked and not answer:
        raise FieldError(raw.where, f"span {raw.name!r} holds no messages: its exporter did not capture them")
    finish = _at(ai, "response.finish_reasons")
    request = _mapping(ai.get("request"))
    parameters = _opened(_at(llm, "invocation_parameters"), raw.where)
    sampling = {
        name: given
        for name, given in (request or _mapping(parameters)).items()
        if name not in _NOT_SAMPLING and given is not None
    }
    identity = _text(_at(ai, "response.id"))
    cost = _at(llm, "cost.total")
    return Call(
        **common,
        messages=asked + answer,
        response=len(answer),
        started_at=raw.started_at,
        fields={
            "model": _text(_at(ai, "response.model")) or _text(request.get("model")) or _text(llm.get("model_name")),
            "tools": _tools(ai, llm, parameters, raw.where),
            "status": "error" if raw.error is not None else None,
            "error": raw.error,
            "sampling": sampling or None,
            "usage": _usage(ai, llm),
            "finish_reason": _text(finish[0]) if isinstance(finish, list) and finish else None,
            "cost": cost if isinstance(cost, int | float) and not isinstance(cost, bool) else None,
            "references": [f"response:{identity}"] if identity else [],
        },
    )


def _conversation(
    raw: Raw, told: dict[str, Any], ai: dict[str, Any], llm: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What was asked and what was answered, from the first place that has it."""
    for name, attributes in raw.events:
        if name == "gen_ai.client.inference.operation.details":
            inside = _mapping(nested(attributes).get("gen_ai"))
            ai = {**ai, **{key: inside[key] for key in ("input", "output", "system_instructions") if key in inside}}
    given, produced = _at(ai, "input.messages"), _at(ai, "output.messages")
    if given is not None or produced is not None:
        system = as_messages(_parts(ai.get("system_instructions")), "system", f"{raw.where}.gen_ai.system_instructions")
        asked = as_messages(given, "user", f"{raw.where}.gen_ai.input.messages")
        return system + asked, as_messages(produced, "assistant", f"{raw.where}.gen_ai.output.messages")
    if isinstance(ai.get("prompt"), list | dict) or isinstance(ai.get("completion"), list | dict):
        asked = as_messages(ai.get("prompt"), "user", f"{raw.where}.gen_ai.prompt")
        return asked, as_messages(ai.get("completion"), "assistant", f"{raw.where}.gen_ai.completion")
    if llm.get("input_messages") is not None or llm.get("output_messages") is not None:
        asked = as_messages(llm.get("input_messages"), "user", f"{raw.where}.llm.input_messages")
        return asked, as_messages(llm.get("output_messages"), "assistant", f"{raw.where}.llm.output_messages")
    from_events = _from_events(raw)
    if any(from_events):
        return from_events
    asked = as_messages(_at(told, "input.value"), "user", f"{raw.where}.input.value")
    return asked, as_messages(_at(told, "output.value"), "assistant", f"{raw.where}.output.value")


def _from_events(raw: Raw) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    asked: list[dict[str, Any]] = []
    answer: list[dict[str, Any]] = []
    for n, (name, attributes) in enumerate(raw.events):
        where = f"{raw.where}.events[{n}]"
        said: dict[str, Any] = {
            key: _opened(attributes[key], where) if key in ("message", "tool_calls") else attributes[key]
            for key in ("role", "content", "name", "message", "tool_calls")
            if key in attributes
        }
        if name == "gen_ai.tool.message" and "id" in attributes:
            said["tool_call_id"] = attributes["id"]
        if name in _ROLE_EVENTS:
            asked += as_messages({**said, "role": said.get("role", _ROLE_EVENTS[name])}, _ROLE_EVENTS[name], where)
        elif name == "gen_ai.choice" and not answer:
            message = said.get("message", said)
            answer += as_messages(message if isinstance(message, dict) else {"content": message}, "assistant", where)
    return asked, answer


def _parts(given: Any) -> Any:
    """System instructions are parts, without a message around them."""
    parts = _opened(given, "$") if isinstance(given, str) and given.startswith("[") else given
    return [{"role": "system", "parts": parts}] if isinstance(parts, list) and parts else parts


def _tools(ai: dict[str, Any], llm: dict[str, Any], parameters: Any, where: str) -> list[dict[str, Any]] | None:
    declared = _opened(_at(ai, "tool.definitions"), where)
    if declared is None and isinstance(llm.get("tools"), list):
        declared = [_opened(_at(_mapping(tool), "tool.json_schema"), where) for tool in llm["tools"]]
    if declared is None:
        declared = _mapping(parameters).get("tools")
    return as_tools(declared)


def _usage(ai: dict[str, Any], llm: dict[str, Any]) -> dict[str, Any] | None:
    counts = _mapping(ai.get("usage")) or {
        f"{name}_tokens" if name in ("prompt", "completion", "total") else name: given
        for name, given in _mapping(llm.get("token_count")).items()
        if isinstance(given, int | float)
    }
    return usage_of(counts)


def _opened(given: Any, where: str) -> Any:
    """Attributes hold what is no plain value as JSON text."""
    if isinstance(given, str) and given[:1] in ("[", "{"):
        return loads(given, where)
    return given


def _at(told: dict[str, Any], path: str) -> Any:
    here: Any = told
    for part in path.split("."):
        if not isinstance(here, dict):
            return None
        here = here.get(part)
    return here.get("", here) if isinstance(here, dict) else here


def _mapping(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}


def _text(given: Any) -> str | None:
    return str(given) if isinstance(given, str | int) and not isinstance(given, bool) and given != "" else None
