"""The OpenAI Agents SDK with its real package, against the local server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import treadle

sys.path.append(str(Path(__file__).parent))
from api_server import ARGUMENTS, KEY, TEXT, ApiServer

agents = pytest.importorskip("agents")


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    agents.set_trace_processors([])  # OpenAI's would upload
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
    from treadle.integrations import openai_agents

    with treadle.Recorder("shop", agent="desk", sink=sink) as made:
        openai_agents.instrument(made)
        if hooked:
            treadle.instrument(made)
        yield made
        treadle.uninstrument()
        openai_agents.uninstrument()
    assert KEY not in b"".join(sent.value for sent in sink.sent).decode()


def run(api: ApiServer, kind: str, work: Callable[[Callable[[str], Any]], Any]) -> None:
    """`work` gets a maker of models, by name."""
    import openai

    async def whole() -> None:
        async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=KEY, max_retries=0) as client:
            made = agents.OpenAIResponsesModel if kind == "responses" else agents.OpenAIChatCompletionsModel
            await work(lambda name: made(model=name, openai_client=client))

    asyncio.run(whole())


@agents.function_tool
def weather(city: str) -> str:
    """The weather."""
    assert city == ARGUMENTS["city"]
    return "rain"


@pytest.mark.parametrize("kind", ["responses", "chat"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_trace_is_an_episode_and_an_agents_name_the_slot(
    kind: str, streamed: bool, sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer
) -> None:
    async def work(model: Callable[[str], Any]) -> None:
        agent = agents.Agent(name="Billing Agent", instructions="be kind", model=model("tool"), tools=[weather])
        if streamed:
            result = agents.Runner.run_streamed(agent, "hi")
            async for _ in result.stream_events():
                pass
        else:
            result = await agents.Runner.run(agent, "hi")
        assert result.final_output == TEXT

    run(api, kind, work)
    calling, told = sink.interactions
    assert calling["episode_id"] == told["episode_id"]
    assert calling["episode_id"].startswith("trace_")
    assert (calling.get("step", 0), told["step"]) == (0, 1)
    assert calling["slot"] == told["slot"] == "billing-agent"
    assert json.loads(calling["messages"][-1]["tool_calls"][0]["function"]["arguments"]) == ARGUMENTS
    assert calling["response"] == [len(calling["messages"]) - 1]
    assert told["messages"][-1]["content"] == TEXT
    assert [m["role"] for m in told["messages"] if m["role"] != "system"] == ["user", "assistant", "tool", "assistant"]
    assert next(m for m in told["messages"] if m["role"] == "tool")["content"] == "rain"
    if not (streamed and kind == "chat"):  # of a chat stream usage comes only where it was asked for
        assert calling["usage"]["prompt_tokens"] == 5


def test_an_agent_used_as_a_tool_has_its_caller_as_parent(
    sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer
) -> None:
    async def work(model: Callable[[str], Any]) -> None:
        inner = agents.Agent(name="coder", model=model("m"))

        @agents.function_tool
        async def code(city: str) -> str:
            """Code it."""
            return str((await agents.Runner.run(inner, city)).final_output)

        outer = agents.Agent(name="planner", model=model("tool"), tools=[code])
        await agents.Runner.run(outer, "hi")

    run(api, "responses", work)
    calling, sub, told = sink.interactions
    assert [value["slot"] for value in sink.interactions] == ["planner", "coder", "planner"]
    assert sub["parent_id"] == calling["interaction_id"]
    assert "parent_id" not in told
    assert len({value["episode_id"] for value in sink.interactions}) == 1


def test_a_failed_call_is_recorded(
    sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer, hooked: bool
) -> None:
    async def work(model: Callable[[str], Any]) -> None:
        with pytest.raises(Exception, match="it broke"):
            await agents.Runner.run(agents.Agent(name="a", model=model("broken")), "hi")

    run(api, "chat", work)
    (value,) = sink.interactions
    assert value["status"] == "error"
    assert value["response"] == []
    assert value["messages"][-1]["content"] == "hi"


def test_the_callers_own_episode_wins(sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer) -> None:
    async def work(model: Callable[[str], Any]) -> None:
        with recorder.episode(episode_id="mine", slot="coder"):
            await agents.Runner.run(agents.Agent(name="a", model=model("m")), "hi")

    run(api, "responses", work)
    (value,) = sink.interactions
    assert (value["episode_id"], value["slot"]) == ("mine", "coder")
