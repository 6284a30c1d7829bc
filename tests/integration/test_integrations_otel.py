"""OpenTelemetry with its real SDK and instrumentations that libraries bring themselves, against the local server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import treadle

sys.path.append(str(Path(__file__).parent))
from api_server import ARGUMENTS, KEY, TEXT, ApiServer

pytest.importorskip("opentelemetry.sdk")
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
from treadle.integrations import _publish, otel

HI = '[{"role":"user","parts":[{"type":"text","content":"hi"}]}]'
HELLO = '[{"role":"assistant","parts":[{"type":"text","content":"Hello, world"}],"finish_reason":"stop"}]'
CALL = {"gen_ai.operation.name": "chat", "gen_ai.input.messages": HI, "gen_ai.output.messages": HELLO}
TOKEN = "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345"


@pytest.fixture(autouse=True)
def told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was logged in the last ten seconds is logged again."""
    monkeypatch.setattr(_publish, "_quiet_until", {})


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def sink() -> treadle.MemorySink:
    return treadle.MemorySink()


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exported: InMemorySpanExporter) -> Iterator[TracerProvider]:
    made = TracerProvider(shutdown_on_exit=False)
    made.add_span_processor(SimpleSpanProcessor(exported))
    yield made
    made.shutdown()


@pytest.fixture
def tracer(provider: TracerProvider) -> trace.Tracer:
    return provider.get_tracer("app")


@pytest.fixture
def recorder(sink: treadle.MemorySink, provider: TracerProvider) -> Iterator[treadle.Recorder]:
    with treadle.Recorder("shop", agent="desk", sink=sink) as made:
        otel.instrument(made, provider)
        yield made
        otel.uninstrument()
    assert KEY not in b"".join(sent.value for sent in sink.sent).decode()


@pytest.fixture(params=["with the HTTP hook", "alone"])
def hooked(request: pytest.FixtureRequest, recorder: treadle.Recorder) -> Iterator[bool]:
    if request.param == "alone":
        yield False
        return
    treadle.instrument(recorder)
    yield True
    treadle.uninstrument()


# In: what libraries write themselves.


@pytest.mark.parametrize("streamed", [False, True])
def test_pydantic_ai_with_its_own_instrumentation(
    streamed: bool,
    hooked: bool,
    sink: treadle.MemorySink,
    recorder: treadle.Recorder,
    provider: TracerProvider,
    exported: InMemorySpanExporter,
    api: ApiServer,
) -> None:
    openai = pytest.importorskip("openai")
    pydantic_ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.capabilities import Instrumentation
    from pydantic_ai.models.instrumented import InstrumentationSettings
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async def work() -> None:
        async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=KEY, max_retries=0) as client:
            agent = pydantic_ai.Agent(
                OpenAIChatModel("tool", provider=OpenAIProvider(openai_client=client)),
                name="Billing Agent",
                instructions="be kind",
                capabilities=[Instrumentation(settings=InstrumentationSettings(tracer_provider=provider))],
            )

            @agent.tool_plain
            def weather(city: str) -> str:
                return "rain"

            if streamed:
                async with agent.run_stream("hi") as result:
                    assert await result.get_output() == TEXT
            else:
                assert (await agent.run("hi")).output == TEXT

    asyncio.run(work())
    calling, told = sink.interactions
    (root,) = [span for span in exported.get_finished_spans() if span.parent is None]
    assert {value["episode_id"] for value in (calling, told)} == {format_trace_id(root.context.trace_id)}
    assert [value["slot"] for value in (calling, told)] == ["billing-agent"] * 2
    assert [m["content"] for m in calling["messages"][:2]] == ["be kind", "hi"]
    (call,) = calling["messages"][2]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", ARGUMENTS)
    assert calling["tools"][0]["function"]["name"] == "weather"
    assert told["messages"][-2:] == [
        {"role": "tool", "tool_call_id": call["id"], "content": "rain"},
        {"role": "assistant", "content": TEXT},
    ]
    assert [value["response"] for value in (calling, told)] == [[2], [4]]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_anthropics_client_with_its_own_instrumentation(
    asynchronous: bool,
    hooked: bool,
    sink: treadle.MemorySink,
    recorder: treadle.Recorder,
    provider: TracerProvider,
    api: ApiServer,
) -> None:
    anthropic = pytest.importorskip("anthropic")
    settings: Any = {
        "base_url": api.url,
        "api_key": KEY,
        "max_retries": 0,
        "open_telemetry": {"tracer_provider": provider, "traces": {"content_mode": "content"}},
    }
    tools = [{"name": "weather", "input_schema": {"type": "object", "properties": {}}}]
    asked: Any = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}

    def work() -> None:
        with anthropic.Anthropic(**settings) as client:
            client.messages.create(model="m", system="be kind", **asked)
            with client.messages.stream(model="tool", tools=tools, **asked) as stream:
                stream.until_done()
            with pytest.raises(anthropic.InternalServerError):
                client.messages.create(model="broken", **asked)

    async def work_async() -> None:
        async with anthropic.AsyncAnthropic(**settings) as client:
            await client.messages.create(model="m", system="be kind", **asked)
            async with client.messages.stream(model="tool", tools=tools, **asked) as stream:
                await stream.until_done()
            with pytest.raises(anthropic.InternalServerError):
                await client.messages.create(model="broken", **asked)

    if asynchronous:
        asyncio.run(work_async())
    else:
        work()
    plain, calling, failed = sink.interactions
    assert [m["content"] for m in plain["messages"]] == ["be kind", "hi", TEXT]
    assert (plain["finish_reason"], plain["sampling"], plain["model"]) == ("stop", {"max_tokens": 9}, "m-2026")
    assert plain["usage"]["prompt_tokens"] == 5
    assert plain["references"][0].startswith("response:msg_")
    (call,) = calling["messages"][-1]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", ARGUMENTS)
    assert calling["finish_reason"] == "tool_calls"
    assert calling["first_token_ms"] > 0
    assert (failed["status"], failed["response"]) == ("error", [])
    assert failed["messages"] == [{"role": "user", "content": "hi"}]


def test_a_stream_whose_answer_comes_in_a_span_of_its_own(
    hooked: bool, sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer
) -> None:
    logfire = pytest.importorskip("logfire")
    openai = pytest.importorskip("openai")
    local = logfire.configure(
        local=True,
        send_to_logfire=False,
        console=False,
        inspect_arguments=False,
        additional_span_processors=[otel.TreadleSpanProcessor(recorder)],
    )
    asked: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=KEY, max_retries=0) as client:
        local.instrument_openai(client)
        client.chat.completions.create(**asked)
        assert len(list(client.chat.completions.create(stream=True, **asked))) > 1
    local.shutdown()
    assert [value["messages"][1]["content"] for value in sink.interactions] == [TEXT, TEXT]
    assert all(value["references"][0].startswith("response:chatcmpl-") for value in sink.interactions)


# In: structure.


def test_agents_tools_and_calls_nest(
    sink: treadle.MemorySink, recorder: treadle.Recorder, tracer: trace.Tracer
) -> None:
    with tracer.start_as_current_span("GET /") as root:
        with tracer.start_as_current_span("planner") as agent:
            # some say only after the start what they are
            agent.set_attributes({"traceloop.span.kind": "agent", "traceloop.entity.name": "Planner"})
            with tracer.start_as_current_span("chat", attributes=CALL):
                pass
            with tracer.start_as_current_span("code", attributes={"gen_ai.operation.name": "execute_tool"}):
                coder = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "Coder", "user.id": "u"}
                with tracer.start_as_current_span("coder", attributes=coder):
                    with tracer.start_as_current_span("chat", attributes={**CALL, "user.id": "u"}) as inner:
                        pass
            with tracer.start_as_current_span("chat", attributes=CALL):
                with tracer.start_as_current_span("chat by its client", attributes=CALL):
                    pass
    first, sub, last = sink.interactions
    assert [value["slot"] for value in sink.interactions] == ["planner", "coder", "planner"]
    assert [value.get("parent_id") for value in sink.interactions] == [None, first["interaction_id"], None]
    assert [value.get("step", 0) for value in sink.interactions] == [0, 1, 2]
    assert {value["episode_id"] for value in sink.interactions} == {format_trace_id(root.get_span_context().trace_id)}
    assert sub["interaction_id"] == format_span_id(inner.get_span_context().span_id)
    assert (sub["subject"], sub["messages"][1]["content"]) == ("u", TEXT)
    assert last["finish_reason"] == "stop"


def test_the_open_episode_of_the_caller_wins(
    sink: treadle.MemorySink, recorder: treadle.Recorder, tracer: trace.Tracer
) -> None:
    with recorder.episode(episode_id="mine", task_id="t"):
        with tracer.start_as_current_span("chat", attributes=CALL):
            pass
    with recorder.interaction(messages=[{"role": "user", "content": "by hand"}]) as turn:
        with tracer.start_as_current_span("chat", attributes=CALL):
            turn.respond("yes")
    assert [value.get("task_id") for value in sink.interactions] == ["t", None]
    assert sink.interactions[0]["episode_id"] == "mine"
    assert sink.interactions[1]["messages"][0]["content"] == "by hand"


def test_a_trace_that_began_elsewhere_is_the_episode(
    sink: treadle.MemorySink, recorder: treadle.Recorder, tracer: trace.Tracer
) -> None:
    remote = trace.SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=trace.TraceFlags(1))
    parent = trace.set_span_in_context(trace.NonRecordingSpan(remote))
    tracer.start_span("chat", parent, attributes=CALL).end()
    assert sink.interactions[0]["episode_id"] == f"{0xABC:032x}"


def test_two_processors_of_one_recorder_record_once(
    sink: treadle.MemorySink, recorder: treadle.Recorder, provider: TracerProvider, tracer: trace.Tracer
) -> None:
    provider.add_span_processor(otel.TreadleSpanProcessor(recorder))
    assert otel.instrument(recorder, provider) is otel.instrument(recorder, provider)
    tracer.start_span("chat", attributes=CALL).end()
    assert len(sink.interactions) == 1


def test_a_span_that_is_not_current_is_matched_by_the_id_of_the_answer(
    sink: treadle.MemorySink, recorder: treadle.Recorder, tracer: trace.Tracer, api: ApiServer
) -> None:
    openai = pytest.importorskip("openai")
    treadle.instrument(recorder)
    span = tracer.start_span("chat", attributes=CALL)
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=KEY) as client:
        answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    span.set_attribute("gen_ai.response.id", answer.id)
    span.end()
    treadle.uninstrument()
    assert len(sink.interactions) == 1


def test_what_cannot_be_recorded_is_told_and_never_raised(
    sink: treadle.MemorySink, recorder: treadle.Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    small = TracerProvider(span_limits=SpanLimits(max_attributes=2), shutdown_on_exit=False)
    otel.instrument(recorder, small)
    span = small.get_tracer("app").start_span("chat", attributes={"dropped": 1, **CALL})
    span.set_attribute("gen_ai.operation.name", "chat")
    span.end()
    assert "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT" in caplog.text
    unlimited = TracerProvider(shutdown_on_exit=False)
    otel.instrument(recorder, unlimited)
    unlimited.get_tracer("app").start_span("chat", attributes={**CALL, "gen_ai.usage.cost": float("nan")}).end()
    assert "could not be recorded" in caplog.text
    assert sink.interactions == []


def test_a_span_that_began_before_anybody_listened_is_recorded(
    sink: treadle.MemorySink, provider: TracerProvider, tracer: trace.Tracer
) -> None:
    span = tracer.start_span("chat", attributes=CALL)
    with treadle.Recorder("shop", sink=sink) as recorder:
        otel.instrument(recorder, provider)
        span.end()
        otel.uninstrument()
        tracer.start_span("chat", attributes=CALL).end()
    assert len(sink.interactions) == 1


def test_flushing_the_provider_flushes_the_recorder(recorder: treadle.Recorder, provider: TracerProvider) -> None:
    assert provider.force_flush(1000)


def test_a_provider_that_makes_no_spans_is_refused(recorder: treadle.Recorder) -> None:
    with pytest.raises(TypeError, match="set_tracer_provider"):
        otel.instrument(recorder, trace.NoOpTracerProvider())


# Out.


def spans_of_treadle(exported: InMemorySpanExporter) -> list[ReadableSpan]:
    return [
        s
        for s in exported.get_finished_spans()
        if s.instrumentation_scope and s.instrumentation_scope.name == "treadle"
    ]


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def say(recorder: treadle.Recorder, text: str = "hi", **said: Any) -> treadle.Handle:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": TEXT}]
    return recorder.record(messages=messages, response=[1], model="m", **said)


def test_a_recorded_interaction_is_a_span_under_the_current_one(
    sink: treadle.MemorySink,
    recorder: treadle.Recorder,
    provider: TracerProvider,
    exported: InMemorySpanExporter,
    tracer: trace.Tracer,
) -> None:
    stop = otel.export_spans(recorder, provider)
    with tracer.start_as_current_span("work") as work:
        handle = say(
            recorder,
            started_at="2026-05-29T13:46:20Z",
            ended_at="2026-05-29T13:46:21.5Z",
            usage={"prompt_tokens": 3, "completion_tokens": 4},
            finish_reason="stop",
        )
        say(recorder, status="error", error="Timeout: late")
    stop()
    say(recorder)
    told, failed = spans_of_treadle(exported)
    assert told.parent is not None
    assert (told.parent.span_id, told.kind) == (work.get_span_context().span_id, SpanKind.CLIENT)
    assert (told.name, told.end_time - told.start_time) == ("chat m", 1_500_000_000)  # type: ignore[operator]
    attributes = attributes_of(told)
    assert attributes["treadle.handle"] == str(handle)
    assert (attributes["gen_ai.operation.name"], attributes["gen_ai.agent.name"]) == ("chat", "desk")
    assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (3, 4)
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert "gen_ai.input.messages" not in attributes
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "Timeout: late")
    assert attributes_of(failed)["error.type"] == "Timeout"
    # treadle's own spans are no interactions again
    assert len(sink.interactions) == 3


@pytest.mark.parametrize(("argument", "variable"), [(True, "false"), (None, "true"), (None, "SPAN_ONLY")])
def test_content_goes_out_when_asked_and_after_redaction(
    argument: bool | None,
    variable: str,
    recorder: treadle.Recorder,
    provider: TracerProvider,
    exported: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", variable)
    otel.export_spans(recorder, provider, content=argument)
    say(recorder, f"my token is {TOKEN}")
    (span,) = spans_of_treadle(exported)
    (asked,) = json.loads(attributes_of(span)["gen_ai.input.messages"])
    assert asked["parts"][0]["content"].startswith("my token is ")
    assert TOKEN not in str(attributes_of(span))


def test_a_call_that_has_a_span_makes_no_second_one(
    hooked: bool,
    sink: treadle.MemorySink,
    recorder: treadle.Recorder,
    provider: TracerProvider,
    exported: InMemorySpanExporter,
    tracer: trace.Tracer,
    api: ApiServer,
) -> None:
    openai = pytest.importorskip("openai")
    otel.export_spans(recorder, provider)
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=KEY) as client:
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        with tracer.start_as_current_span("chat", attributes=CALL):
            client.chat.completions.create(**asked)
        with tracer.start_as_current_span("chat", attributes=CALL):
            stream = client.chat.completions.create(stream=True, **asked)
        for _ in stream:
            pass
        assert len(sink.interactions) == 2
        assert spans_of_treadle(exported) == []
        client.chat.completions.create(**asked)  # nobody made a span for this one
    assert len(spans_of_treadle(exported)) == int(hooked)


def test_under_an_adapter_that_only_listens_the_hosts_span_is_the_parent(
    sink: treadle.MemorySink,
    recorder: treadle.Recorder,
    provider: TracerProvider,
    exported: InMemorySpanExporter,
    tracer: trace.Tracer,
) -> None:
    pydantic_ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.test import TestModel
    from treadle.integrations import pydantic_ai as adapter

    adapter.instrument(recorder)
    otel.export_spans(recorder, provider)
    with tracer.start_as_current_span("work") as work:
        assert asyncio.run(pydantic_ai.Agent(TestModel(custom_output_text="yes")).run("hi")).output == "yes"
    adapter.uninstrument()
    (span,) = spans_of_treadle(exported)
    assert span.parent is not None
    assert span.parent.span_id == work.get_span_context().span_id
    assert len(sink.interactions) == 1


def test_a_broken_tracer_does_not_reach_the_host(
    sink: treadle.MemorySink, recorder: treadle.Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
            return None

    otel.export_spans(recorder, Broken(shutdown_on_exit=False))
    say(recorder)
    assert len(sink.interactions) == 1
    assert "could not be exported as a span" in caplog.text
    assert context.get_current() == {}
