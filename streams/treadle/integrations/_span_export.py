"""Recorded interactions as spans of the host's tracer provider."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from treadle_schemas.ids import Handle
from treadle_schemas.moments import to_micros

from treadle.integrations._formats._genai_out import span_of
from treadle.integrations._publish import trouble
from treadle.integrations._spans import Attributes, kind_of
from treadle.integrations._structure import Open

if TYPE_CHECKING:
    from treadle.recorder import Recorder

__all__ = ["OWN_SCOPE", "export_spans", "goes_nowhere", "has_span"]

OWN_SCOPE: Final = "treadle"
"""The instrumentation scope of spans that treadle itself makes."""
_CONTENT: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_WITH_CONTENT: Final = frozenset({"true", "span_only", "span_and_event"})

_have_spans: Open[str, bool] = Open()
_go_nowhere: Open[int, trace.SpanContext] = Open()


def has_span(interaction_id: str) -> None:
    """The call has a span already: it came from one, or was made under one that the host's own instrumentation ends."""
    _have_spans.put(interaction_id, True)


def goes_nowhere(span_id: int, parent: trace.SpanContext | None) -> None:
    """A span of a provider that exports nothing: no span of the host's can have it as its parent."""
    _go_nowhere.put(span_id, parent or trace.INVALID_SPAN_CONTEXT)


def export_spans(recorder: Recorder, tracer_provider: Any = None, *, content: bool | None = None) -> Callable[[], None]:
    """From now on each interaction that `recorder` accepts is also a span, under the span that is current when it is recorded.

    Spans go to `tracer_provider`, by default the global one, with what the workspace's redaction left. Messages and tools are in them
    only with `content`; None asks the environment (OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT: true, SPAN_ONLY or
    SPAN_AND_EVENT). Calls that have a span of their own make no second one. Returns a function that ends it.
    """
    if content is None:
        content = os.environ.get(_CONTENT, "").strip().lower() in _WITH_CONTENT
    tracer = trace.get_tracer(OWN_SCOPE, tracer_provider=tracer_provider)
    listeners, with_content, workspace = recorder._pipeline.listeners, content, recorder.workspace

    def tell(value: dict[str, Any]) -> None:
        try:
            _export(tracer, workspace, value, with_content)
        except Exception as err:
            trouble("an interaction could not be exported as a span", f"{type(err).__name__}: {err}")

    def stop() -> None:
        if tell in listeners:
            listeners.remove(tell)

    listeners.append(tell)
    return stop


def _export(tracer: trace.Tracer, workspace: str, value: dict[str, Any], content: bool) -> None:
    interaction_id = value["interaction_id"]
    parent = _parent()
    if _have_spans.get(interaction_id) or _is_call(parent):
        return
    handle = Handle(workspace, value.get("episode_id") or interaction_id, interaction_id)
    name, attributes = span_of(value, str(handle), content=content)
    started = to_micros(value["started_at"], "$.started_at") * 1000
    span = tracer.start_span(
        name, trace.set_span_in_context(parent), kind=SpanKind.CLIENT, attributes=attributes, start_time=started
    )
    if value.get("status") == "error":
        span.set_status(Status(StatusCode.ERROR, value.get("error")))
    span.end(max(started, to_micros(value["ended_at"], "$.ended_at") * 1000))


def _parent() -> trace.Span:
    """The nearest span around this that the host's backend will know."""
    span = trace.get_current_span()
    context: trace.SpanContext | None = span.get_span_context()
    while context is not None and (outer := _go_nowhere.get(context.span_id)) is not None:
        span, context = trace.NonRecordingSpan(outer), outer
    return span


def _is_call(span: trace.Span) -> bool:
    """Whether it is the span of a call of a model, which is the one that is being recorded."""
    attributes = getattr(span, "attributes", None) or {}
    return kind_of(Attributes.of(attributes)) == "call"
