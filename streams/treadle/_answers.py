"""What a model answered, in whatever form its client library gives it: text, messages, response objects, stream chunks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from treadle_schemas.canonical import dumps
from treadle_schemas.errors import ContractError

from treadle._given import plain_message

if TYPE_CHECKING:
    from treadle.integrations._formats import Assembler, Reply

__all__ = ["Chunks", "content_of", "understood"]

_LANGCHAIN_ROLES = {
    "ai": "assistant",
    "AIMessageChunk": "assistant",
    "human": "user",
    "tool": "tool",
    "system": "system",
}


def understood(given: Any) -> Reply:
    """An answer as chat messages, with what else it says of itself.

    Known are text, chat messages, lists of them, and the answers of OpenAI (chat and responses), Anthropic and LangChain, as objects or
    dicts. Anything else becomes an assistant message with its JSON.
    """
    from treadle.integrations._formats import Reply, Sample, format_of

    if isinstance(given, str):
        return Reply(samples=[Sample(messages=[{"role": "assistant", "content": given}])])
    if isinstance(given, Sequence) and not isinstance(given, bytes | bytearray):
        messages = [understood(one).samples[0].messages for one in given]
        return Reply(samples=[Sample(messages=[message for part in messages for message in part])])
    plain = _plain(given)
    if isinstance(plain, Mapping):
        route = _route(plain)
        if route is not None:
            return format_of(route).answered(plain)
        if plain.get("type") in _LANGCHAIN_ROLES and "content" in plain:
            return _of_langchain(plain, given)
        if isinstance(plain.get("role"), str):
            return Reply(samples=[Sample(messages=[dict(plain)])])
    return Reply(samples=[Sample(messages=[{"role": "assistant", "content": content_of(given)}])])


def content_of(value: Any) -> str:
    """Any value as the text of a message: itself, its JSON, or at worst its repr."""
    if isinstance(value, str):
        return value
    plain = _plain(value)
    try:
        return dumps(plain).decode("utf-8", "surrogatepass")
    except (ContractError, TypeError, ValueError, RecursionError):
        pass
    try:
        return dumps(_jsonable(plain, 0)).decode("utf-8", "surrogatepass")
    except Exception:  # a repr of the host's may raise anything
        return f"<{type(value).__name__}>"


class Chunks:
    """Puts the chunks of one stream together: text, or what OpenAI's, Anthropic's or LangChain's clients give, or dicts like it."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._messages: list[Any] = []
        self._assembler: Assembler | None = None
        self._ended = False

    def feed(self, chunk: Any) -> bool:
        """Take one chunk; whether it carried something that the model generated."""
        if isinstance(chunk, str):
            self._texts.append(chunk)
            return bool(chunk)
        plain = _plain(chunk)
        if not isinstance(plain, Mapping):
            self._texts.append(content_of(chunk))
            return True
        if plain.get("type") == "AIMessageChunk":
            self._messages.append(chunk)
            return bool(plain.get("content") or plain.get("tool_call_chunks"))
        if self._assembler is None:
            self._assembler = _assembler_of(plain)
        if self._assembler is None:
            if isinstance(plain.get("role"), str) or _route(plain) is not None:
                self._messages.append(dict(plain))
            else:
                self._texts.append(content_of(plain))
            return True
        # the assembler puts the pieces together in place; the host's own dict is not ours to change
        return self._assembler.feed(None, copy.deepcopy(dict(plain)) if plain is chunk else plain)

    def end(self) -> None:
        """The stream is over, as its server meant it."""
        self._ended = True

    def reply(self) -> Reply:
        """What the chunks so far amount to; `complete` is False when the end is missing."""
        from treadle.integrations._formats import Reply, Sample

        if self._assembler is not None:
            reply = self._assembler.reply()
            # the client library took [DONE] for itself
            reply.complete = reply.complete or self._ended
        elif self._messages and isinstance(self._messages[0], Mapping):
            reply = understood(self._messages)
            reply.complete = self._ended
        elif self._messages:
            whole = self._messages[0]
            for more in self._messages[1:]:
                whole = whole + more  # LangChain's own way of putting chunks together
            reply = understood(whole)
            reply.complete = self._ended
        else:
            text = "".join(self._texts)
            said = [Sample(messages=[{"role": "assistant", "content": text}])] if text or self._ended else []
            reply = Reply(samples=said, complete=self._ended)
        return reply


def _plain(given: Any) -> Any:
    if isinstance(given, Mapping | type):
        return given
    if hasattr(given, "response_metadata") or (hasattr(given, "additional_kwargs") and hasattr(given, "model_dump")):
        return given.model_dump(mode="json")  # of LangChain's messages the defaults say which kind they are
    return plain_message(given)


def _route(plain: Mapping[str, Any]) -> str | None:
    if isinstance(plain.get("choices"), list):
        return "/chat/completions"
    if plain.get("object") == "response" or (isinstance(plain.get("output"), list) and "id" in plain):
        return "/responses"
    if plain.get("type") == "message" and isinstance(plain.get("content"), list):
        return "/messages"
    return None


def _assembler_of(plain: Mapping[str, Any]) -> Assembler | None:
    from treadle.integrations._formats import format_of

    kind = plain.get("type")
    if isinstance(plain.get("choices"), list):
        return format_of("/chat/completions").assembler()
    if isinstance(kind, str) and kind.startswith("response."):
        return format_of("/responses").assembler()
    if isinstance(kind, str) and (kind.startswith(("message_", "content_block_")) or kind == "ping"):
        return format_of("/messages").assembler()
    return None


def _of_langchain(plain: Mapping[str, Any], given: Any) -> Reply:
    from treadle.integrations._formats import Reply, Sample

    # dumped without defaults, `tool_calls` may be missing where langchain derived it
    calls = plain.get("tool_calls") or getattr(given, "tool_calls", None) or []
    message: dict[str, Any] = {"role": _LANGCHAIN_ROLES[plain["type"]], "content": plain["content"]}
    if calls:
        message["tool_calls"] = [
            {
                "id": call.get("id"),
                "type": "function",
                "function": {"name": call.get("name"), "arguments": content_of(call.get("args") or {})},
            }
            for call in calls
        ]
    for name in ("tool_call_id", "name"):
        if plain.get(name):
            message[name] = plain[name]
    metadata = plain.get("response_metadata") or {}
    reason = metadata.get("finish_reason") or metadata.get("stop_reason")
    return Reply(
        samples=[Sample(messages=[message], finish_reason=reason)],
        response_id=metadata.get("id") or plain.get("id"),
        model=metadata.get("model_name") or metadata.get("model"),
        usage=plain.get("usage_metadata"),
    )


def _jsonable(value: Any, depth: int) -> Any:
    """`value` with the repr of what JSON cannot say in its place."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else repr(value)
    if depth < 8:
        if isinstance(value, Mapping):
            return {str(name): _jsonable(one, depth + 1) for name, one in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_jsonable(one, depth + 1) for one in value]
        plain = _plain(value)
        if plain is not value:
            return _jsonable(plain, depth + 1)
    text = repr(value)
    return text if len(text) <= 10_000 else f"{text[:10_000]}..."
