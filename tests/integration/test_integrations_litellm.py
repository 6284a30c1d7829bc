"""LiteLLM with its real package, against the local server."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import treadle

sys.path.append(str(Path(__file__).parent))
from api_server import ARGUMENTS, KEY, TEXT, ApiServer

USER = {"role": "user", "content": "hi"}
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its prices come over the network otherwise
litellm = pytest.importorskip("litellm")

pytestmark = [
    # pydantic's, about LiteLLM's own models
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    # LiteLLM keeps its asynchronous clients until the process ends, longer than their event loop
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server
    # what LiteLLM leaves open goes now, while its warnings are expected, and not in another test
    asyncio.run(litellm.close_litellm_async_clients())
    litellm.in_memory_llm_clients_cache.flush_cache()
    gc.collect()


@pytest.fixture
def sink() -> treadle.MemorySink:
    return treadle.MemorySink()


@pytest.fixture(params=["with the HTTP hook", "alone"])
def hooked(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "with the HTTP hook")


@pytest.fixture
def recorder(sink: treadle.MemorySink, hooked: bool) -> Iterator[treadle.Recorder]:
    from treadle.integrations import litellm as adapter

    with treadle.Recorder("shop", agent="desk", sink=sink, raise_errors=True) as made:
        adapter.instrument(made)
        if hooked:
            treadle.instrument(made)
        yield made
        treadle.uninstrument()
        adapter.uninstrument()
    assert KEY not in b"".join(sent.value for sent in sink.sent).decode()


def wait_for(condition: Callable[[], bool]) -> None:
    """LiteLLM calls back from a thread or task of its own."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def settle(sink: treadle.MemorySink, count: int) -> list[dict[str, Any]]:
    wait_for(lambda: len(sink.interactions) >= count)
    litellm.completion(
        model="gpt-4o-mini", messages=[USER], mock_response="last"
    )  # whatever was queued comes before it
    wait_for(lambda: any(v["messages"][-1]["content"] == "last" for v in sink.interactions))
    found = [v for v in sink.interactions if v["messages"][-1]["content"] != "last"]
    assert len(found) == count
    return found


def test_each_call_is_one_interaction(
    sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer, hooked: bool
) -> None:
    gpt = {"model": "openai/gpt-4o-mini", "api_base": f"{api.url}/v1", "api_key": KEY}
    claude = {"model": "anthropic/claude-x", "api_base": api.url, "api_key": KEY}
    ways: list[dict[str, Any]] = [gpt, {**gpt, "stream": True}, claude, {**claude, "stream": True}]
    for way in ways:
        answer = litellm.completion(messages=[USER], temperature=0.5, **way)
        text = (
            "".join(chunk.choices[0].delta.content or "" for chunk in answer)
            if way.get("stream")
            else answer.choices[0].message.content
        )
        assert text == TEXT
    found = settle(sink, len(ways))

    async def work() -> None:
        for way in ways:
            answer = await litellm.acompletion(messages=[USER], temperature=0.5, **way)
            if way.get("stream"):
                text = "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
            else:
                text = answer.choices[0].message.content
            assert text == TEXT
        deadline = time.monotonic() + 10
        while len(sink.interactions) < 2 * len(ways) + 1 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    asyncio.run(work())
    found += settle(sink, 2 * len(ways))[len(ways) :]
    for value in found:
        assert value["messages"][0] == USER
        assert value["messages"][-1]["content"] == TEXT
        assert value["response"] == [1]
        assert value["sampling"]["temperature"] == 0.5
        assert value["finish_reason"] == "stop"
        # of a chat stream usage comes only where it was asked for
        assert value["usage"]["completion_tokens"] == 3 if "usage" in value else "first_token_ms" in value
    if not hooked:
        assert sum(value.get("cost", 0) > 0 for value in found) == 4  # it knows no price of claude-x
        assert sum("first_token_ms" in value for value in found) == 4


def test_tool_calls_and_failures_are_recorded(
    sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer
) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    where = {"api_base": f"{api.url}/v1", "api_key": KEY, "max_retries": 0}
    litellm.completion(model="openai/tool", messages=[USER], tools=[tool], **where)
    with pytest.raises(litellm.InternalServerError):
        litellm.completion(model="openai/broken", messages=[USER], **where)
    wait_for(lambda: len(sink.interactions) >= 2)
    calling, failed = sink.interactions
    (call,) = calling["messages"][-1]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", ARGUMENTS)
    assert calling["tools"] == [tool]
    assert calling["finish_reason"] == "tool_calls"
    assert (failed["status"], failed["response"], failed["messages"]) == ("error", [], [USER])
    assert "it broke" in failed["error"]


def test_an_outcome_finds_the_answer_by_litellms_own_id(
    sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer
) -> None:
    with recorder.episode(episode_id="mine"):
        answer = litellm.completion(model="anthropic/claude-x", messages=[USER], api_base=api.url, api_key=KEY)
    from treadle import targets

    wait_for(lambda: targets.resolve(answer, "shop").interaction_id is not None)
    (value,) = sink.interactions
    assert value["episode_id"] == "mine"
    assert targets.resolve(answer, "shop").interaction_id == value["interaction_id"]
