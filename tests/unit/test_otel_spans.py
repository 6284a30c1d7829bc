"""Spans as interactions, without the SDK: what real instrumentations wrote, each convention, where a call belongs, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from treadle.integrations._formats._genai_out import span_of
from treadle.integrations._spans import Calls, RawSpan, calls_of
from treadle_schemas.canonical import dumps, loads
from treadle_schemas.errors import FieldError
from treadle_streams.importing.formats.otlp import spans_of

FIXTURES = Path(__file__).parent.parent / "fixtures" / "spans"
SYSTEM = {"role": "system", "content": "be kind"}
HI = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "Hello, world"}
RAIN = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
TRACE = "5b8efff798038103d269b633813fc60c"


def called(call_id: str = "c1") -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": '{"city":"Zürich"}'}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def span(span_id: str, attributes: dict[str, Any], **said: Any) -> RawSpan:
    common: dict[str, Any] = {
        "trace_id": TRACE,
        "parent_id": None,
        "name": span_id,
        "started_at": "2026-05-29T13:46:20.000000Z",
        "ended_at": "2026-05-29T13:46:21.000000Z",
        "where": "$.attributes",
    }
    return RawSpan(span_id=span_id, attributes=attributes, **{**common, **said})


def chat(span_id: str, **said: Any) -> RawSpan:
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": parts(HI),
        "gen_ai.output.messages": parts(said.pop("answer", ANSWER)),
        **said.pop("more", {}),
    }
    return span(span_id, attributes, **said)


def parts(*messages: dict[str, Any]) -> str:
    """Chat messages as the conventions write them."""
    name, attributes = span_of({"messages": list(messages), "response": []}, "h", content=True)
    assert name == "chat"
    return str(attributes["gen_ai.input.messages"])


def only(found: Calls) -> dict[str, Any]:
    assert found.refused == []
    (call,) = found.calls
    return call


# What real instrumentations wrote: one file each, made with OTLP's encoder.


@pytest.mark.parametrize("name", ["openinference", "openllmetry", "logfire", "litellm"])
def test_spans_of_real_instrumentations_become_whole_interactions(name: str) -> None:
    found = calls_of(spans_of(loads((FIXTURES / f"{name}.json").read_bytes())))
    plain, *rest = [call for call in found.calls if "error" not in call]
    assert plain["messages"] == [SYSTEM, HI, ANSWER]
    assert (plain["response"], plain["model"], plain["sampling"]) == ([2], "m-2026", {"temperature": 0.5})
    assert (plain["finish_reason"], plain["agent"], plain["tags"]) == ("stop", "desk", {"provider": "openai"})
    assert {n: plain["usage"][n] for n in ("prompt_tokens", "completion_tokens", "total_tokens")} == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
    }
    assert plain["references"][0].startswith("response:chatcmpl-")
    (failed,) = [call for call in found.calls if "error" in call]
    assert (failed["messages"], failed["response"], failed["status"]) == ([SYSTEM, HI], [], "error")
    assert "it broke" in failed["error"]
    assert failed["model"] == "broken"
    if name == "litellm":  # its spans do not hold the calls of tools
        assert [("a tool was called" in str(err)) for err in found.refused] == [True]
        return
    assert found.refused == []
    calls = [call for call in rest if call["messages"][-1].get("tool_calls")]
    for call in calls:
        (asked,) = call["messages"][-1]["tool_calls"]
        assert (asked["function"]["name"], loads(asked["function"]["arguments"])) == ("weather", {"city": "Zürich"})
        assert call["tools"][0]["function"]["name"] == "weather"
    assert calls[0]["finish_reason"] == "tool_calls"
    if name in ("openinference", "openllmetry"):
        assert [call["messages"][2:] for call in rest if len(call["messages"]) == 5] == [
            [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
                    ],
                },
                RAIN,
                ANSWER,
            ]
        ]
        streams = [call for call in rest if call.get("first_token_ms", 0) > 0]
        assert len(streams) == 3


def test_protobuf_and_json_of_a_request_say_the_same() -> None:
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    json_format = pytest.importorskip("google.protobuf.json_format")
    common = pytest.importorskip("opentelemetry.proto.common.v1.common_pb2")
    request = service.ExportTraceServiceRequest()
    made = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(
            trace_id=bytes.fromhex(TRACE),
            span_id=bytes.fromhex("00f067aa0ba90202"),
            start_time_unix_nano=1780062380000000000,
            end_time_unix_nano=1780062381250000000,
        )
    )
    for name, text in {"gen_ai.operation.name": "chat", "gen_ai.prompt": "hi", "gen_ai.completion": "yo"}.items():
        made.attributes.add(key=name, value=common.AnyValue(string_value=text))
    made.attributes.add(key="gen_ai.usage.input_tokens", value=common.AnyValue(int_value=2**40))
    received = service.ExportTraceServiceRequest.FromString(request.SerializeToString())
    call = only(calls_of(spans_of(json_format.MessageToDict(received))))
    assert (call["interaction_id"], call["episode_id"]) == ("00f067aa0ba90202", TRACE)
    assert [m["content"] for m in call["messages"]] == ["hi", "yo"]
    assert call["usage"]["input_tokens"] == 2**40
    assert (call["started_at"], call["ended_at"]) == ("2026-05-29T13:46:20.000000Z", "2026-05-29T13:46:21.250000Z")


# Each convention says the same.

_INDEXED = {
    "0.role": "system",
    "0.content": "be kind",
    "1.role": "user",
    "1.content": "hi",
    "2.role": "assistant",
    "2.tool_calls.0.id": "c1",
    "2.tool_calls.0.name": "weather",
    "2.tool_calls.0.arguments": '{"city":"Zürich"}',
    "3.role": "tool",
    "3.tool_call_id": "c1",
    "3.content": "rain",
}
_END = {"0.role": "assistant", "0.content": "Hello, world", "0.finish_reason": "stop"}
_OPEN_INFERENCE = {
    name.replace(".", ".message.", 1).replace("tool_calls.0.", "tool_calls.0.tool_call."): text
    for name, text in _INDEXED.items()
}
_CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}


def under(prefix: str, attributes: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": given for name, given in attributes.items()}


CONVENTIONS: dict[str, tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]] = {
    "messages as attributes": (
        {
            **_CHAT,
            "gen_ai.system_instructions": '[{"type":"text","content":"be kind"}]',
            "gen_ai.input.messages": parts(HI, called(), RAIN),
            "gen_ai.output.messages": parts(ANSWER),
            "gen_ai.response.finish_reasons": ["stop"],
        },
        [],
    ),
    "messages as nested attributes": (
        {
            **_CHAT,
            "gen_ai.input.messages": loads(parts(SYSTEM, HI, called(), RAIN)),
            "gen_ai.output.messages": loads(parts(ANSWER)),
            "gen_ai.response.finish_reasons": ["stop"],
        },
        [],
    ),
    "details in an event": (
        _CHAT,
        [
            (
                "gen_ai.client.inference.operation.details",
                {
                    "gen_ai.input.messages": parts(SYSTEM, HI, called(), RAIN),
                    "gen_ai.output.messages": dumps([{**loads(parts(ANSWER))[0], "finish_reason": "stop"}]).decode(),
                },
            )
        ],
    ),
    "an event a message": (
        _CHAT,
        [
            ("gen_ai.system.message", {"content": "be kind"}),
            ("gen_ai.user.message", {"content": "hi"}),
            ("gen_ai.assistant.message", {"tool_calls": dumps(called()["tool_calls"]).decode()}),
            ("gen_ai.tool.message", {"id": "c1", "content": "rain"}),
            ("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": '{"content":"Hello, world"}'}),
        ],
    ),
    "prompt and completion as events": (
        _CHAT,
        [
            ("gen_ai.content.prompt", {"gen_ai.prompt": dumps([SYSTEM, HI, called(), RAIN]).decode()}),
            (
                "gen_ai.content.completion",
                {"gen_ai.completion": dumps([{**ANSWER, "finish_reason": "stop"}]).decode()},
            ),
        ],
    ),
    "indexed, gen_ai": ({**_CHAT, **under("gen_ai.prompt", _INDEXED), **under("gen_ai.completion", _END)}, []),
    "indexed, llm": (
        {"llm.request.type": "chat", **under("llm.prompts", _INDEXED), **under("llm.completions", _END)},
        [],
    ),
    "OpenInference": (
        {
            "openinference.span.kind": "LLM",
            **under("llm.input_messages", _OPEN_INFERENCE),
            "llm.output_messages.0.message.role": "assistant",
            "llm.output_messages.0.message.content": "Hello, world",
            "llm.finish_reason": "stop",
        },
        [],
    ),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention_says_the_same(name: str) -> None:
    attributes, events = CONVENTIONS[name]
    call = only(calls_of([span("a", attributes, events=events)]))
    asked = call["messages"][2]
    assert asked.get("content") is None
    assert [call["messages"][0], call["messages"][1], call["messages"][3:]] == [SYSTEM, HI, [RAIN, ANSWER]]
    assert asked["tool_calls"] == called()["tool_calls"]
    assert (call["response"], call["finish_reason"]) == ([4], "stop")


def test_a_prompt_that_only_looks_like_json_is_text() -> None:
    for text in ("[INST] hi", '{"half": ', "[1, 2]"):
        call = only(
            calls_of(
                [
                    span(
                        "a",
                        {
                            **_CHAT,
                            "gen_ai.prompt.0.role": "user",
                            "gen_ai.prompt.0.content": text,
                            "gen_ai.completion.0.content": "yo",
                        },
                    )
                ]
            )
        )
        assert call["messages"][0] == {"role": "user", "content": text}


def test_images_and_thoughts_are_kept() -> None:
    said = {
        "role": "user",
        "content": [
            {"type": "text", "text": "what is it?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        ],
    }
    thought = {**ANSWER, "reasoning_content": "hm"}
    attributes = {**_CHAT, "gen_ai.input.messages": parts(said), "gen_ai.output.messages": parts(thought)}
    assert only(calls_of([span("a", attributes)]))["messages"] == [said, thought]


def test_several_choices_are_interactions_of_their_own() -> None:
    attributes = {
        **_CHAT,
        "gen_ai.input.messages": parts(HI),
        "gen_ai.output.messages": parts(ANSWER, {**ANSWER, "content": "Hello"}),
        "gen_ai.response.finish_reasons": ["stop", "length"],
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.id": "r",
        "gen_ai.usage.output_tokens": 9,
    }
    first, second = calls_of([span("a", attributes)]).calls
    assert [c["interaction_id"] for c in (first, second)] == ["a", "a:1"]
    assert [c["messages"][1]["content"] for c in (first, second)] == ["Hello, world", "Hello"]
    assert [c["finish_reason"] for c in (first, second)] == ["stop", "length"]
    assert [c["references"] for c in (first, second)] == [["response:r"], ["response:r:1"]]
    assert (first["sampling"], "usage" in first, "usage" in second) == ({"n": 2}, True, False)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"attributes": _CHAT}, "holds no messages"),
        ({"attributes": {**_CHAT, "gen_ai.input.messages": parts(HI)[:-5]}}, "gen_ai.input.messages"),
        (
            {"attributes": {**_CHAT, "gen_ai.input.messages": parts(HI)}, "dropped": 3},
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
        ),
        (
            {
                "attributes": {
                    **_CHAT,
                    "gen_ai.input.messages": parts(HI),
                    "gen_ai.output.messages": '[{"role":"assistant","parts":[]}]',
                    "gen_ai.response.finish_reasons": '["tool_calls"]',
                }
            },
            "does not hold the call",
        ),
        (
            {"attributes": {**_CHAT, "gen_ai.input.messages": parts(HI), "anthropic.content.truncated": True}},
            "max_content_bytes",
        ),
    ],
)
def test_what_is_not_whole_is_refused_with_the_way_out(said: dict[str, Any], words: str) -> None:
    found = calls_of([span("a", **said), chat("b"), FieldError("$.x", "is no span")])
    assert [call["interaction_id"] for call in found.calls] == ["b"]
    assert words in str(found.refused[1])
    assert len(found.refused) == 2


# Where a call belongs.


def test_agents_are_slots_and_a_tools_calls_have_the_caller_as_parent() -> None:
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "Planner", "gen_ai.conversation.id": "conv"}
    coder = {"traceloop.span.kind": "agent", "traceloop.entity.name": "Coder"}
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "c1"}
    found = calls_of(
        [
            chat("sub", parent_id="coder"),
            chat("decoy", parent_id="planner", ended_at="2026-05-29T13:46:20.500000Z"),
            chat("asks", parent_id="planner", answer=called()),
            span("tool", tool, parent_id="planner", started_at="2026-05-29T13:46:21.000000Z"),
            span("coder", coder, parent_id="tool"),
            span("planner", agent, parent_id="elsewhere", service="shop"),
            span("get", {"http.route": "/"}),
        ]
    )
    by_id = {call["interaction_id"]: call for call in found.calls}
    assert [(by_id[n]["slot"], by_id[n].get("parent_id")) for n in ("sub", "asks")] == [
        ("coder", "asks"),
        ("planner", None),
    ]
    assert {call["episode_id"] for call in found.calls} == {TRACE}
    assert {call["tags"]["conversation_id"] for call in found.calls} == {"conv"}
    assert dict(found.passed) == {"tool": 1, "agent": 2, "other": 1}


def test_without_the_calls_id_the_latest_call_of_the_agent_called_the_tool() -> None:
    tool = {"openinference.span.kind": "TOOL"}
    found = calls_of(
        [
            chat("first", ended_at="2026-05-29T13:46:20.500000Z"),
            chat("second"),
            span("tool", tool, started_at="2026-05-29T13:46:21.000000Z"),
            chat("later", started_at="2026-05-29T13:46:22Z", ended_at="2026-05-29T13:46:23Z"),
            chat("sub", parent_id="tool"),
        ]
    )
    assert [call.get("parent_id") for call in found.calls] == [None, None, None, "second"]


def test_of_a_call_around_a_call_the_inner_one_counts() -> None:
    found = calls_of([chat("inner", parent_id="http"), span("http", {}, parent_id="outer"), chat("outer")])
    assert [call["interaction_id"] for call in found.calls] == ["inner"]
    assert found.passed["call around a call"] == 1


def test_a_loop_of_parents_ends() -> None:
    found = calls_of([chat("a", parent_id="b"), span("b", {}, parent_id="c"), span("c", {}, parent_id="b")])
    assert [call["interaction_id"] for call in found.calls] == ["a"]


def test_a_span_that_comes_twice_is_one_interaction() -> None:
    assert len(calls_of([chat("a"), chat("a")]).calls) == 1


def test_a_call_without_an_answer_is_passed_over_unless_it_failed() -> None:
    attributes = {**_CHAT, "gen_ai.input.messages": parts(HI)}
    found = calls_of([span("begun", attributes), span("failed", attributes, error="timeout")])
    assert [(call["interaction_id"], call["error"]) for call in found.calls] == [("failed", "timeout")]
    assert found.passed["call without an answer"] == 1


# Damaged spans.

_NAMES = st.sampled_from(
    [
        "gen_ai.operation.name",
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "gen_ai.system_instructions",
        "gen_ai.prompt",
        "gen_ai.prompt.0.content",
        "gen_ai.prompt.0",
        "gen_ai.prompt.1.tool_calls",
        "gen_ai.completion.0.tool_calls.0.function",
        "gen_ai.completion",
        "gen_ai.tool.definitions",
        "gen_ai.request",
        "gen_ai.request.model",
        "gen_ai.request.choice.count",
        "gen_ai.response.finish_reasons",
        "gen_ai.response.time_to_first_chunk",
        "gen_ai.usage",
        "gen_ai",
        "gen_ai.usage.input_tokens",
        "gen_ai.agent",
        "llm.request.type",
        "llm.request.functions",
        "llm.input_messages",
        "llm.output_messages.0.message",
        "llm.output_messages.0.message.contents",
        "llm.invocation_parameters",
        "llm.token_count.prompt",
        "llm.tools.0.tool",
        "llm",
        "output.value",
        "input.value",
        "openinference.span.kind",
        "session.id",
        "." * 5000,
        "",
    ]
)
_WORDS = st.sampled_from(
    [
        "chat",
        "LLM",
        "role",
        "content",
        "parts",
        "type",
        "text",
        "tool_call",
        "assistant",
        "[]",
        "[{}]",
        '{"role":"user","parts":1}',
        "[[",
        "",
    ]
)
_VALUES = st.recursive(
    _WORDS | st.none() | st.booleans() | st.integers(-1, 2) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=3),
    max_leaves=6,
)
_ATTRIBUTES = st.dictionaries(_NAMES, _VALUES, max_size=6)
_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "gen_ai.choice",
                "gen_ai.tool.message",
                "gen_ai.content.prompt",
                "gen_ai.client.inference.operation.details",
                "exception",
            ]
        ),
        st.dictionaries(
            st.sampled_from(["message", "tool_calls", "id", "content", "gen_ai.prompt", "gen_ai.input.messages"]),
            _VALUES,
        ),
    ),
    max_size=2,
)


@given(_ATTRIBUTES, _EVENTS)
def test_a_damaged_span_is_refused_or_becomes_messages_with_roles(
    attributes: dict[str, Any], events: list[tuple[str, dict[str, Any]]]
) -> None:
    found = calls_of([span("a", {"gen_ai.operation.name": "chat", **attributes}, events=events)])
    assert len(found.refused) + sum(found.passed.values()) + bool(found.calls) == 1
    for call in found.calls:
        assert all(isinstance(message["role"], str) for message in call["messages"])
        assert all(0 <= n < len(call["messages"]) for n in call["response"])


# The way back.

_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_ID = st.text("abc123_", min_size=1, max_size=8)
_ARGUMENTS = st.dictionaries(_TEXT, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _TEXT, max_size=3)
_CALLS_MADE = st.lists(
    st.builds(
        lambda i, n, a: {
            "id": i,
            "type": "function",
            "function": {"name": n, "arguments": json.dumps(a, ensure_ascii=False, separators=(",", ":"))},
        },
        _ID,
        _ID,
        _ARGUMENTS,
    ),
    min_size=1,
    max_size=3,
)
_SPOKEN = st.one_of(
    st.builds(
        lambda role, text: {"role": role, "content": text}, st.sampled_from(["system", "user", "assistant"]), _TEXT
    ),
    st.builds(lambda calls: {"role": "assistant", "content": None, "tool_calls": calls}, _CALLS_MADE),
    st.builds(lambda i, text: {"role": "tool", "tool_call_id": i, "content": text}, _ID, _TEXT),
)


@given(st.lists(_SPOKEN, min_size=1, max_size=5), _SPOKEN.filter(lambda m: m["role"] == "assistant"), st.data())
def test_an_interaction_comes_back_from_its_span(
    asked: list[dict[str, Any]], answer: dict[str, Any], data: Any
) -> None:
    value = {
        "messages": [*asked, answer],
        "response": [len(asked)],
        "model": "m",
        "agent": "desk",
        "finish_reason": "tool_calls" if "tool_calls" in answer else "stop",
        "sampling": {"temperature": 0.5, "max_tokens": 7},
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "references": ["response:r"],
        "tags": {"provider": "openai", "conversation_id": "c"},
    }
    name, attributes = span_of(value, "ws/e/i", content=True)
    assert (name, attributes["treadle.handle"]) == ("chat m", "ws/e/i")
    call = only(calls_of([span("a", attributes)]))
    for field in ("messages", "response", "model", "finish_reason", "sampling", "tools", "references", "tags"):
        assert call[field] == value[field], field
    assert {n: call["usage"][n] for n in value["usage"]} == value["usage"]


def test_without_content_a_span_holds_no_message_and_no_tool() -> None:
    value = {
        "messages": [{"role": "user", "content": "my secret"}, ANSWER],
        "tools": [{"type": "function", "function": {"name": "f", "description": "my secret"}}],
        "status": "error",
        "error": "Timeout: my secret",
    }
    name, attributes = span_of(value, "ws/e/i", content=False)
    assert name == "chat"
    assert "my secret" not in json.dumps(attributes)
    assert attributes["error.type"] == "Timeout"
