"""Streams, answers, decorated functions and tools of the SDK."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import treadle
from treadle.streaming import TRUNCATED

USER = {"role": "user", "content": "hi"}


@pytest.fixture
def sink() -> treadle.MemorySink:
    return treadle.MemorySink()


@pytest.fixture
def recorder(sink: treadle.MemorySink) -> treadle.Recorder:
    return treadle.Recorder("shop", sink=sink, agent="desk")


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk as OpenAI's API sends it."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "chatcmpl-9", "object": "chat.completion.chunk", "model": "m-1", "choices": [choice], **more}


CHAT = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Let me "}),
    chunk({"content": "look."}),
    chunk(
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "find", "arguments": ""}}]}
    ),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"order":'}}]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": " 17}"}}]}),
    chunk({}, "tool_calls"),
    {
        "id": "chatcmpl-9",
        "object": "chat.completion.chunk",
        "model": "m-1",
        "choices": [],
        "usage": {"total_tokens": 12},
    },
]
ANTHROPIC: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "msg_1", "model": "claude", "usage": {"input_tokens": 3}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
    {"type": "message_stop"},
]


def of_chunks(chunks: list[Any], closed: list[bool] | None = None) -> Iterator[Any]:
    try:
        yield from chunks
    finally:
        if closed is not None:
            closed.append(True)


async def later(chunks: list[Any], closed: list[bool] | None = None) -> AsyncIterator[Any]:
    try:
        for one in chunks:
            await asyncio.sleep(0)
            yield one
    finally:
        if closed is not None:
            closed.append(True)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- streams -------------------------------------------------------------------------------------------------------------------


def check_chat(value: dict[str, Any]) -> None:
    (message,) = [value["messages"][n] for n in value["response"]]
    assert message["content"] == "Let me look."
    (call,) = message["tool_calls"]
    assert (call["id"], call["function"]) == ("c1", {"name": "find", "arguments": '{"order": 17}'})
    assert (value["finish_reason"], value["model"], value["usage"]["total_tokens"]) == ("tool_calls", "m-1", 12)
    assert value["references"] == ["response:chatcmpl-9"]
    assert value["first_token_ms"] >= 0
    assert value.get("status", "ok") == "ok"


def test_a_stream_passes_through_and_is_put_together(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    with recorder.interaction(messages=[USER]) as turn:
        assert list(turn.stream(of_chunks(CHAT))) == CHAT
    check_chat(sink.interactions[0])


def test_an_asynchronous_stream_too(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    async def main() -> None:
        async with recorder.interaction(messages=[USER]) as turn:
            assert [one async for one in turn.astream(later(CHAT))] == CHAT

    asyncio.run(main())
    check_chat(sink.interactions[0])


def test_a_stream_may_outlive_its_block(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    def chat() -> Iterator[Any]:
        with recorder.interaction(messages=[USER]) as turn:
            return turn.stream(of_chunks(CHAT))

    stream = chat()
    assert sink.sent == []
    assert list(stream) == CHAT
    check_chat(sink.interactions[0])
    del stream
    gc.collect()
    assert len(sink.interactions) == 1


@pytest.mark.parametrize(
    ("chunks", "text", "finish"),
    [
        (["Hel", "lo"], "Hello", None),
        (ANTHROPIC, "Hello", "stop"),
        ([], "", None),
    ],
    ids=["text", "anthropic", "nothing"],
)
def test_other_streams_are_put_together(
    recorder: treadle.Recorder, sink: treadle.MemorySink, chunks: list[Any], text: str, finish: str | None
) -> None:
    with recorder.interaction(messages=[USER]) as turn:
        list(turn.stream(chunks))
    (value,) = sink.interactions
    assert value["messages"][-1] == {"role": "assistant", "content": text}
    assert value.get("finish_reason") == finish
    assert "error" not in value


def break_off(stream: Any) -> None:
    for n, _ in enumerate(stream):
        if n == 1:
            break


def close(stream: Any) -> None:
    next(stream)
    next(stream)
    stream.close()


@pytest.mark.parametrize("leave", [break_off, close])
def test_a_stream_that_is_left_is_recorded_as_far_as_it_came(
    recorder: treadle.Recorder, sink: treadle.MemorySink, leave: Any
) -> None:
    closed: list[bool] = []
    with recorder.interaction(messages=[USER]) as turn:
        leave(turn.stream(of_chunks(CHAT, closed)))
    (value,) = sink.interactions
    assert value["messages"][-1]["content"] == "Let me "
    assert (value["status"], value["error"]) == ("error", TRUNCATED)
    assert closed == [True]


def test_a_stream_that_nobody_reads_after_its_block_is_recorded_when_it_is_dropped(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    with recorder.interaction(messages=[USER]) as turn:
        stream = turn.stream(of_chunks(CHAT))
        next(stream)
        next(stream)
    assert sink.sent == []
    del stream
    wait_for(lambda: sink.sent)
    assert sink.interactions[0]["error"] == TRUNCATED


def test_a_host_may_stop_at_the_last_event(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    with recorder.interaction(messages=[USER]) as turn:
        stream = turn.stream(of_chunks(CHAT))
        for one in stream:
            if one["choices"] and one["choices"][0]["finish_reason"]:
                break
        stream.close()
    assert "error" not in sink.interactions[0]
    assert sink.interactions[0]["finish_reason"] == "tool_calls"


def test_an_asynchronous_stream_that_is_closed_says_so(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    closed: list[bool] = []

    async def main() -> None:
        async with recorder.interaction(messages=[USER]) as turn:
            async with turn.astream(later(CHAT, closed)) as stream:
                await anext(stream)
                await anext(stream)

    asyncio.run(main())
    assert (sink.interactions[0]["error"], closed) == (TRUNCATED, [True])


def test_a_stream_that_fails_is_recorded_with_its_error(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    def failing() -> Iterator[str]:
        yield "half"
        raise ConnectionError("reset")

    with pytest.raises(ConnectionError):
        with recorder.interaction(messages=[USER]) as turn:
            list(turn.stream(failing()))
    (value,) = sink.interactions
    assert value["messages"][-1] == {"role": "assistant", "content": "half"}
    assert value["error"] == "ConnectionError: reset"


def test_an_error_of_the_host_keeps_what_its_stream_said_so_far(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    def work() -> None:
        with recorder.interaction(messages=[USER]) as turn:
            held = turn.stream(["a", "b"])
            for _ in held:
                raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        work()
    (value,) = sink.interactions
    assert (value["messages"][-1]["content"], value["error"]) == ("a", "ValueError: mine")


def test_a_wrapped_stream_still_offers_what_the_client_gave(recorder: treadle.Recorder) -> None:
    class ClientStream(list[str]):
        response = "headers"

    with recorder.interaction(messages=[USER]) as turn:
        stream = turn.stream(ClientStream(["a"]))
        assert stream.response == "headers"
        with pytest.raises(AttributeError):
            _ = stream.absent
        list(stream)


def test_a_chunk_that_cannot_be_understood_still_reaches_the_host() -> None:
    class Odd:
        def model_dump(self, **_: Any) -> Any:
            raise RuntimeError("odd")

    sink = treadle.MemorySink()
    recorder = treadle.Recorder("shop", sink=sink, raise_errors=False)
    odd = Odd()
    with recorder.interaction(messages=[USER]) as turn:
        assert list(turn.stream([odd, odd])) == [odd, odd]
    assert "odd" in sink.interactions[0]["error"]
    strict = treadle.Recorder("shop", sink=sink)
    with pytest.raises(RuntimeError, match="odd"):
        with strict.interaction(messages=[USER]) as turn:
            list(turn.stream([odd]))


# --- answers -------------------------------------------------------------------------------------------------------------------


def test_the_answers_of_client_libraries_are_understood(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    openai = pytest.importorskip("openai.types.chat", reason="the openai client is not installed")
    made = openai.ChatCompletion.model_validate(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "yes"},
                    "logprobs": None,
                }
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
        }
    )
    with recorder.interaction(messages=[USER]) as turn:
        assert turn.respond(made) is made
    (value,) = sink.interactions
    assert value["messages"][1] == {"role": "assistant", "content": "yes"}
    assert (value["model"], value["finish_reason"], value["usage"]["total_tokens"]) == ("gpt", "stop", 4)
    recorder.outcome(made, "csat", 1.0)
    assert sink.outcomes[0]["interaction_id"] == turn.interaction_id


def test_an_answer_of_anthropic_is_understood(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    answer = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [
            {"type": "text", "text": "Look:"},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 1, "output_tokens": 2},
    }
    with recorder.interaction(messages=[USER]) as turn:
        turn.respond(answer)
    (value,) = sink.interactions
    assert value["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert (value["finish_reason"], value["references"]) == ("tool_calls", ["response:msg_1"])


def test_messages_of_langchain_are_understood(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    langchain = pytest.importorskip("langchain_core.messages", reason="langchain-core is not installed")
    answer = langchain.AIMessage(
        content="calling",
        tool_calls=[{"name": "f", "args": {"a": 1}, "id": "c1"}],
        response_metadata={"id": "chatcmpl-5", "finish_reason": "tool_calls", "model_name": "gpt"},
        id="run--1",
    )
    with recorder.interaction(messages=[langchain.SystemMessage("be kind"), langchain.HumanMessage("hi")]) as turn:
        turn.respond(answer)
    (value,) = sink.interactions
    assert [m["role"] for m in value["messages"]] == ["system", "user", "assistant"]
    assert value["messages"][2]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert value["references"] == ["response:chatcmpl-5"]
    recorder.outcome("chatcmpl-5", "csat", 1.0)
    assert sink.outcomes[0]["interaction_id"] == turn.interaction_id
    parts = [langchain.AIMessageChunk(content=text) for text in ("Hel", "lo")]
    with recorder.interaction(messages=[USER]) as turn:
        list(turn.stream(parts))
    assert sink.interactions[1]["messages"][1] == {"role": "assistant", "content": "Hello"}


# --- decorated functions -------------------------------------------------------------------------------------------------------


def test_a_function_s_call_is_an_interaction(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    handles: list[str] = []

    @recorder.traced(slot="helper", tags={"a": 1})
    def answer(question: str, *, depth: int = 1) -> dict[str, int]:
        """Answers."""
        turn = treadle.current_turn()
        assert turn is not None
        handles.append(turn.handle)
        return {"answer": 42}

    assert answer("life?", depth=2) == {"answer": 42}
    assert (answer.__name__, answer.__doc__) == ("answer", "Answers.")
    (value,) = sink.interactions
    assert value["messages"] == [
        {"role": "user", "content": '{"question":"life?","depth":2}'},
        {"role": "assistant", "content": '{"answer":42}'},
    ]
    assert value["slot"] == "helper"
    assert value["tags"]["treadle.function"].endswith("answer")
    assert handles == [str(sink.handles[0])]
    assert treadle.current_turn() is None


def test_messages_of_a_function_are_kept_verbatim(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    class Agent:
        @recorder.traced
        def chat(self, messages: list[Any]) -> dict[str, str]:
            return {"role": "assistant", "content": "ho"}

    Agent().chat([USER])
    assert sink.interactions[0]["messages"] == [USER, {"role": "assistant", "content": "ho"}]


def test_every_kind_of_function_stays_what_it_is(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    @recorder.traced
    def plain() -> str:
        return "a"

    @recorder.traced
    async def coroutine() -> str:
        await asyncio.sleep(0)
        return "b"

    @recorder.traced
    def generator() -> Iterator[str]:
        yield "c"
        yield "d"

    @recorder.traced
    async def async_generator() -> AsyncIterator[str]:
        yield "e"
        yield "f"

    async def main() -> None:
        assert await coroutine() == "b"
        assert [item async for item in async_generator()] == ["e", "f"]

    assert plain() == "a"
    assert list(generator()) == ["c", "d"]
    asyncio.run(main())
    assert inspect.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(async_generator)
    assert [value["messages"][1]["content"] for value in sink.interactions] == ["a", "cd", "b", "ef"]
    assert not any("error" in value for value in sink.interactions)


def test_a_function_that_raises_is_recorded_and_raises(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    @recorder.traced
    def plain() -> None:
        raise KeyError("x")

    @recorder.traced
    async def coroutine() -> None:
        raise KeyError("x")

    @recorder.traced
    def generator() -> Iterator[str]:
        yield "half"
        raise KeyError("x")

    for call in (plain, lambda: asyncio.run(coroutine()), lambda: list(generator())):
        with pytest.raises(KeyError):
            call()
    assert [value["error"] for value in sink.interactions] == ["KeyError: 'x'"] * 3
    assert sink.interactions[2]["messages"][1]["content"] == "half"


def test_a_generator_that_is_closed_early_is_recorded_as_truncated(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    ended: list[str] = []

    @recorder.traced
    def numbers() -> Iterator[str]:
        try:
            yield "1"
            yield "2"
        finally:
            ended.append("sync")

    @recorder.traced
    async def async_numbers() -> AsyncIterator[str]:
        try:
            yield "1"
            yield "2"
        finally:
            await asyncio.sleep(0)
            ended.append("async")

    async def main() -> None:
        stream = async_numbers()
        assert await anext(stream) == "1"
        await stream.aclose()  # type: ignore[attr-defined]

    for _ in numbers():
        break
    asyncio.run(main())
    numbers()  # never begun: it did nothing
    assert ended == ["sync", "async"]
    assert [(v["messages"][1]["content"], v["error"]) for v in sink.interactions] == [("1", TRUNCATED)] * 2


def test_generators_that_take_turns_keep_their_own_scopes(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    @recorder.traced
    def agent(name: str) -> Iterator[str]:
        with recorder.episode(slot=name):
            for step in range(2):
                with recorder.interaction(messages=f"{name}{step}") as turn:
                    turn.respond("ok")
                yield name
                inside = treadle.current_episode()
                assert inside is not None
                assert inside.slot == name

    for pair in zip(agent("a"), agent("b"), strict=True):
        assert pair == ("a", "b")
        assert treadle.current_episode() is None
    values = {value["messages"][0]["content"]: value for value in sink.interactions}
    assert values["a0"]["episode_id"] == values["a1"]["episode_id"] != values["b0"]["episode_id"]
    assert {values[name]["slot"] for name in ("a0", "a1")} == {"a"}
    assert values["a1"]["parent_id"] == values["a1"]["episode_id"]


def test_a_generator_still_takes_what_is_sent_or_thrown(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    @recorder.traced
    def echo() -> Any:
        got = yield "ready"
        try:
            yield f"got {got}"
        except ValueError:
            yield "caught"
        return "returned"

    running = echo()
    assert next(running) == "ready"
    assert running.send("x") == "got x"
    assert running.throw(ValueError()) == "caught"
    with pytest.raises(StopIteration, match="returned"):
        next(running)
    assert sink.interactions[0]["messages"][1]["content"] == "readygot xcaught"


def test_arguments_that_are_no_json_are_described(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    @recorder.traced
    def odd(value: Any) -> Any:
        return value

    class Thing:
        def __repr__(self) -> str:
            return "<a thing>"

    thing = Thing()
    assert odd(thing) is thing
    assert odd(float("nan")) != 0
    assert "<a thing>" in sink.interactions[0]["messages"][0]["content"]
    assert sink.interactions[0]["messages"][1]["content"] == '"<a thing>"'


# --- tools ---------------------------------------------------------------------------------------------------------------------

ASKS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"order": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "find", "arguments": '{"order": 2}'}},
    ],
}


def test_a_tool_answers_the_model_s_call_in_the_open_interaction(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    @recorder.tool
    def find(order: int) -> dict[str, str]:
        return {"state": f"sent {order}"}

    @recorder.tool(name="pay")
    def pay_out(amount: float) -> None:
        raise PermissionError("too much")

    with recorder.interaction(messages=[USER]) as turn:
        turn.respond(ASKS)
        find(2)
        find(order=1)
        with pytest.raises(PermissionError):
            pay_out(9.5)
    (value,) = sink.interactions
    results = [m for m in value["messages"] if m["role"] == "tool"]
    assert [m["tool_call_id"] for m in results[:2]] == ["c2", "c1"]
    assert results[0]["content"] == '{"state":"sent 2"}'
    assert (results[2]["content"], results[2]["is_error"]) == ("PermissionError: too much", True)
    # no model asked for this one: the call is written down, but it is nobody's response
    (asked,) = [m for m in value["messages"][2:] if m.get("tool_calls")]
    assert asked["tool_calls"][0]["function"] == {"name": "pay", "arguments": '{"amount":9.5}'}
    assert value["response"] == [1]


def test_results_that_the_next_request_repeats_are_not_kept_twice(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    @recorder.tool
    def find(order: int) -> str:
        return f"order {order} was sent"

    messages: list[Any] = [USER]
    with recorder.episode():
        with recorder.interaction(messages=messages) as turn:
            messages.append(turn.respond(ASKS))
        for n in (1, 2):
            messages.append({"role": "tool", "tool_call_id": f"c{n}", "content": find(n)})
        with recorder.interaction(messages=messages) as turn:
            turn.respond("both were sent")
        find(3)  # nothing repeats this one
    first, second, rest = sink.interactions
    assert [m["role"] for m in second["messages"]] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [m["role"] for m in rest["messages"]] == ["assistant", "tool"]
    assert (rest["response"], rest["step"], rest["parent_id"]) == ([], 2, second["interaction_id"])
    assert first["episode_id"] == rest["episode_id"]


def test_a_sub_agent_inside_a_tool_has_the_asking_interaction_as_parent(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    @recorder.tool
    async def research(topic: str) -> str:
        async with recorder.episode(slot="researcher"):
            for step in range(2):
                async with recorder.interaction(messages=f"{topic} {step}") as turn:
                    await asyncio.sleep(0)
                    turn.respond("found")
        return topic

    async def main() -> str:
        async with recorder.episode(slot="planner"):
            async with recorder.interaction(messages=[USER]) as turn:
                turn.respond("calling")
            await asyncio.gather(research("a"), research("b"))
            return turn.interaction_id

    caller = asyncio.run(main())
    inner = [v for v in sink.interactions if v["slot"] == "researcher"]
    assert {v["parent_id"] for v in inner} == {caller}
    assert sorted(v["step"] for v in sink.interactions) == list(range(6))  # two tools nobody repeated: one more
    assert len({v["episode_id"] for v in sink.interactions}) == 1


def test_a_tool_outside_any_episode_is_an_interaction_of_its_own(
    recorder: treadle.Recorder, sink: treadle.MemorySink
) -> None:
    @recorder.tool
    def ping() -> Iterator[str]:
        yield "po"
        yield "ng"

    assert "".join(ping()) == "pong"
    (value,) = sink.interactions
    assert (value["messages"][1]["content"], value["response"]) == ("pong", [])


def test_tools_in_threads_lose_nothing(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    import contextvars

    @recorder.tool
    def square(n: int) -> int:
        return n * n

    with recorder.interaction(messages=[USER]) as turn:
        turn.respond("computing")
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(square, n)) for n in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    (value,) = sink.interactions
    pairs = value["messages"][2:]
    for asked, result in zip(pairs[::2], pairs[1::2], strict=True):
        assert asked["tool_calls"][0]["id"] == result["tool_call_id"]
    assert sorted(int(m["content"]) for m in pairs[1::2]) == [n * n for n in range(40)]
