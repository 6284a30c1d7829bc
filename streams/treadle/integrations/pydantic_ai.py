"""Pydantic AI: a span processor under its own instrumentation.

    from treadle.integrations import pydantic_ai
    pydantic_ai.instrument(recorder)

A run of an agent is the episode, each request to a model a step, the agent's name the slot; what an agent does that a tool started has
the interaction that called the tool as its parent. Together with `treadle.instrument` the HTTP hook records the calls it sees, and this
only says where they belong; other models (TestModel, FunctionModel, gRPC, botocore) are recorded from their spans.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.trace import StatusCode
from pydantic_ai import Agent
from pydantic_ai.models.instrumented import InstrumentationSettings

from treadle.integrations._formats import genai_call
from treadle.integrations._publish import Place, publish, recorded_lately, trouble
from treadle.integrations._structure import SOURCES, Node, Open, id_of, slot_of

if TYPE_CHECKING:
    from treadle.recorder import Recorder

__all__ = ["Processor", "instrument", "uninstrument"]

_SCOPE: Final = "pydantic-ai"


class Processor(SpanProcessor):
    """Hears of the spans of Pydantic AI, and of no others."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.recorder = recorder
        self._spans: Open[int, Node] = Open()
        SOURCES.append(self.current)

    def current(self) -> Node | None:
        """The node of the span that is current in this context."""
        return None if self.recorder is None else self._spans.get(trace.get_current_span().get_span_context().span_id)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """A run, a request or a tool begins."""
        context = span.get_span_context()
        if self.recorder is None or context is None or not _is_theirs(span):
            return
        said = span.attributes or {}
        outer = self._spans.get(span.parent.span_id) if span.parent is not None else None
        conversation = said.get("gen_ai.conversation.id")
        self._spans.put(
            context.span_id,
            Node(
                outer,
                episode_id=id_of(said.get("gen_ai.agent.call.id")),
                slot=slot_of(said.get("gen_ai.agent.name")),
                tags={"conversation_id": str(conversation)} if conversation else None,
                tool=said.get("gen_ai.operation.name") == "execute_tool",
                model=said.get("gen_ai.operation.name") == "chat",
            ),
        )

    def on_end(self, span: ReadableSpan) -> None:
        """It is over. A request that nobody else saw is recorded."""
        context = span.get_span_context()
        node = None if context is None else self._spans.take(context.span_id)
        recorder = self.recorder
        if node is None:
            return
        node.close()
        if not node.model or node.seen or recorder is None:
            return
        try:
            asked, reply = genai_call(span.attributes or {})
            if span.status.status_code is StatusCode.ERROR:
                reply.error = span.status.description or "the request failed"
            if recorded_lately(reply.response_id):
                return
            if not (asked.messages or reply.samples):
                # content is switched off, or the request failed: Pydantic AI writes messages only when it is answered
                trouble("a span of Pydantic AI holds no messages, and was not recorded", reply.error or span.name)
                return
            place = Place.of(recorder, node)
            if not place.explicit:
                publish(
                    recorder,
                    place,
                    asked,
                    reply,
                    started_at=_moment(span.start_time),
                    ended_at=_moment(span.end_time),
                )
        except Exception as err:
            trouble("a span of Pydantic AI could not be recorded", f"{type(err).__name__}: {err}")


_processor: Processor | None = None


def instrument(recorder: Recorder) -> Processor:
    """Hear of every agent in this process. Calling it again changes the recorder.

    Where Pydantic AI is instrumented already (by logfire, for example), this listens there as well. Otherwise it is instrumented with a
    tracer of its own, which exports nothing. Agents with an `Instrumentation` of their own are not heard.
    """
    global _processor
    if _processor is None:
        _processor = Processor()
        present: Any = getattr(Agent, "_instrument_default", None)
        listeners = getattr(getattr(present, "tracer", None), "span_processor", None)
        if listeners is not None:
            listeners.add_span_processor(_processor)
        else:
            provider = TracerProvider(shutdown_on_exit=False)
            provider.add_span_processor(_processor)
            Agent.instrument_all(InstrumentationSettings(tracer_provider=provider))
    _processor.recorder = recorder
    return _processor


def uninstrument() -> None:
    """Be deaf again."""
    if _processor is not None:
        _processor.recorder = None


def _is_theirs(span: ReadableSpan) -> bool:
    scope = span.instrumentation_scope
    return scope is not None and scope.name == _SCOPE


def _moment(nanoseconds: int | None) -> str:
    seconds, rest = divmod(nanoseconds or 0, 1_000_000_000)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC).replace(microsecond=rest // 1000)
    return moment.isoformat(timespec="microseconds")
