"""Finished OpenTelemetry spans of agents as interactions. Pure: plain values in, the arguments of `Recorder.record` out.

    calls_of(spans: Iterable[RawSpan | FieldError]) -> Calls
        .calls    list[dict[str, Any]]  each the keyword arguments of Recorder.record
        .refused  list[FieldError]      spans that are calls and cannot be recorded, and which attribute is to blame
        .passed   Counter[str]          spans that are no calls, by what they are (agent, tool, ...)

`treadle_streams.importing.formats.otlp.spans_of(document)` gives the spans of an OTLP request: `document` is its JSON decoded, or
`google.protobuf.json_format.MessageToDict(ExportTraceServiceRequest)`.

A trace is the episode and a span's id the interaction's: a span that comes twice, or also by another way, is one interaction. The nearest
agent's name is the slot. What a tool's span holds has the interaction that called the tool as its parent. Of calls inside calls (a
framework's span around its client's) the innermost counts. Spans are placed by those that come with them: in a batch without its
agent's span a call has the agent's name only if its own attributes say so.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from treadle_schemas.errors import FieldError
from treadle_schemas.moments import to_micros

from treadle.integrations._formats import Asked, Reply
from treadle.integrations._formats._genai import (
    FIRST_TOKEN_EVENTS,
    Attributes,
    RawSpan,
    failure_of,
    genai_call,
    kind_of,
    nested,
)
from treadle.integrations._structure import id_of, slot_of

__all__ = [
    "FIRST_TOKEN_EVENTS",
    "Attributes",
    "Calls",
    "RawSpan",
    "call_of",
    "calls_of",
    "failure_of",
    "genai_call",
    "kind_of",
    "nested",
    "tags_of",
]

MAX_ANCESTORS: Final = 1000
"""Spans above a call that are looked at. A damaged batch may hold a loop."""
NO_MESSAGES: Final = "holds no messages: its exporter did not capture them"


@dataclass
class Calls:
    """What a batch of spans amounts to."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    refused: list[FieldError] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Span:
    raw: RawSpan
    said: Attributes
    kind: str


_Known = dict[tuple[str, str], _Span]
"""By trace and span id."""
_Read = tuple[_Span, Asked, Reply]


def calls_of(spans: Iterable[RawSpan | FieldError]) -> Calls:
    """The interactions of a batch, in its order. Raises nothing: what cannot be read is refused."""
    found = Calls()
    known: _Known = {}
    for raw in spans:
        if isinstance(raw, FieldError):
            found.refused.append(raw)
            continue
        said = Attributes.of(raw.attributes)
        known[raw.trace_id, raw.span_id] = _Span(raw, said, kind_of(said, raw.kind))
    read: list[_Read] = []
    for span in known.values():
        if span.kind != "call":
            found.passed[span.kind] += 1
            continue
        try:
            asked, reply = call_of(span.raw, span.said)
        except FieldError as err:
            found.refused.append(err)
            continue
        if reply.samples or reply.error is not None:
            read.append((span, asked, reply))
        else:
            # of a stream some instrumentations end one span when it begins, and make another when it is over
            found.passed["call without an answer"] += 1
    outer = {
        (above.raw.trace_id, above.raw.span_id)
        for span, _, _ in read
        for above in _within_one_call(span, known)
        if above.kind == "call"
    }
    callers = _Callers(read, known)
    for span, asked, reply in read:
        if (span.raw.trace_id, span.raw.span_id) in outer:
            found.passed["call around a call"] += 1
        else:
            found.calls += _recorded(span, asked, reply, known, callers)
    return found


def call_of(raw: RawSpan, said: Attributes) -> tuple[Asked, Reply]:
    """The request and the reply of a span that is a call. Raises FieldError, also where it holds no messages."""
    asked, reply = genai_call(raw, said)
    if not asked.messages and not reply.samples:
        raise FieldError(raw.where, f"span {raw.name!r} {NO_MESSAGES}")
    return asked, reply


def tags_of(said: Attributes) -> dict[str, str]:
    """What a span says of the work as a whole."""
    return {"conversation_id": said.session} if said.session else {}


def _recorded(span: _Span, asked: Asked, reply: Reply, known: _Known, callers: _Callers) -> Iterator[dict[str, Any]]:
    raw, above = span.raw, list(_above(span, known))
    agent = span.said.agent or next((one.said.name or one.raw.name for one in above if one.kind == "agent"), None)
    tool = next((one for one in above if one.kind == "tool"), None)
    around = [span, *above]
    session = next((tags for one in around if (tags := tags_of(one.said))), {})
    shared: dict[str, Any] = {
        "episode_id": id_of(raw.trace_id),
        "agent": raw.service,
        "slot": slot_of(agent),
        "parent_id": None if tool is None else callers.of(tool),
        "subject": next((one.said.subject for one in around if one.said.subject), None),
        "tags": {**session, **asked.tags} or None,
        "model": reply.model or asked.model,
        "tools": asked.tools,
        "sampling": asked.sampling,
        "status": "error" if reply.error is not None else None,
        "error": reply.error,
        "started_at": raw.started_at,
        "ended_at": raw.ended_at,
        "first_token_ms": raw.first_token_ms or span.said.first_token_ms,
    }
    for index, sample in enumerate(reply.samples or [None]):
        suffix = f":{index}" if index else ""
        answer = [] if sample is None else sample.messages
        reference = id_of(f"response:{reply.response_id}{suffix}") if reply.response_id else None
        said = {
            **shared,
            "interaction_id": f"{raw.span_id}{suffix}",
            "messages": [*asked.messages, *answer],
            "response": list(range(len(asked.messages), len(asked.messages) + len(answer))),
            "finish_reason": None if sample is None else sample.finish_reason,
            "usage": None if index else reply.usage,
            "cost": None if index else reply.cost,
            "references": [reference] if reference else None,
        }
        yield {name: given for name, given in said.items() if given is not None}


def _above(span: _Span, known: _Known) -> Iterator[_Span]:
    """The spans that a span happened in, the nearest first."""
    seen = {span.raw.span_id}
    here: _Span | None = span
    while here is not None and here.raw.parent_id is not None and len(seen) < MAX_ANCESTORS:
        here = known.get((here.raw.trace_id, here.raw.parent_id))
        if here is None or here.raw.span_id in seen:
            return
        seen.add(here.raw.span_id)
        yield here


def _within_one_call(span: _Span, known: _Known) -> Iterator[_Span]:
    """Those above a call up to the tool or the agent that made it."""
    for above in _above(span, known):
        if above.kind in ("tool", "agent"):
            return
        yield above


class _Callers:
    """Which interaction called a tool: by the call's id, else the latest before it of the same agent."""

    def __init__(self, read: list[_Read], known: _Known) -> None:
        self._known = known
        self._by_call: dict[tuple[str, str], str] = {}
        self._ended: dict[tuple[str, str | None], list[tuple[int, str]]] = {}
        for span, _, reply in read:
            raw = span.raw
            for call in (c for s in reply.samples for m in s.messages for c in m.get("tool_calls") or ()):
                if isinstance(call, dict) and isinstance(call.get("id"), str):
                    self._by_call[raw.trace_id, call["id"]] = raw.span_id
            ended = (to_micros(raw.ended_at, raw.where), raw.span_id)
            self._ended.setdefault(self._scope(span), []).append(ended)
        for calls in self._ended.values():
            calls.sort()

    def of(self, tool: _Span) -> str | None:
        """Of a tool's span."""
        wanted = tool.said.tool_call_id
        if wanted is not None and (tool.raw.trace_id, wanted) in self._by_call:
            return self._by_call[tool.raw.trace_id, wanted]
        calls = self._ended.get(self._scope(tool), [])
        before = bisect.bisect_right(calls, to_micros(tool.raw.started_at, tool.raw.where), key=lambda call: call[0])
        return calls[before - 1][1] if before else None

    def _scope(self, span: _Span) -> tuple[str, str | None]:
        """The nearest agent or tool that a span happened in."""
        around = (above.raw.span_id for above in _above(span, self._known) if above.kind in ("tool", "agent"))
        return span.raw.trace_id, next(around, None)
