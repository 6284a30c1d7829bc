"""Pydantic AI: a span processor under its own instrumentation.

    from treadle.integrations import pydantic_ai
    pydantic_ai.instrument(recorder)

A run of an agent is the episode, each request to a model a step, the agent's name the slot; what an agent does that a tool started has
the interaction that called the tool as its parent. Together with `treadle.instrument` the HTTP hook records the calls it sees, and this
only says where they belong; other models (TestModel, FunctionModel, gRPC, botocore) are recorded from their spans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from pydantic_ai import Agent
from pydantic_ai.models.instrumented import InstrumentationSettings

from treadle.integrations._structure import id_of
from treadle.integrations.otel import TreadleSpanProcessor

if TYPE_CHECKING:
    from treadle.recorder import Recorder

__all__ = ["Processor", "instrument", "uninstrument"]

_SCOPE: Final = "pydantic-ai"


class Processor(TreadleSpanProcessor):
    """Hears of the spans of Pydantic AI, and of no others."""

    def hears(self, span: ReadableSpan) -> bool:
        """Whether Pydantic AI made it."""
        scope = span.instrumentation_scope
        return scope is not None and scope.name == _SCOPE

    def episode_of(self, span: ReadableSpan) -> str | None:
        """The run of the agent."""
        return id_of((span.attributes or {}).get("gen_ai.agent.call.id"))


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
            _processor.exported = False
            Agent.instrument_all(InstrumentationSettings(tracer_provider=provider))
    _processor.recorder = recorder
    return _processor


def uninstrument() -> None:
    """Be deaf again."""
    if _processor is not None:
        _processor.recorder = None
