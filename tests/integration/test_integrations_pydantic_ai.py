"""Pydantic AI with its real package, against the local server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import treadle

sys.path.append(str(Path(__file__).parent))
from api_server import ARGUMENTS, KEY, TEXT, ApiServer

pydantic_ai = pytest.importorskip("pydantic_ai")
pytest.importorskip("opentelemetry.sdk")


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def sink() -> treadle.MemorySink:
    return treadle.MemorySink()


@pytest.fixture(params=["with the HTTP hook", "alone"])
def hooked(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "with the HTTP hook")


@pytest.fixture
def recorder(sink: treadle.MemorySink, hooked: bool) -> Iterator[treadle.Recorder]:
    from treadle.integrations import pydantic_ai as adapter

    with treadle.Recorder("shop", agent="desk", sink=sink) as made:
        adapter.instrument(made)
        if hooked:
            treadle.instrument(made)
        yield made
        treadle.uninstrument()
        adapter.uninstrument()
    assert KEY not in b"".join(sent.value for sent in sink.sent).decode()


def run(api: ApiServer, kind: str, work: Callable[[Callable[[str], Any]], Awaitable[None]]) -> None:
    """`work` gets a maker of models, by name."""
    import anthropic
    import openai
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    async def whole() -> None:
        async with (
            openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=KEY, max_retries=0) as gpt,
            anthropic.AsyncAnthropic(base_url=api.url, api_key=KEY, max_retries=0) as claude,
        ):
            makers: dict[str, Callable[[str], Any]] = {
                "chat": lambda name: OpenAIChatModel(name, provider=OpenAIProvider(openai_client=gpt)),
                "responses": lambda name: OpenAIResponsesModel(name, provider=OpenAIProvider(openai_client=gpt)),
                "messages": lambda name: AnthropicModel(name, provider=AnthropicProvider(anthropic_client=claude)),
            }
            await work(makers[kind])

    asyncio.run(whole())


@pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_is_an_episode_and_the_agents_name_the_slot(
    kind: str, streamed: bool, hooked: bool, sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer
) -> None:
    async def work(model: Callable[[str], Any]) -> None:
        agent = pydantic_ai.Agent(model("tool"), name="Billing Agent", instructions="be kind")

        @agent.tool_plain
        def weather(city: str) -> str:
            assert city == ARGUMENTS["city"]
            return "rain"

        if streamed:
            async with agent.run_stream("hi") as result:
                assert await result.get_output() in (TEXT, "let me see")
        else:
            assert (await agent.run("hi")).output == TEXT

    run(api, kind, work)
    calling, *rest = sink.interactions
    assert calling["slot"] == "billing-agent"
    assert calling["episode_id"]
    assert [m["role"] for m in calling["messages"]] == ["system", "user", "assistant"]
    assert [m["content"] for m in calling["messages"][:2]] == ["be kind", "hi"]
    assert calling["response"] == [2]
    (call,) = calling["messages"][2]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", ARGUMENTS)
    assert calling["tools"][0]["function"]["name"] == "weather"
    # of responses pydantic-ai itself says stop
    assert calling["finish_reason"] == "tool_calls" or (kind == "responses" and not hooked)
    for told in rest:  # of a stream that begins with text pydantic-ai takes that for the result
        assert (told["episode_id"], told["step"]) == (calling["episode_id"], 1)
        assert [m["role"] for m in told["messages"]][-2:] == ["tool", "assistant"]
        assert told["messages"][-2]["content"] == "rain"
        assert told["messages"][-1]["content"] == TEXT
    assert len(rest) == 1 or (streamed and kind == "messages")


def test_a_model_that_uses_no_http_is_recorded_from_its_spans(
    sink: treadle.MemorySink, recorder: treadle.Recorder
) -> None:
    from pydantic_ai.models.test import TestModel

    inner = pydantic_ai.Agent(TestModel(custom_output_text="inside"), name="coder")
    outer = pydantic_ai.Agent(TestModel(custom_output_text="done"), name="planner")

    @outer.tool_plain
    async def code(task: str) -> str:
        return str((await inner.run(task)).output)

    assert asyncio.run(outer.run("hi")).output == "done"
    calling, sub, told = sink.interactions
    assert [value["slot"] for value in sink.interactions] == ["planner", "coder", "planner"]
    assert sub["parent_id"] == calling["interaction_id"]
    assert "parent_id" not in told
    assert len({value["episode_id"] for value in sink.interactions}) == 1
    assert [value.get("step", 0) for value in sink.interactions] == [0, 1, 2]
    assert told["messages"][-1] == {"role": "assistant", "content": "done"}


def test_a_failed_call_is_recorded_by_the_http_hook_and_told_of_without(
    hooked: bool,
    sink: treadle.MemorySink,
    recorder: treadle.Recorder,
    api: ApiServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work(model: Callable[[str], Any]) -> None:
        with pytest.raises(pydantic_ai.exceptions.ModelHTTPError):
            await pydantic_ai.Agent(model("broken")).run("hi")

    run(api, "chat", work)
    if not hooked:  # pydantic-ai writes messages into a span only when the request is answered
        assert "holds no messages, and was not recorded" in caplog.text
        return
    (value,) = sink.interactions
    assert (value["status"], value["response"]) == ("error", [])
    assert "it broke" in value["error"]
