"""What an interaction tells of its health at once, and that it is on `.progress` with the first change."""

from __future__ import annotations

from typing import Any

import pytest
from treadle_schemas.calls import invalid_calls, invalid_share, vitals
from treadle_schemas.events import read_interaction

TOOLS = [{"type": "function", "function": {"name": "refund", "parameters": {}}}]


def _call(name: Any = "refund", arguments: Any = "{}") -> dict[str, Any]:
    calls = [{"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


@pytest.mark.parametrize(
    ("message", "invalid"),
    [
        (_call(), 0),
        (_call(arguments='{"order": 7}'), 0),
        (_call(arguments=""), 0),
        (_call(arguments={"order": 7}), 0),
        (_call(arguments='{"order": 7'), 1),
        (_call(arguments="[7]"), 1),
        (_call(arguments=None), 1),
        (_call(name="pay"), 1),
        (_call(name=None), 1),
        ({"role": "assistant", "tool_calls": ["refund"]}, 1),
        ({"role": "assistant", "tool_calls": None}, 0),
        ({"role": "assistant", "content": "hello"}, 0),
    ],
)
def test_a_call_is_valid_if_it_can_be_carried_out(message: dict[str, Any], invalid: int) -> None:
    assert invalid_calls(message, TOOLS) == invalid


def test_without_tools_any_name_goes_and_shares_are_of_messages() -> None:
    assert invalid_calls(_call(name="pay"), None) == 0
    assert invalid_share([_call(), _call(name="pay"), _call(arguments="{")], TOOLS) == pytest.approx(2 / 3)
    assert invalid_share([], TOOLS) == 0.0


def test_only_what_the_interaction_wrote_counts() -> None:
    said: dict[str, Any] = {
        "interaction_id": "i",
        "agent": "a",
        "messages": [{"role": "user", "content": "hi"}, _call(name="pay"), _call(name="pay"), _call()],
        "tools": TOOLS,
        "response": [2, 3],
        "started_at": "2026-01-01T00:00:00Z",
        "ended_at": "2026-01-01T00:00:02Z",
        "status": "error",
        "cost": 0.25,
    }
    assert vitals(read_interaction(said)) == (1, 1, 0.25)
    shifted = said | {"transcript": {"head": "0" * 64, "count": 2}, "response": [4, 5]}
    assert vitals(read_interaction(shifted)) == (1, 1, 0.25)


@pytest.mark.parametrize(
    "tool", [{"function": "x"}, {"function": {"name": ["a"]}}, {"name": {}}, {"function": None}, {}]
)
def test_a_list_of_tools_that_makes_no_sense_names_none(tool: dict[str, Any]) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "a", "arguments": "{}"}}
    message = {"role": "assistant", "tool_calls": [call]}
    assert invalid_calls(message, [tool]) == 1
    assert invalid_calls(message, [tool, {"type": "function", "function": {"name": "a"}}]) == 0
