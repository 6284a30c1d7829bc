"""A model's text is outside data: a call is understood, everything else is prose, nothing raises."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from treadle_demo._calls import assistant_call, assistant_prose, compact, parse_call, written_call
from treadle_schemas.canonical import canonical_json


@pytest.mark.parametrize(
    "text",
    [
        '{"name":"get_order","arguments":{"order_id":47}}',
        '{ "name": "get_order",\n "arguments": {"order_id": 47} }',
        '<tool_call>\n{"name": "get_order", "arguments": {"order_id": 47}}\n</tool_call>',
        'Let me look.\n<tool_call>{"name":"get_order","arguments":{"order_id":47}}',
        '{"name":"get_order","parameters":{"order_id":47}}',
    ],
)
def test_a_call_is_understood_in_the_forms_models_write(text: str) -> None:
    call = parse_call(text)
    assert call is not None
    assert (call.name, call.arguments, call.arguments_json) == ("get_order", {"order_id": 47}, '{"order_id":47}')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "i am sorry",
        "[1]",
        '"get_order"',
        '{"name":"get_order"}',
        '{"name":"get_order","arguments":"{}"}',
        '{"name":"","arguments":{}}',
        '{"name":"get order","arguments":{}}',
        '{"name":"x\\ud800","arguments":{}}',
        '{"name":"get_order","arguments":{"order_id":NaN}}',
        '{"name":"get_order","arguments":{"order_id":' + "9" * 5_000 + "}}",
        '{"name":"get_order","arguments":{"a":' + "[" * 100_000,
        '{"name":"get_order","arguments":{}} {"name":"get_order","arguments":{}}',
    ],
)
def test_what_is_no_call_is_prose(text: str) -> None:
    assert parse_call(text) is None


@given(st.text())
def test_no_text_raises_and_every_message_can_be_recorded(text: str) -> None:
    call = parse_call(text)
    message = assistant_prose(text) if call is None else assistant_call(call.name, call.arguments_json, 0)
    assert json.loads(canonical_json(message)) == message


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.from_regex(r"[a-z_]{1,20}", fullmatch=True), st.dictionaries(st.text(), _JSON))
def test_a_written_call_reads_back_as_it_was(name: str, arguments: dict[str, object]) -> None:
    call = parse_call(written_call(name, compact(arguments)))
    assert call is not None
    assert (call.name, call.arguments, call.arguments_json) == (name, arguments, compact(arguments))
