"""Calls of an agent's tools: noted where they happen, matched with what the model asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from treadle_schemas.canonical import loads
from treadle_schemas.errors import FieldError
from treadle_schemas.ids import new_id
from treadle_schemas.moments import now

from treadle._answers import content_of
from treadle.episodes import Place, claim, enter, leave, where

if TYPE_CHECKING:
    from contextvars import Token

    from treadle.recorder import Recorder

__all__ = ["ToolCall", "asked_calls", "repeats"]


@dataclass(kw_only=True)
class ToolCall:
    """One call of a tool, between `begin` and `end`. `asked` is the model's call that it answers, where there is one."""

    name: str
    arguments: str
    started_at: str = field(default_factory=now)
    asked: dict[str, Any] | None = None
    caller_id: str | None = None
    content: str = ""
    failed: bool = False
    _call_id: str = field(default_factory=lambda: f"call_{new_id()}")
    _place: Place | None = None
    _token: Token[Place | None] | None = None

    @classmethod
    def begin(cls, name: str, arguments: Any) -> ToolCall:
        """The tool starts here; sub-agents inside it are called by the interaction that asked for it."""
        call = cls(name=name, arguments=content_of(arguments))
        call._place = place = where()
        if place is not None:
            call.caller_id = place.calling_id
            open_calls = place.episode.open_calls if place.turn is None else place.turn.open_calls
            call.asked = _take(open_calls, name, arguments)
        return call

    def enter(self) -> None:
        """Until `leave`, what runs here is inside this tool."""
        if self._place is not None:
            self._token = enter(Place(self._place.episode, None, self.caller_id, in_tool=True))

    def leave(self) -> None:
        """What runs here is no longer inside this tool."""
        if self._token is not None:
            leave(self._token)
            self._token = None

    def end(self, recorder: Recorder, result: Any = None, error: BaseException | None = None) -> None:
        """Note what came out: in the open interaction, else in the episode, else as an interaction of its own."""
        self.failed = error is not None
        self.content = content_of(result) if error is None else f"{type(error).__name__}: {error}"
        place = self._place
        if place is not None and place.episode.workspace == recorder.workspace:
            if place.turn is not None and place.turn.is_open:
                place.turn.add(*self.messages())
            else:
                place.episode.loose_tools.append(self)
            return
        interaction = new_id()
        recorder.record(
            interaction_id=interaction,
            messages=self.messages(),
            response=[],
            started_at=self.started_at,
            **claim(recorder.workspace, interaction),
        )

    @property
    def call_id(self) -> str:
        """The id that ties call and result together."""
        return str(self.asked["id"]) if self.asked is not None and self.asked.get("id") else self._call_id

    def messages(self) -> list[dict[str, Any]]:
        """The result as a message; before it the call, where no model asked for it."""
        result: dict[str, Any] = {
            "role": "tool",
            "tool_call_id": self.call_id,
            "name": self.name,
            "content": self.content,
        }
        if self.failed:
            result["is_error"] = True
        if self.asked is not None:
            return [result]
        function = {"name": self.name, "arguments": self.arguments}
        called = {"id": self.call_id, "type": "function", "function": function}
        return [{"role": "assistant", "content": None, "tool_calls": [called]}, result]


def asked_calls(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """The tool calls that a model's messages ask for."""
    found = []
    for message in messages:
        calls = message.get("tool_calls") if isinstance(message, Mapping) else None
        found += [call for call in calls or () if isinstance(call, dict) and isinstance(call.get("function"), Mapping)]
    return found


def repeats(messages: Sequence[Any], call: ToolCall) -> bool:
    """Whether a later request carries a call's result: by the id of the model's call, or word for word."""
    for message in messages:
        if not (isinstance(message, Mapping) and message.get("role") in ("tool", "function")):
            continue
        if message.get("tool_call_id") == call.call_id or message.get("content") == call.content:
            return True
    return False


def _take(calls: list[dict[str, Any]], name: str, arguments: Any) -> dict[str, Any] | None:
    """The first call of this name that no tool answered yet, one with the same arguments before others."""
    named = [call for call in calls if call["function"].get("name") == name]
    same = [call for call in named if _read(call["function"].get("arguments")) == arguments]
    for call in same or named:
        try:
            calls.remove(call)
        except ValueError:  # another thread took it
            continue
        return call
    return None


def _read(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return loads(arguments)
    except FieldError:
        return arguments
