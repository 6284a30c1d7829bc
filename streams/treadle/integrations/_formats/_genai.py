"""A call of a model as OpenTelemetry spans say it: the GenAI conventions (messages as attributes, as events, and the older indexed
attributes of OpenLLMetry) and OpenInference. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from treadle_schemas.canonical import loads
from treadle_schemas.errors import FieldError

from treadle.integrations._formats._messages import as_messages, as_tools, usage_of
from treadle.integrations._formats._shape import Asked, Reply, Sample, picked

__all__ = ["FIRST_TOKEN_EVENTS", "Attributes", "RawSpan", "failure_of", "genai_call", "kind_of", "nested"]

MAX_NAME_PARTS: Final = 32
"""Dots of a name that are looked at. Damaged input may have more than a recursion can follow."""
_CALLS: Final = frozenset({"chat", "completion", "text_completion", "generate_content", "responses"})
_AGENTS: Final = frozenset({"invoke_agent", "create_agent", "agent"})
_TOOLS: Final = frozenset({"execute_tool", "tool"})
_FINISH: Final = {"tool_call": "tool_calls", "tool_use": "tool_calls", "end_turn": "stop", "max_tokens": "length"}
_SAID: Final = ("content", "tool_calls", "function_call", "refusal", "reasoning_content")
_ROLE_EVENTS: Final = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}
_DETAILS_EVENT: Final = "gen_ai.client.inference.operation.details"
_CONTENT_EVENTS: Final = {"gen_ai.content.prompt": "prompt", "gen_ai.content.completion": "completion"}
FIRST_TOKEN_EVENTS: Final = frozenset(
    {"First Token Stream Event", "llm.content.completion.chunk", "gen_ai.content.completion.chunk"}
)
"""Events that an instrumentation adds to a span when the first token is there."""

_Message = dict[str, Any]
_Choice = tuple[list[_Message], str | None]
"""The messages of one answer, and why it ended."""


@dataclass(frozen=True, kw_only=True)
class RawSpan:
    """A finished span as its source says it, in plain values: text, numbers, lists, objects.

    Attributes have dotted names or are nested already. Ids are any text, the same for a span and its children's `parent_id`. Times are
    RFC 3339. `where` is the path of the attributes, for errors.
    """

    span_id: str
    trace_id: str
    parent_id: str | None
    name: str
    started_at: str
    ended_at: str
    attributes: dict[str, Any]
    where: str
    error: str | None = None
    """Why it failed; None where it did not."""
    kind: str | None = None
    """OpenInference's kind, where the source says it beside the attributes."""
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Name and attributes of each."""
    service: str | None = None
    dropped: int = 0
    """Attributes and events that the SDK dropped, since there were more than its limit."""
    first_token_ms: float | None = None


@dataclass(frozen=True)
class Attributes:
    """What the attributes of a span say, by the conventions that the span follows."""

    told: dict[str, Any]
    ai: dict[str, Any]
    llm: dict[str, Any]

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Attributes:
        """From dotted or nested attributes."""
        told = nested(attributes)
        return cls(told, _mapping(told.get("gen_ai")), _mapping(told.get("llm")))

    @property
    def agent(self) -> str | None:
        """The agent's name."""
        return _text(_at(self.ai, "agent.name")) or _text(_at(self.told, "agent.name"))

    @property
    def name(self) -> str | None:
        """What the span stands for: the agent's or the component's name."""
        return self.agent or _text(_at(self.told, "traceloop.entity.name"))

    @property
    def session(self) -> str | None:
        """The conversation."""
        return _text(_at(self.told, "session.id")) or _text(_at(self.ai, "conversation.id"))

    @property
    def subject(self) -> str | None:
        """The end user."""
        return _text(_at(self.told, "user.id")) or _text(_at(self.told, "enduser.id"))

    @property
    def provider(self) -> str | None:
        """Who serves the model."""
        names = (
            _at(self.ai, "provider.name"),
            _at(self.ai, "system"),
            self.llm.get("provider"),
            self.llm.get("system"),
        )
        return next((text for text in map(_text, names) if text), None)

    @property
    def first_token_ms(self) -> float | None:
        """How long the first token took, where an attribute says it (in seconds)."""
        waited = _at(self.ai, "response.time_to_first_chunk")
        return waited * 1000 if _is_number(waited) else None

    @property
    def tool_call_id(self) -> str | None:
        """Of a tool's span: the model's call that it answers."""
        return _text(_at(self.ai, "tool.call.id")) or _text(_at(self.told, "tool_call.id"))


def nested(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as objects, and objects whose names are 0, 1, 2... as lists: at every level."""
    found: dict[str, Any] = {}
    for name, given in sorted(attributes.items(), key=lambda item: item[0].count(".")):
        inner = _lists(given)
        *path, last = name.split(".", MAX_NAME_PARTS)
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


def kind_of(said: Attributes, kind: str | None = None) -> str:
    """`call` of a model, `agent`, `tool`, or another word. `kind` is OpenInference's, where it is not among the attributes."""
    open_inference = (_text(_at(said.told, "openinference.span.kind")) or kind or "").lower()
    operation = (_text(_at(said.ai, "operation.name")) or "").lower()
    loop = (_text(_at(said.told, "traceloop.span.kind")) or "").lower()
    if open_inference == "llm" or operation in _CALLS or _text(_at(said.llm, "request.type")) in _CALLS:
        return "call"
    untold = not operation and not loop and (not open_inference or open_inference == "unknown")
    if untold and _at(said.ai, "request.model"):
        return "call"
    if open_inference == "agent" or operation in _AGENTS or loop == "agent":
        return "agent"
    if operation in _TOOLS or loop == "tool":
        return "tool"
    return open_inference or operation or loop or "other"


def failure_of(
    message: str | None, events: Iterable[tuple[str, Mapping[str, Any]]], attributes: Mapping[str, Any]
) -> str:
    """Why a span that failed did so: its status, its last exception, or its error type."""
    thrown = [told for name, told in events if name == "exception"]
    last = nested(thrown[-1]) if thrown else {}
    told = nested({name: given for name, given in attributes.items() if name.startswith("error")})
    paths = ((last, "exception.message"), (last, "exception.type"), (told, "error.message"), (told, "error.type"))
    return message or next((text for text in (_text(_at(*path)) for path in paths) if text), "error")


def genai_call(raw: RawSpan, said: Attributes) -> tuple[Asked, Reply]:
    """The request and the reply of a call; no messages where its instrumentation kept them back. Raises FieldError naming the attribute."""
    ai, llm, where = said.ai, said.llm, raw.where
    asked, answer = _conversation(raw, said)
    if raw.dropped and (asked or answer):
        raise FieldError(
            where,
            f"span {raw.name!r} lost {raw.dropped} attributes or events to the limits of its SDK, so messages may be missing; raise "
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT and OTEL_SPAN_EVENT_COUNT_LIMIT",
        )
    if _at(said.told, "anthropic.content.truncated"):
        raise FieldError(where, f"span {raw.name!r} holds cut messages; raise the client's traces.max_content_bytes")
    request = _mapping(ai.get("request"))
    parameters = _opened(_at(llm, "invocation_parameters"), f"{where}.llm.invocation_parameters")
    sampling = picked({**llm, **_mapping(parameters), **request}) or {}
    count = _at(request, "choice.count")
    if isinstance(count, int) and count > 1:
        sampling["n"] = count
    reasons = _opened(_at(ai, "response.finish_reasons"), f"{where}.gen_ai.response.finish_reasons")
    reasons = reasons or llm.get("finish_reason") or _at(said.told, "anthropic.message.stop_reason")
    samples = _samples(answer, reasons, sampling.get("n"))
    for sample in samples:
        if sample.finish_reason == "tool_calls" and not any(m.get(name) for m in sample.messages for name in _SAID):
            raise FieldError(where, f"span {raw.name!r} says that a tool was called, and does not hold the call")
    cost = next((c for c in (_at(llm, "cost.total"), _at(said.told, "operation.cost")) if _is_number(c)), None)
    return (
        Asked(
            messages=asked,
            model=_text(request.get("model"))
            or _text(llm.get("model_name"))
            or _text(_mapping(parameters).get("model")),
            tools=_tools(ai, llm, parameters, where),
            sampling=sampling or None,
            tags={"provider": said.provider} if said.provider else {},
        ),
        Reply(
            samples=samples,
            response_id=_text(_at(ai, "response.id")) or _answers_id(_at(said.told, "output.value")),
            model=_text(_at(ai, "response.model")),
            usage=_usage(ai, llm),
            cost=cost,
            error=raw.error,
        ),
    )


def _conversation(raw: RawSpan, said: Attributes) -> tuple[list[_Message], list[_Choice]]:
    """What was asked and what was answered, from the first place that has it."""
    ai, llm = dict(said.ai), said.llm
    for name, attributes in raw.events:
        inside = _mapping(nested(attributes).get("gen_ai")) if name.startswith("gen_ai.") else {}
        if name == _DETAILS_EVENT:
            ai |= {key: inside[key] for key in ("input", "output", "system_instructions") if key in inside}
        elif name in _CONTENT_EVENTS and _CONTENT_EVENTS[name] in inside:
            ai[_CONTENT_EVENTS[name]] = inside[_CONTENT_EVENTS[name]]

    def asked(given: Any, name: str, role: str = "user") -> list[_Message]:
        return as_messages(given, role, f"{raw.where}.{name}")

    def answered(given: Any, name: str) -> list[_Choice]:
        if not isinstance(given, list):
            given = [] if given is None else [given]
        return [_choice(one, f"{raw.where}.{name}[{n}]") for n, one in enumerate(given)]

    def opened(given: Any, name: str) -> Any:
        return _opened(given, f"{raw.where}.{name}")

    given, produced = _at(ai, "input.messages"), _at(ai, "output.messages")
    if given is not None or produced is not None:
        name = "gen_ai.system_instructions"
        system = asked(_as_system(opened(ai.get("system_instructions"), name)), name, "system")
        name, given = "gen_ai.input.messages", opened(given, "gen_ai.input.messages")
        return system + asked(given, name), answered(opened(produced, name), "gen_ai.output.messages")
    for told, prefix, first, second in (
        (ai, "gen_ai", "prompt", "completion"),
        (llm, "llm", "input_messages", "output_messages"),
        (llm, "llm", "prompts", "completions"),
        (llm, "llm", "prompts", "choices"),
    ):
        given, produced = _spoken(told.get(first)), _spoken(told.get(second))
        if given is not None or produced is not None:
            return asked(given, f"{prefix}.{first}"), answered(produced, f"{prefix}.{second}")
    from_events = _from_events(raw)
    if any(from_events):
        return from_events
    produced = _at(said.told, "output.value")
    answer = as_messages(produced, "assistant", f"{raw.where}.output.value")
    return asked(_at(said.told, "input.value"), "input.value"), [(answer, None)] if answer else []


def _spoken(given: Any) -> Any:
    """An attribute that holds messages, by index or as JSON text; None of any other, such as a prompt's name."""
    if isinstance(given, list):
        return [_unwrapped(one) for one in given]
    if isinstance(given, dict):
        return given if {"role", "content", "messages", "message"} & given.keys() else None
    return _opened_if_json(given) if isinstance(given, str) and given else None


def _unwrapped(given: Any) -> Any:
    """One indexed message. OpenInference puts the text of a completion one level deeper, OpenLLMetry parts as JSON text."""
    if not isinstance(given, dict):
        return given
    for name in ("prompt", "completion"):
        inside = given.get(name)
        if isinstance(inside, dict) and "text" in inside:
            return inside["text"]
    content = given.get("content")
    if isinstance(content, str) and content.startswith('[{"type"'):
        return {**given, "content": _opened_if_json(content)}
    return given


def _choice(given: Any, where: str) -> _Choice:
    """One answer, and why it ended where it says so."""
    if not isinstance(given, dict):
        return as_messages(given, "assistant", where), None
    rest = {name: value for name, value in given.items() if name != "finish_reason"}
    return as_messages(rest, "assistant", where), _text(given.get("finish_reason"))


def _from_events(raw: RawSpan) -> tuple[list[_Message], list[_Choice]]:
    asked: list[_Message] = []
    answers: list[_Choice] = []
    for n, (name, attributes) in enumerate(raw.events):
        if name not in _ROLE_EVENTS and name != "gen_ai.choice":
            continue
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
            continue
        message = said.get("message", said)
        answer = as_messages(message if isinstance(message, dict) else {"content": message}, "assistant", where)
        answers.append((answer, _text(attributes.get("finish_reason"))))
    return asked, answers


def _samples(choices: list[_Choice], reasons: Any, asked_for: Any) -> list[Sample]:
    """Each choice of a request for several is an answer of its own; otherwise all of them are one answer, such as text and then a call."""
    ends = [_text(reason) for reason in (reasons if isinstance(reasons, list) else [reasons]) if reason is not None]
    choices = [choice for choice in choices if choice[0]]
    several = len(choices) > 1 and (
        asked_for == len(choices) or len(ends) == len(choices) or all(c[1] for c in choices)
    )
    if several and all(len(messages) == 1 and messages[0].get("role") == "assistant" for messages, _ in choices):
        told = [reason or (ends[n] if n < len(ends) else None) for n, (_, reason) in enumerate(choices)]
        return [Sample(messages=c[0], finish_reason=_finish(end)) for c, end in zip(choices, told, strict=True)]
    messages = [message for choice, _ in choices for message in choice]
    last = ends[0] if ends else next((reason for _, reason in reversed(choices) if reason), None)
    return [Sample(messages=messages, finish_reason=_finish(last))] if messages else []


def _answers_id(output: Any) -> str | None:
    """OpenInference keeps the provider's answer as it came, and its id there only."""
    body = _mapping(_opened_if_json(output)) if isinstance(output, str) else {}
    return _text(body.get("id")) if {"choices", "output", "content"} & body.keys() else None


def _finish(reason: str | None) -> str | None:
    return None if reason is None else _FINISH.get(reason, reason)


def _as_system(parts: Any) -> Any:
    """System instructions are parts, without a message around them."""
    return [{"role": "system", "parts": parts}] if isinstance(parts, list) and parts else parts


def _tools(ai: dict[str, Any], llm: dict[str, Any], parameters: Any, where: str) -> list[dict[str, Any]] | None:
    """What the model could call, from the first place that has it."""
    declared = _opened(_at(ai, "tool.definitions"), f"{where}.gen_ai.tool.definitions")
    if declared is None and isinstance(llm.get("tools"), list):
        declared = [
            _opened(_at(_mapping(tool), "tool.json_schema"), f"{where}.llm.tools[{n}]")
            for n, tool in enumerate(llm["tools"])
        ]
    for functions in (_at(llm, "request.functions"), _mapping(parameters).get("tools")):
        if declared is None and isinstance(functions, list):  # of OpenLLMetry the schema is JSON text
            declared = [
                {**one, "parameters": _opened(one["parameters"], f"{where}.llm.request.functions[{n}]")}
                if isinstance(one, dict) and isinstance(one.get("parameters"), str)
                else one
                for n, one in enumerate(functions)
            ]
    return as_tools(declared)


def _usage(ai: dict[str, Any], llm: dict[str, Any]) -> dict[str, Any] | None:
    counts = {name: given for name, given in _mapping(ai.get("usage")).items() if not isinstance(given, str)}
    if counts:
        return usage_of(counts)
    counted = _mapping(llm.get("token_count"))
    plain = {name: given.get("") if isinstance(given, dict) else given for name, given in counted.items()}
    return usage_of(
        {
            f"{name}_tokens" if name in ("prompt", "completion", "total") else name: given
            for name, given in plain.items()
            if _is_number(given)
        }
    )


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


def _opened(given: Any, where: str) -> Any:
    """Attributes hold what is no plain value as JSON text."""
    if isinstance(given, str) and given[:1] in ("[", "{"):
        return loads(given, where)
    return given


def _opened_if_json(text: str) -> Any:
    """Where an attribute may hold any text, what only looks like JSON is text."""
    try:
        return _opened(text, "$")
    except FieldError:
        return text


def _at(told: dict[str, Any], path: str) -> Any:
    here: Any = told
    for part in path.split("."):
        if not isinstance(here, dict):
            return None
        here = here.get(part)
    return here.get("", here) if isinstance(here, dict) else here


def _mapping(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}


def _is_number(given: Any) -> TypeGuard[int | float]:
    return isinstance(given, int | float) and not isinstance(given, bool)


def _text(given: Any) -> str | None:
    return str(given) if isinstance(given, str | int) and not isinstance(given, bool) and given != "" else None
