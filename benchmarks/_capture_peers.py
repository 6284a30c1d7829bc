"""Ways to record one model call, each through the public API of its library and with that library's own defaults.

A peer is made once a process, since these libraries patch and keep global state. `record` takes one event and a tag that is unique and
can be found again at the sink; `flush` waits until what was recorded has left, as far as the library can tell.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

Event = dict[str, Any]


class Peer(NamedTuple):
    """One library, ready to record."""

    record: Callable[[Event, str], object]
    flush: Callable[[float], object]
    stats: Callable[[], dict[str, int]] = dict


def make(name: str, address: str, workspace: str) -> Peer:
    """`address` is the HTTP sink's URL, for treadle Kafka's bootstrap servers. Raises ImportError where the library is missing."""
    return _MAKERS[name](address, workspace)


def _orjson(_address: str, _workspace: str) -> Peer:
    return Peer(lambda event, tag: orjson.dumps({**event, "interaction_id": tag}), lambda _timeout_s: None)


def _treadle(address: str, workspace: str, **mode: Any) -> Peer:
    import treadle

    recorder = treadle.Recorder(workspace, bootstrap_servers=address, agent="desk", **mode)

    def record(event: Event, tag: str) -> None:
        recorder.record(
            messages=event["messages"],
            model=event["model"],
            task_id=event["task_id"],
            interaction_id=tag,
            episode_id=event.get("episode_id"),
        )

    return Peer(record, recorder.flush, lambda: recorder.stats()._asdict())


def _treadle_buffered(address: str, workspace: str) -> Peer:
    return _treadle(address, workspace, buffered=True)


def _opentelemetry(address: str, _workspace: str) -> Peer:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{address}/v1/traces")))
    tracer = provider.get_tracer("benchmark")

    def record(event: Event, tag: str) -> None:
        messages = event["messages"]
        span = tracer.start_span(f"chat {event['model']}")
        span.set_attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": event["model"],
                "gen_ai.agent.name": event["agent"],
                "gen_ai.conversation.id": tag,
                "gen_ai.input.messages": orjson.dumps(messages[:-1]).decode(),
                "gen_ai.output.messages": orjson.dumps(messages[-1:]).decode(),
            }
        )
        span.end()

    return Peer(record, lambda timeout_s: provider.force_flush(int(timeout_s * 1000)))


def _langsmith(address: str, _workspace: str) -> Peer:
    os.environ |= {"LANGSMITH_TRACING": "true", "LANGSMITH_ENDPOINT": address, "LANGSMITH_API_KEY": "benchmark"}
    from langsmith import Client, traceable

    client = Client(api_url=address, api_key="benchmark")

    # the answer is the function's result and no input, so the function finds it outside its arguments
    held: list[Any] = [None]

    @traceable(run_type="llm", name="chat", client=client)
    def answered(messages: list[Any], model: str, tag: str) -> Any:
        return held[0]

    def record(event: Event, tag: str) -> None:
        held[0] = event["messages"][-1]
        answered(event["messages"][:-1], event["model"], tag)

    return Peer(record, lambda _timeout_s: client.flush())


def _langfuse(address: str, _workspace: str) -> Peer:
    from langfuse import Langfuse

    client = Langfuse(public_key="pk-lf-benchmark", secret_key="sk-lf-benchmark", base_url=address)

    def record(event: Event, tag: str) -> None:
        client.start_observation(
            name="chat",
            as_type="generation",
            model=event["model"],
            input=event["messages"][:-1],
            output=event["messages"][-1],
            metadata={"tag": tag},
        ).end()

    return Peer(record, lambda _timeout_s: client.flush())


def _logfire(address: str, _workspace: str) -> Peer:
    os.environ |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": address,
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "LOGFIRE_IGNORE_NO_CONFIG": "1",
    }
    import logfire

    logfire.configure(send_to_logfire=False, console=False, metrics=False, inspect_arguments=False)

    def record(event: Event, tag: str) -> None:
        with logfire.span(
            "chat {model}",
            model=event["model"],
            tag=tag,
            agent=event["agent"],
            request=event["messages"][:-1],
            response=event["messages"][-1],
        ):
            pass

    return Peer(record, lambda timeout_s: logfire.force_flush(int(timeout_s * 1000)))


_MAKERS: dict[str, Callable[[str, str], Peer]] = {
    "orjson": _orjson,
    "treadle": _treadle,
    "treadle_secrets": _treadle,
    "treadle_buffered": _treadle_buffered,
    "opentelemetry": _opentelemetry,
    "langsmith": _langsmith,
    "langfuse": _langfuse,
    "logfire": _logfire,
}
PACKAGES = {
    "orjson": ("orjson",),
    "treadle": ("treadle", "confluent-kafka"),
    "treadle_secrets": ("treadle", "confluent-kafka"),
    "treadle_buffered": ("treadle", "confluent-kafka"),
    "opentelemetry": ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
    "langsmith": ("langsmith",),
    "langfuse": ("langfuse",),
    "logfire": ("logfire",),
}
"""Distributions that must be installed for a name."""
NAMES = tuple(_MAKERS)
