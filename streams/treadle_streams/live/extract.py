"""What of an interaction can be searched, and what is kept of it beside. Pure.

The text of a row is what was asked and what was answered: of the messages before the response the first one of the user and the newest
ones, then the response. Prompts of the system are left out: all interactions of an agent share them, so they would tell none apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from treadle_schemas.errors import FieldError
from treadle_schemas.parts import Part, resolve

__all__ = ["ASKED_CHARS", "SIDE_CHARS", "Spoken", "Text", "captured", "spoken", "text_of", "with_claims"]

SIDE_CHARS: Final = 6_000
"""Characters of the request, and of the response, that are searched. A message is kept up to this as well."""

_LEFT_OUT: Final = frozenset(
    {"messages", "tools", "token_ids", "logprobs", "transcript", "claims", "sampling", "attempts"}
)
"""Fields of an interaction that are long, or mean nothing without the messages."""
_SILENT: Final = frozenset({"system", "developer"})


ASKED_CHARS: Final = 1_000
"""Characters of the first question that count once more, and that are compared by likeness: the vector of more is the vector of nothing."""


class Spoken(NamedTuple):
    """A message as far as it is searched."""

    role: str
    text: str


class Text(NamedTuple):
    """The searched text of a row."""

    asked: str
    """The first message of the user; without one, the beginning of the request."""
    request: str
    response: str


def captured(interaction: dict[str, Any]) -> dict[str, Any]:
    """The interaction without its messages and other long fields."""
    return {name: value for name, value in interaction.items() if name not in _LEFT_OUT}


def with_claims(
    message: dict[str, Any], claims: Mapping[str, str], value_of: Callable[[str], str | None]
) -> dict[str, Any]:
    """A message with the long strings that `claims` (pointer -> hash) name put back, as far as they are known."""
    named = {f"/message{pointer}": name for pointer, name in claims.items()}
    try:
        found = resolve({"message": message, "claims": named}, lambda name: Part("value", name, value_of(name) or ""))
    except FieldError:
        return message  # a claim that names no place
    whole: dict[str, Any] = found["message"]
    return whole


def spoken(message: dict[str, Any]) -> Spoken:
    """Role and text of a chat message: its content, and the names and arguments of the tools that it calls."""
    text = "\n".join(piece for piece in _pieces(message) if piece)[:SIDE_CHARS]
    # no file can hold a lone surrogate, which JSON can carry
    return Spoken(_plain(str(message.get("role"))), _plain(text))


def text_of(newest_first: Iterator[Spoken], count: int, response: Sequence[int] | None, first: Spoken | None) -> Text:
    """The text of a row of `count` messages, which come one by one, the newest first.

    `response` are the indices of its response; without them every turn of the assistant is. `first` is the first message of the user,
    where it is known beforehand; the messages are then read only as far as they are needed.
    """
    answered, asked = _Side(), _Side()
    marked = None if response is None else set(response)
    oldest = min(marked) if marked else 0
    said_first = first
    for index, message in zip(range(count - 1, -1, -1), newest_first, strict=False):
        if message.role in _SILENT:
            continue
        mine = message.role == "assistant" if marked is None else index in marked
        (answered if mine else asked).add(message.text)
        if first is None and message.role == "user" and not mine:
            said_first = message
        elif first is not None and asked.full and (answered.full or (marked is not None and index <= oldest)):
            break
    request = asked.joined(said_first.text if said_first is not None else "")
    question = said_first.text if said_first is not None else request
    return Text(question[:ASKED_CHARS], request, answered.joined(""))


class _Side:
    """Collects texts from the newest to the oldest, up to SIDE_CHARS."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._left = SIDE_CHARS

    @property
    def full(self) -> bool:
        return self._left <= 0

    def add(self, text: str) -> None:
        if text and self._left > 0:
            self._texts.append(text[: self._left])
            self._left -= len(text) + 1

    def joined(self, first: str) -> str:
        """In their order; `first` stands before them where they do not begin with it."""
        texts = self._texts[::-1]
        if first and not (texts and texts[0] == first):
            room = SIDE_CHARS // 2
            rest = "\n".join(texts)
            head = first[: max(room, SIDE_CHARS - len(rest) - 1)]
            return f"{head}\n{rest[-(SIDE_CHARS - len(head) - 1) :]}" if rest else head
        return "\n".join(texts)


def _pieces(message: dict[str, Any]) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]
    for call in message.get("tool_calls") or () if isinstance(message.get("tool_calls"), list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield f"{function.get('name') or ''} {function.get('arguments') or ''}"


def _plain(text: str) -> str:
    return text if text.isascii() else text.encode(errors="replace").decode()
