"""The HTTP hook under the real OpenAI and Anthropic clients, against a local server that speaks their APIs."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import treadle

sys.path.append(str(Path(__file__).parent))
from api_server import ARGUMENTS, KEY, TEXT, ApiServer

anthropic = pytest.importorskip("anthropic")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")
httpx2 = pytest.importorskip("httpx2")

# 2.x of the client has no argument for it any more
WARM = {"temperature": 0.5}
USER = {"role": "user", "content": "hi"}
CALL = {"name": "weather", "arguments": json.dumps(ARGUMENTS, ensure_ascii=False, separators=(",", ":"))}
FUNCTION = {"name": "weather", "description": "the weather", "parameters": {"type": "object", "properties": {}}}
CHAT_TOOL = {"type": "function", "function": FUNCTION}


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def sink() -> treadle.MemorySink:
    return treadle.MemorySink()


@pytest.fixture
def recorder(sink: treadle.MemorySink, api: ApiServer) -> Iterator[treadle.Recorder]:
    api.reset()
    with treadle.Recorder("shop", agent="desk", sink=sink) as made:
        treadle.instrument(made)
        yield made
        treadle.uninstrument()
    assert KEY not in b"".join(sent.value for sent in sink.sent).decode()


@pytest.fixture
def chat(api: ApiServer) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=KEY) as client:
        yield client


@pytest.fixture
def claude(api: ApiServer) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=api.url, api_key=KEY) as client:
        yield client


def only(sink: treadle.MemorySink) -> dict[str, Any]:
    (interaction,) = sink.interactions
    return interaction


async def with_async_clients(api: ApiServer, work: Callable[[Any, Any], Any]) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=KEY) as gpt,
        anthropic.AsyncAnthropic(base_url=api.url, api_key=KEY) as claude,
    ):
        await work(gpt, claude)


# Each way to ask for the same answer: the model's text must be the same, and nothing else may be lost.
def chat_plain(chat: Any, claude: Any) -> str:
    answer: str = chat.chat.completions.create(model="m", messages=[USER], temperature=0.5).choices[0].message.content
    return answer


def chat_stream(chat: Any, claude: Any) -> str:
    chunks = chat.chat.completions.create(
        model="m", messages=[USER], temperature=0.5, stream=True, stream_options={"include_usage": True}
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def chat_stream_helper(chat: Any, claude: Any) -> str:
    with chat.chat.completions.stream(
        model="m", messages=[USER], temperature=0.5, stream_options={"include_usage": True}
    ) as stream:
        text: str = stream.get_final_completion().choices[0].message.content
    return text


def chat_raw(chat: Any, claude: Any) -> str:
    raw = chat.chat.completions.with_raw_response.create(model="m", messages=[USER], temperature=0.5)
    text: str = raw.parse().choices[0].message.content
    return text


def chat_options(chat: Any, claude: Any) -> str:
    return chat_plain(chat.with_options(timeout=5), claude)


def chat_gzip(chat: Any, claude: Any) -> str:
    answer = chat.chat.completions.create(model="m-gzip", messages=[USER], temperature=0.5)
    return str(answer.choices[0].message.content)


def chat_gzip_stream(chat: Any, claude: Any) -> str:
    chunks = chat.chat.completions.create(
        model="m-gzip", messages=[USER], temperature=0.5, stream=True, stream_options={"include_usage": True}
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def responses_plain(chat: Any, claude: Any) -> str:
    return str(chat.responses.create(model="m", input="hi", temperature=0.5).output_text)


def responses_stream(chat: Any, claude: Any) -> str:
    events = chat.responses.create(model="m", input=[USER], temperature=0.5, stream=True)
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def claude_plain(chat: Any, claude: Any) -> str:
    return str(claude.messages.create(model="m", messages=[USER], extra_body=WARM, max_tokens=9).content[0].text)


def claude_stream(chat: Any, claude: Any) -> str:
    events = claude.messages.create(model="m", messages=[USER], extra_body=WARM, max_tokens=9, stream=True)
    return "".join(e.delta.text for e in events if e.type == "content_block_delta")


def claude_stream_helper(chat: Any, claude: Any) -> str:
    with claude.messages.stream(model="m-gzip", messages=[USER], extra_body=WARM, max_tokens=9) as stream:
        return str(stream.get_final_text())


WAYS = [
    chat_plain,
    chat_stream,
    chat_stream_helper,
    chat_raw,
    chat_options,
    chat_gzip,
    chat_gzip_stream,
    responses_plain,
    responses_stream,
    claude_plain,
    claude_stream,
    claude_stream_helper,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_one_call_is_one_interaction_however_it_is_made(
    way: Callable[[Any, Any], str], sink: treadle.MemorySink, recorder: treadle.Recorder, chat: Any, claude: Any
) -> None:
    assert way(chat, claude) == TEXT
    seen = only(sink)
    assert seen["messages"][0] == USER
    assert (seen["messages"][1]["role"], seen["messages"][1]["content"]) == ("assistant", TEXT)
    assert len(seen["messages"]) == 2
    assert seen["response"] == [1]
    assert seen["agent"] == "desk"
    assert seen["model"] in ("m-2026", "m-gzip-2026")
    assert seen["finish_reason"] == "stop"
    assert seen.get("status", "ok") == "ok"
    assert seen["sampling"]["temperature"] == 0.5
    assert (seen["usage"]["prompt_tokens"], seen["usage"]["completion_tokens"]) == (5, 3)
    assert seen["references"][0].startswith("response:")
    assert ("first_token_ms" in seen) == ("stream" in way.__name__)
    assert recorder.stats().refused == 0


def test_async_clients_are_recorded_like_sync_ones(
    sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer
) -> None:
    async def work(gpt: Any, claude: Any) -> None:
        answers = await asyncio.gather(*(gpt.chat.completions.create(model=f"m{n}", messages=[USER]) for n in range(5)))
        assert [answer.choices[0].message.content for answer in answers] == [TEXT] * 5
        stream = await gpt.chat.completions.create(model="m5", messages=[USER], stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == TEXT
        assert (await gpt.responses.create(model="m6", input="hi")).output_text == TEXT
        async with gpt.responses.stream(model="m7", input="hi") as events:
            assert (await events.get_final_response()).output_text == TEXT
        assert (await claude.messages.create(model="m8", messages=[USER], max_tokens=9)).content[0].text == TEXT
        async with claude.messages.stream(model="m9", messages=[USER], max_tokens=9) as answer:
            assert await answer.get_final_text() == TEXT

    asyncio.run(with_async_clients(api, work))
    assert {value["model"] for value in sink.interactions} == {f"m{n}-2026" for n in range(10)}
    assert [value["messages"][1]["content"] for value in sink.interactions] == [TEXT] * 10


def test_a_tool_call_and_its_result_have_one_form_in_every_api(
    sink: treadle.MemorySink, recorder: treadle.Recorder, chat: Any, claude: Any
) -> None:
    for stream in (False, True):
        first = chat.chat.completions.create(model="tool", messages=[USER], tools=[CHAT_TOOL], stream=stream)
        if stream:
            list(first)
        else:
            answer = first.choices[0].message
            result = {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "rain"}
            chat.chat.completions.create(model="tool", messages=[USER, answer, result], tools=[CHAT_TOOL])
        flat = {"type": "function", **FUNCTION, "strict": False}
        first = chat.responses.create(model="tool", input=[USER], instructions="be kind", tools=[flat], stream=stream)
        if stream:
            list(first)
        else:
            output = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "rain"}
            chat.responses.create(model="tool", input=[USER, *first.output, output], tools=[flat])
        theirs = {"name": "weather", "description": "the weather", "input_schema": FUNCTION["parameters"]}
        said: dict[str, Any] = {"model": "tool", "max_tokens": 9, "tools": [theirs], "system": "be kind"}
        first = claude.messages.create(messages=[USER], stream=stream, **said)
        if stream:
            list(first)
        else:
            block = {"type": "tool_result", "tool_use_id": first.content[1].id, "content": "rain"}
            again = [USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": [block]}]
            claude.messages.create(messages=again, **said)
    calling = [value for value in sink.interactions if value["finish_reason"] == "tool_calls"]
    told = [value for value in sink.interactions if value["finish_reason"] == "stop"]
    assert len(calling) == 6
    assert len(told) == 3
    for value in calling:
        (call,) = value["messages"][-1]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == ARGUMENTS
        assert call["function"]["name"] == "weather"
        assert call["type"] == "function"
        assert set(call) == {"id", "type", "function"}
        function = value["tools"][0]["function"]
        assert (function["name"], function["parameters"]) == ("weather", FUNCTION["parameters"])
    for value in told:
        # the assistant's turn is repeated in the form in which it was recorded: growing transcripts share their beginning
        before = next(c for c in calling if c["messages"][-1]["tool_calls"][0]["id"] in json.dumps(value["messages"]))
        asked = len(before["messages"]) if before["messages"][0]["role"] == value["messages"][0]["role"] else 2
        assert value["messages"][asked - 1] == before["messages"][-1]
        assert value["messages"][asked]["role"] == "tool"
        assert value["messages"][asked]["content"] == "rain"
        assert value["messages"][asked]["tool_call_id"] == before["messages"][-1]["tool_calls"][0]["id"]
    assert [v["messages"][0]["content"] for v in calling if v["messages"][0]["role"] == "system"] == ["be kind"] * 4


def test_every_sample_of_a_request_is_an_interaction(
    sink: treadle.MemorySink, recorder: treadle.Recorder, chat: Any
) -> None:
    answer = chat.chat.completions.create(model="m", messages=[USER], n=3, logprobs=True, seed=7)
    first, second, third = sink.interactions
    assert first["references"] == [f"response:{answer.id}"]
    assert [second["references"], third["references"]] == [[f"response:{answer.id}:{n}"] for n in (1, 2)]
    assert first["logprobs"] == [[-0.5] * 3]
    assert first["token_ids"] == [[1, 2, 3]]
    assert first["sampling"] == {"n": 3, "logprobs": True, "seed": 7}
    assert "usage" in first
    assert "usage" not in second
    # the handle is found by the response object
    recorder.outcome(answer, "reward", 1.0)
    assert sink.outcomes[0]["interaction_id"] == first["interaction_id"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_retried_call_is_one_interaction_with_attempts(
    stream: bool, sink: treadle.MemorySink, recorder: treadle.Recorder, chat: Any, claude: Any
) -> None:
    with recorder.episode() as episode:
        answer = chat.chat.completions.create(model=f"flaky-{stream}", messages=[USER], stream=stream)
        if stream:
            list(answer)
        events = claude.messages.create(model=f"flaky-{stream}-2", messages=[USER], max_tokens=9, stream=stream)
        if stream:
            list(events)
        chat.chat.completions.create(model="m", messages=[USER])
    assert len(sink.interactions) == 3
    for value in sink.interactions[:2]:
        (attempt,) = value["attempts"]
        assert attempt["status"] == 429
        # of a stream the client does not read why it was refused, before it tries again
        assert attempt["error"] == (None if stream else "api_error: too many")
        assert value["started_at"] == attempt["started_at"] <= attempt["ended_at"] <= value["ended_at"]
        assert value["messages"][1]["content"] == TEXT
        assert value.get("status", "ok") == "ok"
    assert [value.get("step", 0) for value in sink.interactions] == [0, 1, 2]
    assert {value["episode_id"] for value in sink.interactions} == {episode.episode_id}


def test_the_last_failure_of_a_call_is_an_interaction_with_status_error(
    sink: treadle.MemorySink, recorder: treadle.Recorder, chat: Any, claude: Any, api: ApiServer
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError):
            chat.with_options(max_retries=1).chat.completions.create(model="broken", messages=[USER], stream=stream)
        with pytest.raises(anthropic.InternalServerError):
            claude.with_options(max_retries=0).messages.create(
                model="broken", messages=[USER], max_tokens=9, stream=stream
            )
        with pytest.raises(openai.AuthenticationError):
            chat.responses.create(model="denied", input="hi", stream=stream)
    assert len(sink.interactions) == 6
    assert [len(value.get("attempts", ())) for value in sink.interactions] == [1, 0, 0] * 2
    for value in sink.interactions:
        assert value["status"] == "error"
        assert value["messages"] == [USER]
        assert value["response"] == []
    assert [value["error"] for value in sink.interactions[:3]] == [
        "HTTP 500: api_error: it broke",
        "HTTP 500: api_error: it broke",
        "HTTP 401: api_error: not you",
    ]

    async def work(gpt: Any, claude: Any) -> None:
        with pytest.raises(openai.InternalServerError):
            await gpt.with_options(max_retries=1).chat.completions.create(model="broken", messages=[USER])

    sink.clear()
    asyncio.run(with_async_clients(api, work))
    assert len(only(sink)["attempts"]) == 1


def test_an_unreachable_server_is_recorded(sink: treadle.MemorySink, recorder: treadle.Recorder) -> None:
    with openai.OpenAI(base_url="http://127.0.0.1:1/v1", api_key=KEY, max_retries=1) as client:
        with pytest.raises(openai.APIConnectionError):
            client.chat.completions.create(model="m", messages=[USER])
    value = only(sink)
    assert value["error"].startswith("ConnectError")
    assert value["attempts"][0]["status"] is None


def test_a_failed_try_that_nobody_repeats_is_recorded_in_the_end(
    sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer
) -> None:
    # a client of another make that numbers its tries too, so that nothing tells how many it has left
    body = {"model": "broken", "messages": [USER]}
    with httpx.Client() as client:
        client.post(f"{api.url}/v1/chat/completions", json=body, headers={"x-stainless-retry-count": "0"})
    assert sink.interactions == []
    treadle.uninstrument()
    assert only(sink)["error"] == "HTTP 500: api_error: it broke"


def test_a_body_that_is_taken_in_pieces_is_a_whole_answer_all_the_same(
    sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer
) -> None:
    body = {"model": "m", "messages": [USER]}
    with httpx.Client() as client:
        with client.stream("POST", f"{api.url}/v1/chat/completions", json=body) as answer:
            assert b"".join(answer.iter_raw())
    whole = only(sink)
    assert (whole["messages"][1]["content"], whole.get("error")) == (TEXT, None)
    sink.clear()
    with httpx.Client() as client:
        with client.stream("POST", f"{api.url}/v1/chat/completions", json=body):
            pass
    assert only(sink)["error"] == "truncated: the caller left the stream"


def test_a_stream_that_is_left_or_cut_is_recorded_as_truncated(
    sink: treadle.MemorySink, recorder: treadle.Recorder, chat: Any, claude: Any, api: ApiServer
) -> None:
    stream = chat.chat.completions.create(model="slow", messages=[USER], stream=True)
    next(stream)
    assert next(stream).choices[0].delta.content == "Hel"
    stream.close()
    left = only(sink)
    assert left["messages"][1]["content"].startswith("Hel")
    assert (left["status"], left["finish_reason"]) == ("error", "truncated")
    assert left["error"] == "truncated: the caller left the stream"
    sink.clear()

    stream = chat.chat.completions.create(model="slow", messages=[USER], stream=True)
    next(stream)
    del stream
    gc.collect()
    assert only(sink)["error"] == "truncated: the caller left the stream"
    sink.clear()

    with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
        list(chat.chat.completions.create(model="drop", messages=[USER], stream=True))
    cut = only(sink)
    assert cut["messages"][1]["content"] == "Hello, "
    assert cut["error"].startswith("truncated: RemoteProtocolError")
    sink.clear()

    with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
        list(chat.responses.create(model="drop-late", input="hi", stream=True))
    assert only(sink)["status"] == "error"
    sink.clear()

    with pytest.raises((anthropic.APIConnectionError, httpx2.RemoteProtocolError)):
        list(claude.messages.create(model="drop", messages=[USER], max_tokens=9, stream=True))
    assert only(sink)["messages"][1]["content"] == "Hel"
    sink.clear()

    async def work(gpt: Any, claude: Any) -> None:
        async def read() -> None:
            async for _ in await gpt.chat.completions.create(model="slow", messages=[USER], stream=True):
                started.set()

        started = asyncio.Event()
        task = asyncio.create_task(read())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(with_async_clients(api, work))
    assert only(sink)["finish_reason"] == "truncated"


def test_what_the_host_sees_is_unchanged(sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer) -> None:
    url = f"{api.url}/v1/chat/completions"
    body = {"model": "gzip", "messages": [USER], "stream": True}

    def read(module: Any) -> tuple[bytes, bytes]:
        with module.Client() as client:
            with client.stream("POST", url, json=body) as response:
                raw = b"".join(response.iter_raw())
            with client.stream("POST", url, json=body) as response:
                return raw, response.read()

    hooked = [read(module) for module in (httpx, httpx2)]
    treadle.uninstrument()
    plain = [read(module) for module in (httpx, httpx2)]
    same = re.compile(rb"chatcmpl-\w+")  # each answer has an id of its own
    assert [same.sub(b"", h[1]) for h in hooked] == [same.sub(b"", p[1]) for p in plain]
    assert all(h[0][:2] == b"\x1f\x8b" for h in hooked)
    assert len(sink.interactions) == 4


def test_other_requests_pass_unnoticed(
    sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    with recorder.episode() as episode, httpx.Client() as client:
        client.post(f"{api.url}/v3/shop/messages", json={"to": "a", "text": "b"})
        client.post(f"{api.url}/threads/7/messages", json={"messages": ["a"]})
        client.get(f"{api.url}/v1/messages")
        client.post(f"{api.url}/v1/embeddings", json={"input": "x"})
        assert episode.next_step() <= 1
    assert sink.interactions == []
    assert caplog.records == []


def test_an_answer_that_is_none_is_recorded_with_the_reason(
    sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer
) -> None:
    with httpx.Client() as client:
        page = client.post(f"{api.url}/v1/chat/completions", json={"model": "html", "messages": [USER]})
    assert page.text == "<html>a proxy</html>"
    value = only(sink)
    assert value["error"].startswith("the response is not JSON")
    assert value["messages"] == [USER]


def test_a_recorder_that_fails_does_not_reach_the_host(
    api: ApiServer, chat: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(treadle.MemorySink):
        def send_many(self, events: Any, done: Any) -> None:
            raise RuntimeError("no")

    treadle.instrument(treadle.Recorder("shop", sink=Broken()))
    try:
        with caplog.at_level(logging.WARNING, "treadle"):
            assert chat_plain(chat, None) == TEXT
            assert chat_stream(chat, None) == TEXT
    finally:
        treadle.uninstrument()
    assert "could not be recorded" in caplog.text


def test_instrumenting_twice_records_once_and_uninstrumenting_ends_it(
    sink: treadle.MemorySink, recorder: treadle.Recorder, chat: Any
) -> None:
    assert treadle.instrument(recorder) is recorder
    chat_plain(chat, None)
    assert len(sink.interactions) == 1
    treadle.uninstrument()
    chat_plain(chat, None)
    assert len(sink.interactions) == 1
    assert not hasattr(httpx.Client.send, "_treadle")
    assert not hasattr(httpx2.AsyncClient.send, "_treadle")


def test_a_wrapped_client_alone_is_recorded(api: ApiServer) -> None:
    sink, other = treadle.MemorySink(), treadle.MemorySink()
    with treadle.Recorder("shop", sink=sink) as recorder, treadle.Recorder("shop", sink=other) as everywhere:
        with (
            openai.OpenAI(base_url=f"{api.url}/v1", api_key=KEY) as wrapped,
            openai.OpenAI(base_url=f"{api.url}/v1", api_key=KEY) as bare,
        ):
            assert treadle.wrap(treadle.wrap(wrapped, recorder), recorder) is wrapped
            chat_plain(wrapped, None)
            chat_stream(wrapped.with_options(timeout=3), None)
            chat_plain(bare, None)
            assert len(sink.interactions) == 2
            treadle.instrument(everywhere)
            chat_plain(wrapped, None)
            chat_plain(bare, None)
            treadle.uninstrument()
        assert (len(sink.interactions), len(other.interactions)) == (3, 1)

        async def work(gpt: Any, claude: Any) -> None:
            treadle.wrap(claude, recorder)
            await claude.messages.create(model="m", messages=[USER], max_tokens=9)
            await gpt.chat.completions.create(model="m", messages=[USER])

        asyncio.run(with_async_clients(api, work))
        assert len(sink.interactions) == 4
        with pytest.raises(TypeError, match="not a client that can be wrapped"):
            treadle.wrap(object(), recorder)


def test_calls_join_the_open_episode_and_leave_explicit_interactions_alone(
    sink: treadle.MemorySink, recorder: treadle.Recorder, chat: Any
) -> None:
    with recorder.episode(task_id="t", slot="coder", tags={"a": 1}, references=["pr:o/r#1"]) as episode:
        stream = chat.chat.completions.create(model="m", messages=[USER], stream=True)
        with recorder.interaction(messages=[USER]) as turn:
            turn.respond(chat.chat.completions.create(model="m", messages=[USER]))
    list(stream)  # what was begun inside belongs to it, whenever it ends
    explicit, streamed = sink.interactions
    assert explicit["interaction_id"] == turn.interaction_id
    assert streamed["episode_id"] == explicit["episode_id"] == episode.episode_id
    assert (streamed.get("step", 0), explicit["step"]) == (0, 1)
    assert (streamed["task_id"], streamed["slot"], streamed["tags"]) == ("t", "coder", {"a": 1})
    assert streamed["references"][0] == "pr:o/r#1"
    assert len(streamed["references"]) == 2


def test_threads_keep_their_calls_apart(sink: treadle.MemorySink, recorder: treadle.Recorder, chat: Any) -> None:
    def work(n: int) -> None:
        with recorder.episode(episode_id=f"e{n}"):
            chat.chat.completions.create(model=f"flaky-thread-{n}", messages=[USER])
            list(chat.chat.completions.create(model="m", messages=[USER], stream=True))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for n in range(8):
        first, second = (value for value in sink.interactions if value["episode_id"] == f"e{n}")
        assert first["model"] == f"flaky-thread-{n}-2026"
        assert len(first["attempts"]) == 1
        assert second["step"] == 1


def test_odd_text_survives(sink: treadle.MemorySink, recorder: treadle.Recorder, api: ApiServer) -> None:
    odd = "\u2028 \x00 \U0001f600 \u202e"
    raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": odd}]}, ensure_ascii=False).encode()
    lone = b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}'
    with httpx2.Client() as client:
        for body in (raw, lone):
            client.post(f"{api.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert [value["messages"][0]["content"] for value in sink.interactions] == [odd, "\ud800"]


def test_a_chunk_costs_next_to_nothing() -> None:
    from treadle.integrations._http import _tee_of

    class Source(httpx.SyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[bytes]:
            return iter(chunks)

    class NoCall:
        def streamed(self, *_: Any) -> None:
            """Nothing."""

    chunks = [b"data: {}\n\n"] * 20_000
    tee: Any = _tee_of(httpx)

    def seconds(make: Callable[[], Any]) -> float:
        began = time.perf_counter()
        for _ in make():
            pass
        return time.perf_counter() - began

    bare = min(seconds(Source) for _ in range(7))
    teed = statistics.median(seconds(lambda: tee(Source(), NoCall(), 200, {})) for _ in range(7))
    per_chunk_us = (teed - bare) / len(chunks) * 1e6
    print(f"per chunk: {per_chunk_us:.3f} us")
    assert per_chunk_us < 5  # about 0.1 where nothing else runs


def test_calls_arrive_through_kafka(broker: str, workspace_name: str, api: ApiServer, chat: Any) -> None:
    from treadle.log import read
    from treadle_schemas import WorkspaceSettings
    from treadle_schemas.codec import decode
    from treadle_schemas.topics import topic
    from treadle_streams import workspaces

    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=1))
    with treadle.Recorder(workspace_name, bootstrap_servers=broker) as recorder:
        treadle.instrument(recorder)
        try:
            assert chat_plain(chat, None) == TEXT
            assert chat_stream(chat, None) == TEXT
        finally:
            treadle.uninstrument()
        assert recorder.flush(30) == 0
        assert recorder.stats() == (2, 2, 0, 0, 0)
    arrived = [decode(r.value, r.headers).data for r in read(broker, topic(workspace_name, "interactions"), 1)]
    assert [value["messages"][1]["content"] for value in arrived] == [TEXT] * 2
