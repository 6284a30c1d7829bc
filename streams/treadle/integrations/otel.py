"""OpenTelemetry: GenAI spans in, and recorded interactions out as spans.

    from treadle.integrations import otel
    otel.instrument(recorder)                      # listen to the global tracer provider
    provider.add_span_processor(otel.TreadleSpanProcessor(recorder))
    otel.export_spans(recorder)                    # the other way: interactions become spans of the global tracer provider

In: the finished spans of whatever instruments the agent's libraries become interactions, by the present and the older GenAI conventions,
OpenLLMetry's and OpenInference's. A trace is the episode, a span's id the interaction's, the nearest agent's name the slot; what runs in a
tool's span has the interaction that called the tool as its parent. Together with `treadle.instrument` the HTTP hook records the calls it
sees, and this only says where they belong.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id
from treadle_schemas.errors import FieldError
from treadle_schemas.ids import Handle
from treadle_schemas.moments import from_micros

from treadle.integrations._publish import Place, publish, recorded_lately, trouble
from treadle.integrations._span_export import OWN_SCOPE, export_spans, goes_nowhere, has_span
from treadle.integrations._spans import (
    FIRST_TOKEN_EVENTS,
    Attributes,
    RawSpan,
    failure_of,
    genai_call,
    kind_of,
    tags_of,
)
from treadle.integrations._structure import SOURCES, Node, Open, id_of, slot_of

if TYPE_CHECKING:
    from treadle.recorder import Recorder

__all__ = ["TreadleSpanProcessor", "export_spans", "instrument", "uninstrument"]

_PREFIXES: Final = ("gen_ai.", "llm.", "openinference.", "traceloop.", "agent.")
_NO_MESSAGES: Final = "a span of a model's call holds no messages, and was not recorded"
_NO_ANSWER: Final = "a span of a model's call holds no answer, and was not recorded"


class _SpanNode(Node):
    """Of a span."""

    __slots__ = ()

    def recorded(self, handle: Handle) -> None:
        """An interaction under this node is being recorded."""
        super().recorded(handle)
        if self.model:
            has_span(handle.interaction_id)


class _Known:
    """An open span: what it is, as far as its attributes say so yet, and where it stands."""

    __slots__ = ("kind", "node", "span")

    def __init__(self, span: ReadableSpan, kind: str, node: Node) -> None:
        self.span = span
        self.kind = kind
        self.node = node


class TreadleSpanProcessor(SpanProcessor):
    """Hears of every span of the providers it is added to. It changes no span and raises nothing: what goes wrong is logged."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        """Without a recorder it is deaf."""
        self.recorder = recorder
        self.exported = True
        """Whether the host sees the spans too: its provider's, not one made for listening only."""
        self._open: Open[int, _Known] = Open()
        SOURCES.append(self.current)

    def current(self) -> Node | None:
        """The node of the span that is current in this context."""
        if self.recorder is None:
            return None
        known = self._known(trace.get_current_span().get_span_context().span_id)
        return None if known is None else known.node

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Something begins."""
        context = span.get_span_context()
        if self.recorder is None or context is None or not self.hears(span):
            return
        try:
            self._open.put(context.span_id, self._placed(span))
            if not self.exported:
                goes_nowhere(context.span_id, span.parent)
        except Exception as err:
            trouble("a span could not be looked at", f"{type(err).__name__}: {err}")

    def on_end(self, span: ReadableSpan) -> None:
        """It is over. A call of a model that nobody else saw is recorded."""
        context = span.get_span_context()
        recorder = self.recorder
        if context is None or not self.hears(span):
            return
        known = self._open.take(context.span_id)
        if known is not None:
            known.node.close()
        if recorder is None or not _is_of_agents(span):
            return
        try:
            said = Attributes.of(_plain(span.attributes))
            if kind_of(said) != "call" or not _claimed(recorder, context.span_id):
                return
            # a span that began before this listened has no place of its own
            node = self._placed(span).node if known is None else known.node
            if not node.seen:
                _record(recorder, node, span, said, self.exported)
        except Exception as err:
            trouble("a span of a model's call could not be recorded", f"{type(err).__name__}: {err}")

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until Kafka has what was recorded; whether it has."""
        try:
            return self.recorder is None or self.recorder.flush(timeout_millis / 1000) == 0
        except Exception as err:
            trouble("the recorder could not be flushed", err)
            return False

    def shutdown(self) -> None:
        """Forget what is open."""
        self._open.clear()

    def hears(self, span: ReadableSpan) -> bool:
        """Whether a span is one of those that this listens to."""
        return _scope_of(span) != OWN_SCOPE

    def episode_of(self, span: ReadableSpan) -> str | None:
        """The episode of a span that has no other around it: its trace."""
        context = span.get_span_context()
        return None if context is None else id_of(format_trace_id(context.trace_id))

    def _placed(self, span: ReadableSpan) -> _Known:
        parent = None if span.parent is None else self._known(span.parent.span_id)
        said = Attributes.of(_plain(span.attributes) if _is_of_agents(span) else {})
        kind = kind_of(said)
        agent = said.agent or (said.name or span.name if kind == "agent" else None)
        node = (_SpanNode if self.exported else Node)(
            None if parent is None else parent.node,
            episode_id=self.episode_of(span),
            slot=slot_of(agent),
            tags=tags_of(said),
            tool=kind == "tool",
            model=kind == "call",
        )
        if node.context is None:
            node.context = copy_context()  # it may say later that it is a call
        return _Known(span, kind, node)

    def _known(self, span_id: int) -> _Known | None:
        """An open span. Some instrumentations say after the start what it is."""
        known = self._open.get(span_id)
        if known is not None and known.kind == "other" and _is_of_agents(known.span):
            known = self._open.put(span_id, self._placed(known.span))
        return known


_processors: list[tuple[Any, TreadleSpanProcessor]] = []
_recorded: Open[tuple[int, int], bool] = Open()


def instrument(recorder: Recorder, tracer_provider: Any = None) -> TreadleSpanProcessor:
    """Hear of every span of `tracer_provider`, by default the global one. Calling it again changes the recorder.

    Raises TypeError where there is no provider of the SDK yet: with OpenTelemetry's own default no span is ever made.
    """
    provider = tracer_provider or trace.get_tracer_provider()
    for known, processor in _processors:
        if known is provider:
            processor.recorder = recorder
            return processor
    add = getattr(provider, "add_span_processor", None)
    if add is None:
        raise TypeError(
            f"{type(provider).__name__} takes no span processor; call opentelemetry.trace.set_tracer_provider(TracerProvider()) first, "
            "or pass tracer_provider="
        )
    processor = TreadleSpanProcessor(recorder)
    add(processor)
    _processors.append((provider, processor))
    return processor


def uninstrument() -> None:
    """Be deaf again. The SDK has no way to take a processor out; without a recorder it hears nothing."""
    for _, processor in _processors:
        processor.recorder = None


def _claimed(recorder: Recorder, span_id: int) -> bool:
    """Whether this is the first time that this recorder hears of the end of a span: a process may have several processors."""
    if _recorded.get((id(recorder), span_id)):
        return False
    return _recorded.put((id(recorder), span_id), True)


def _record(recorder: Recorder, node: Node, span: ReadableSpan, said: Attributes, exported: bool) -> None:
    raw = _raw(span)
    try:
        asked, reply = genai_call(raw, said)
    except FieldError as err:
        trouble("a span of a model's call was not recorded", err)
        return
    if recorded_lately(reply.response_id):
        return
    if not (asked.messages or reply.samples):
        # its instrumentation was not told to capture content, or does so only when the request is answered
        trouble(_NO_MESSAGES, reply.error or span.name)
        return
    if not reply.samples and reply.error is None:
        # of a stream some instrumentations end one span when it begins, and make another when it is over
        trouble(_NO_ANSWER, span.name)
        return
    place = Place.of(recorder, node, raw.span_id)
    if place.explicit:
        return
    if said.subject:
        place.fields.setdefault("subject", said.subject)
    place.tags = {**tags_of(said), **place.tags}
    for index in range(max(1, len(reply.samples)) if exported else 0):
        has_span(place.id_of(index))
    publish(
        recorder,
        place,
        asked,
        reply,
        started_at=raw.started_at,
        ended_at=raw.ended_at,
        first_token_ms=raw.first_token_ms or said.first_token_ms,
    )


def _raw(span: ReadableSpan) -> RawSpan:
    """A span of the SDK in plain values."""
    context = span.get_span_context()
    started, ended = span.start_time or 0, span.end_time or 0
    attributes = _plain(span.attributes)
    events = [(event.name, _plain(event.attributes)) for event in span.events]
    first = next((event.timestamp for event in span.events if event.name in FIRST_TOKEN_EVENTS), None)
    failed = span.status.status_code is StatusCode.ERROR
    return RawSpan(
        span_id=format_span_id(context.span_id) if context else "",
        trace_id=format_trace_id(context.trace_id) if context else "",
        parent_id=None if span.parent is None else format_span_id(span.parent.span_id),
        name=span.name,
        started_at=from_micros(started // 1000),
        ended_at=from_micros(max(started, ended) // 1000),
        attributes=attributes,
        where="$.attributes",
        error=failure_of(span.status.description, events, attributes) if failed else None,
        events=events,
        dropped=span.dropped_attributes + span.dropped_events,
        first_token_ms=None if first is None else max(0.0, (first - started) / 1_000_000),
    )


def _scope_of(span: ReadableSpan) -> str:
    scope = span.instrumentation_scope
    return "" if scope is None else scope.name


def _is_of_agents(span: ReadableSpan) -> bool:
    return any(name.startswith(_PREFIXES) for name in span.attributes or ())


def _plain(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: _plain_value(given) for name, given in (attributes or {}).items()}


def _plain_value(given: Any) -> Any:
    """As OTLP's JSON has it."""
    if isinstance(given, tuple | list):
        return [_plain_value(part) for part in given]
    if isinstance(given, Mapping):
        return _plain(given)
    return base64.b64encode(given).decode() if isinstance(given, bytes) else given
