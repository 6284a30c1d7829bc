"""LangChain and LangGraph with their real packages, against the local server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import treadle

sys.path.append(str(Path(__file__).parent))
from api_server import ARGUMENTS, KEY, TEXT, ApiServer

pytest.importorskip("langchain_openai")
pytest.importorskip("langgraph")

pytestmark = [
    # langchain and langgraph warn of each other's old names
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:PendingDeprecationWarning"),
]


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
    from treadle.integrations import langchain

    with treadle.Recorder("shop", agent="desk", sink=sink) as made:
        langchain.instrument(made)
        if hooked:
            treadle.instrument(made)
        yield made
        treadle.uninstrument()
        langchain.uninstrument()
    assert KEY not in b"".join(sent.value for sent in sink.sent).decode()


_clients: list[Any] = []
_async_clients: list[Any] = []


def model_of(api: ApiServer, name: str = "m", **options: Any) -> Any:
    """A model with clients of its own: those that langchain makes live until the process ends, and longer than their event loop."""
    import httpx2
    from langchain_openai import ChatOpenAI

    _clients.append(httpx2.Client())
    _async_clients.append(httpx2.AsyncClient())
    options |= {"http_client": _clients[-1], "http_async_client": _async_clients[-1]}
    return ChatOpenAI(model=name, base_url=f"{api.url}/v1", api_key=KEY, max_retries=0, **options)


@pytest.fixture(autouse=True)
def _close_clients() -> Iterator[None]:
    yield
    while _clients:
        _clients.pop().close()
    run(asyncio.sleep(0))


def run(work: Any) -> Any:
    async def whole() -> Any:
        try:
            return await work
        finally:
            while _async_clients:
                await _async_clients.pop().aclose()

    return asyncio.run(whole())


def check(value: dict[str, Any], text: str = TEXT) -> None:
    assert value["messages"][0]["role"] == "user"
    assert value["messages"][-1]["role"] == "assistant"
    assert value["messages"][-1]["content"] == text
    assert value["response"] == [len(value["messages"]) - 1]
    assert value["finish_reason"] == "stop"
    assert value.get("status", "ok") == "ok"


def test_a_model_called_alone_is_one_interaction(
    sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer
) -> None:
    model = model_of(api, temperature=0.5, stream_usage=True)
    assert model.invoke("hi").content == TEXT
    assert "".join(chunk.content for chunk in model.stream("hi")) == TEXT

    async def work() -> None:
        assert (await model.ainvoke("hi")).content == TEXT
        assert "".join([chunk.content async for chunk in model.astream("hi")]) == TEXT

    run(work())
    assert len(model.batch(["hi", "hi"])) == 2
    assert len(sink.interactions) == 6
    for value in sink.interactions:
        check(value)
        assert value["sampling"]["temperature"] == 0.5
        assert value["usage"]["prompt_tokens"] == 5
    assert len({value["interaction_id"] for value in sink.interactions}) == 6
    assert "episode_id" not in sink.interactions[0]


def test_many_prompts_of_one_call_are_recorded_once_each(
    sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer
) -> None:
    from langchain_core.messages import HumanMessage

    model_of(api).generate([[HumanMessage("one")], [HumanMessage("two")]])
    assert sorted(value["messages"][0]["content"] for value in sink.interactions) == ["one", "two"]


def test_a_failed_call_is_recorded(sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer) -> None:
    with pytest.raises(Exception, match="it broke"):
        model_of(api, "broken").invoke("hi")
    (value,) = sink.interactions
    assert value["status"] == "error"
    assert "it broke" in value["error"]
    assert value["response"] == []


def graph_of(api: ApiServer, with_sub_agent: bool) -> Any:
    from langchain_core.messages import ToolMessage
    from langchain_core.tools import tool
    from langgraph.graph import END, START, MessagesState, StateGraph

    @tool
    def weather(city: str) -> str:
        """the weather"""
        assert city == ARGUMENTS["city"]
        return str(model_of(api, "sub").invoke("and the wind?").content) if with_sub_agent else "rain"

    planner = model_of(api, "tool").bind_tools([weather])

    def plan(state: Any) -> Any:
        return {"messages": [planner.invoke(state["messages"])]}

    async def aplan(state: Any) -> Any:
        return {"messages": [await planner.ainvoke(state["messages"])]}

    def act(state: Any) -> Any:
        calls = state["messages"][-1].tool_calls
        return {"messages": [ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]) for call in calls]}

    from langchain_core.runnables import RunnableLambda

    graph = StateGraph(MessagesState)
    graph.add_node("Planner One", RunnableLambda(plan, afunc=aplan))
    graph.add_node("tools", act)
    graph.add_edge(START, "Planner One")
    graph.add_conditional_edges("Planner One", lambda state: "tools" if state["messages"][-1].tool_calls else END)
    graph.add_edge("tools", "Planner One")
    return graph.compile()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_graph_is_an_episode_its_nodes_slots_and_a_tools_calls_children(
    asynchronous: bool, sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer
) -> None:
    graph = graph_of(api, with_sub_agent=True)
    given: Any = {"messages": [{"role": "user", "content": "hi"}]}
    config: Any = {"configurable": {"thread_id": "conversation-7"}}
    result = run(graph.ainvoke(given, config)) if asynchronous else graph.invoke(given, config)
    assert result["messages"][-1].content == TEXT
    calling, sub, last = sink.interactions
    assert len({value["episode_id"] for value in sink.interactions}) == 1
    assert [value.get("step", 0) for value in sink.interactions] == [0, 1, 2]
    assert [value.get("slot", "main") for value in (calling, last)] == ["planner-one", "planner-one"]
    assert calling["messages"][-1]["tool_calls"][0]["function"]["name"] == "weather"
    assert calling["tools"][0]["function"]["name"] == "weather"
    assert sub["parent_id"] == calling["interaction_id"]
    assert "parent_id" not in last
    assert calling["tags"]["thread_id"] == "conversation-7"
    assert [m["role"] for m in last["messages"]] == ["user", "assistant", "tool", "assistant"]
    sink.clear()
    graph.invoke(given)
    assert sink.interactions[0]["episode_id"] != calling["episode_id"]


def test_the_callers_own_episode_wins(sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer) -> None:
    with recorder.episode(task_id="t") as episode:
        graph_of(api, with_sub_agent=False).invoke({"messages": [{"role": "user", "content": "hi"}]})
        with recorder.interaction(messages="hi") as turn:
            turn.respond(model_of(api).invoke("hi"))
    assert {value["episode_id"] for value in sink.interactions} == {episode.episode_id}
    assert [(value.get("step", 0), value["task_id"]) for value in sink.interactions] == [(n, "t") for n in range(3)]


def test_a_model_that_uses_no_http_is_recorded_from_the_callbacks(
    sink: treadle.MemorySink, recorder: treadle.Recorder
) -> None:
    from langchain_core.language_models import FakeListChatModel, FakeListLLM

    assert FakeListChatModel(responses=["ho"]).invoke("hi").content == "ho"
    assert "".join(str(c.content) for c in FakeListChatModel(responses=["ho"]).stream("hi")) == "ho"
    assert FakeListLLM(responses=["ho"]).invoke("hi") == "ho"
    assert [[m["content"] for m in v["messages"]] for v in sink.interactions] == [["hi", "ho"]] * 3
    assert "first_token_ms" in sink.interactions[1]
