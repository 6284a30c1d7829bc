"""OpenAI Agents SDK: a tracing processor beside those that are there.

    from treadle.integrations import openai_agents
    openai_agents.instrument(recorder)

A trace is the episode, each call of a model a step, an agent's name the slot; what an agent used as a tool does has the interaction that
called the tool as its parent. Together with `treadle.instrument` the HTTP hook records the calls it sees, and this only says where they
belong; other models (a websocket, one in this process) are recorded from their spans. Where tracing is off this hears nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.tracing import Span, Trace, TracingProcessor, add_trace_processor, get_current_span
from agents.tracing.span_data import AgentSpanData, FunctionSpanData, GenerationSpanData, ResponseSpanData

from treadle.integrations._formats import Asked, Reply, Sample, format_of, function_tool, picked, total_usage
from treadle.integrations._publish import Place, publish, recorded_lately, trouble
from treadle.integrations._structure import SOURCES, Node, Open, id_of, slot_of

if TYPE_CHECKING:
    from treadle.recorder import Recorder

__all__ = ["Processor", "instrument", "uninstrument"]


class Processor(TracingProcessor):
    """Hears of traces and spans. Use it by hand to take the place of the others: `agents.set_trace_processors([Processor(recorder)])`."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.recorder = recorder
        self._traces: Open[str, Node] = Open()
        self._spans: Open[str, Node] = Open()
        SOURCES.append(self.current)

    def current(self) -> Node | None:
        """The node of the span that is current in this context."""
        if self.recorder is None:
            return None
        span = get_current_span()
        return None if span is None else self._spans.get(span.span_id)

    def on_trace_start(self, trace: Trace) -> None:
        """An agent's run begins, or several of them."""
        if self.recorder is not None:
            group = getattr(trace, "group_id", None)
            tags = {"workflow": trace.name, **({"group_id": str(group)} if group else {})}
            self._traces.put(trace.trace_id, Node(episode_id=id_of(trace.trace_id), tags=tags))

    def on_trace_end(self, trace: Trace) -> None:
        """It is over."""
        self._traces.take(trace.trace_id)

    def on_span_start(self, span: Span[Any]) -> None:
        """An agent, a tool, a call of a model or anything else begins."""
        if self.recorder is None:
            return
        data = span.span_data
        self._spans.put(
            span.span_id,
            Node(
                self._spans.get(span.parent_id) or self._traces.get(span.trace_id),
                slot=slot_of(data.name) if isinstance(data, AgentSpanData) else None,
                tool=isinstance(data, FunctionSpanData),
                model=isinstance(data, GenerationSpanData | ResponseSpanData),
            ),
        )

    def on_span_end(self, span: Span[Any]) -> None:
        """It is over. A call of a model that nobody else saw is recorded."""
        node, recorder = self._spans.take(span.span_id), self.recorder
        if node is None:
            return
        node.close()
        if not node.model or node.seen or recorder is None:
            return
        try:
            asked, reply = _call(span.span_data)
            if span.error is not None and reply.error is None:
                detail = (span.error.get("data") or {}).get("error")
                reply.error = ": ".join(str(part) for part in (span.error.get("message"), detail) if part)
            if not (asked.messages or reply.samples) or recorded_lately(reply.response_id):
                return  # tracing was told to keep the data out
            place = Place.of(recorder, node)
            if not place.explicit:
                started, ended = span.started_at, span.ended_at
                publish(recorder, place, asked, reply, started_at=started or ended or "", ended_at=ended)
        except Exception as err:
            trouble("a span of the Agents SDK could not be recorded", f"{type(err).__name__}: {err}")

    def shutdown(self) -> None:
        """Forget what is open."""
        self._traces.clear()
        self._spans.clear()

    def force_flush(self) -> None:
        """Nothing waits here: the recorder has its own flush."""


_processor: Processor | None = None


def instrument(recorder: Recorder) -> Processor:
    """Hear of every trace in this process, beside the processors that are there (OpenAI's own uploads traces unless it is switched off).

    Calling it again changes the recorder.
    """
    global _processor
    if _processor is None:
        _processor = Processor()
        add_trace_processor(_processor)
    _processor.recorder = recorder
    return _processor


def uninstrument() -> None:
    """Be deaf again. The SDK has no way to take one processor out; without a recorder it hears nothing."""
    if _processor is not None:
        _processor.recorder = None


def _call(data: GenerationSpanData | ResponseSpanData) -> tuple[Asked, Reply]:
    responses = format_of("/responses")
    if isinstance(data, ResponseSpanData):
        body = {} if data.response is None else data.response.model_dump(mode="json", exclude_unset=True)
        given = data.input if isinstance(data.input, str) else [_plain(item) for item in data.input or []]
        asked = responses.asked({**body, "input": given}, "")
        reply = responses.answered(body) if body else Reply()
        return asked or Asked(messages=[]), reply
    config = dict(data.model_config or {})
    asked = Asked(
        messages=[dict(message) for message in data.input or ()],
        model=data.model,
        tools=[function_tool(tool) for tool in config.get("tools") or ()] or None,
        sampling=picked(config),
    )
    output = [dict(message) for message in data.output or ()]
    if len(output) == 1 and output[0].get("object") == "response":
        reply = responses.answered(output[0])
        # what the SDK itself fills in where the provider gave none
        reply.response_id = None if reply.response_id == "__fake_id__" else reply.response_id
        reply.model = data.model
    else:
        reply = Reply(samples=[Sample(messages=output)] if output else [])
    reply.usage = total_usage(dict(data.usage or {})) or reply.usage
    return asked, reply


def _plain(item: Any) -> Any:
    dump = getattr(item, "model_dump", None)
    return item if dump is None else dump(mode="json", exclude_unset=True)
