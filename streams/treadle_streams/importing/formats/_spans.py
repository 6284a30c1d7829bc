"""OpenTelemetry spans as items of the import. What a span's attributes say is read by treadle.integrations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from treadle.integrations._spans import Attributes, RawSpan, call_of, kind_of

from treadle_streams.importing.formats._items import Call, Item, Passed, Span, Trace

__all__ = ["items_of"]


def items_of(raw: RawSpan) -> Iterator[Item]:
    """What a span is. Raises FieldError."""
    said = Attributes.of(raw.attributes)
    kind = kind_of(said, raw.kind)
    session, subject = said.session, said.subject
    common: dict[str, Any] = {
        "trace_id": raw.trace_id,
        "parent_id": raw.parent_id,
        "name": said.name or raw.name,
        "session": session,
        "subject": subject,
        "ended_at": raw.ended_at,
    }
    if raw.service is not None or session is not None or subject is not None:
        yield Trace(id=raw.trace_id, name=raw.service or "", session=session, subject=subject)
    if kind == "call":
        yield from _calls(raw, said, common)
        return
    yield Span(id=raw.span_id, **common, agent=kind == "agent")
    yield Passed(f"span {kind}")


def _calls(raw: RawSpan, said: Attributes, common: dict[str, Any]) -> Iterator[Call]:
    """One of a request for one answer; of a request for several each is an interaction."""
    asked, reply = call_of(raw, said)
    for index, sample in enumerate(reply.samples or [None]):
        suffix = f":{index}" if index else ""
        answer = [] if sample is None else sample.messages
        yield Call(
            id=f"{raw.span_id}{suffix}",
            **common,
            messages=asked.messages + answer,
            response=len(answer),
            started_at=raw.started_at,
            fields={
                "model": reply.model or asked.model,
                "tools": asked.tools,
                "status": "error" if reply.error is not None else None,
                "error": reply.error,
                "sampling": asked.sampling,
                "usage": None if index else reply.usage,
                "finish_reason": None if sample is None else sample.finish_reason,
                "cost": None if index else reply.cost,
                "first_token_ms": raw.first_token_ms or said.first_token_ms,
                "references": [f"response:{reply.response_id}{suffix}"] if reply.response_id else [],
                "tags": asked.tags or None,
            },
        )
