"""OpenAI responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from treadle.integrations._formats._shape import (
    Asked,
    Reply,
    Sample,
    arguments_text,
    as_list,
    error_text,
    function_tool,
    picked,
    total_usage,
)

__all__ = ["Responses"]

_CUT: Final = {"max_output_tokens": "length", "content_filter": "content_filter"}
_OVER: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_PARTIAL: Final = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.function_call_arguments.delta": "arguments",
    "response.reasoning_summary_text.delta": "summary",
}


class Responses:
    """POST .../responses."""

    def asked(self, body: Mapping[str, Any], path: str) -> Asked | None:
        """Instructions become the system message, items become messages.

        What `previous_response_id` or `conversation` stand for is with the provider alone; the interaction names them as tags.
        """
        given = body.get("input")
        if not isinstance(given, str | list) and not body.get("prompt"):
            return None
        messages: list[dict[str, Any]] = []
        if isinstance(body.get("instructions"), str) and body["instructions"]:
            messages.append({"role": "system", "content": body["instructions"]})
        messages += [{"role": "user", "content": given}] if isinstance(given, str) else _messages(as_list(given))
        conversation = body.get("conversation")
        kept = {
            "previous_response_id": body.get("previous_response_id"),
            "conversation": conversation.get("id") if isinstance(conversation, dict) else conversation,
            "prompt": body["prompt"].get("id") if isinstance(body.get("prompt"), dict) else None,
        }
        return Asked(
            messages=messages,
            model=body.get("model"),
            tools=[function_tool(tool) for tool in as_list(body.get("tools"))] or None,
            sampling=picked(body),
            tags={name: value for name, value in kept.items() if isinstance(value, str)},
        )

    def answered(self, body: Mapping[str, Any]) -> Reply:
        """The output items as assistant messages."""
        status = body.get("status")
        messages = _messages(as_list(body.get("output")), produced=True)
        cut = (body.get("incomplete_details") or {}).get("reason")
        called = any(message.get("tool_calls") for message in messages)
        reason = _CUT.get(cut, cut) if cut else status if status != "completed" else "tool_calls" if called else "stop"
        told = _logprobs(as_list(body.get("output")))
        reply = Reply(
            response_id=body.get("id"),
            model=body.get("model"),
            usage=total_usage(body.get("usage")),
            samples=[
                Sample(
                    messages=messages,
                    finish_reason=reason,
                    # one list a message: only where it is clear which
                    logprobs=[told] if told and len(messages) == 1 else None,
                )
            ],
        )
        if body.get("error") or status == "failed":
            reply.error = error_text({"error": body.get("error")}) or "the response failed"
        return reply

    def assembler(self) -> _Events:
        """Events, the last of which repeats the whole response."""
        return _Events()


class _Events:
    def __init__(self) -> None:
        self._response: dict[str, Any] = {}
        self._items: dict[int, dict[str, Any]] = {}
        self._pieces: dict[int, dict[str, str]] = {}
        self._done = False
        self._error: str | None = None

    def feed(self, event: str | None, data: Any) -> bool:
        if not isinstance(data, dict):
            return False
        kind = data.get("type", event)
        if isinstance(data.get("response"), dict):
            self._response = data["response"]
        if kind in _OVER:
            self._done = True
        elif kind in ("response.output_item.added", "response.output_item.done"):
            self._items[data.get("output_index", 0)] = data.get("item") or {}
            if kind == "response.output_item.done":
                self._pieces.pop(data.get("output_index", 0), None)
        elif kind in _PARTIAL:
            pieces = self._pieces.setdefault(data.get("output_index", 0), {})
            field = _PARTIAL[kind]
            pieces[field] = pieces.get(field, "") + str(data.get("delta", ""))
            return True
        elif kind == "error":
            self._error = error_text(data)
        return False

    def reply(self) -> Reply:
        response = dict(self._response)
        if not response.get("output"):  # broken off, or a server whose last event does not repeat the output
            response["output"] = [self._item(index) for index in sorted(self._items.keys() | self._pieces.keys())]
        reply = Responses().answered(response) if response.get("id") or response["output"] else Reply()
        reply.error = self._error or reply.error
        reply.complete = self._done
        return reply

    def _item(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = dict(self._items.get(index) or {"type": "message", "role": "assistant"})
        pieces = self._pieces.get(index) or {}
        if "arguments" in pieces:
            item["arguments"] = pieces["arguments"]
        if "text" in pieces or "refusal" in pieces:
            kinds = (("text", "output_text"), ("refusal", "refusal"))
            item["content"] = [{"type": kind, name: pieces[name]} for name, kind in kinds if name in pieces]
        if "summary" in pieces:
            item["summary"] = [{"type": "summary_text", "text": pieces["summary"]}]
        return item


def _messages(items: list[Any], produced: bool = False) -> list[dict[str, Any]]:
    """Items as chat messages. What one turn of the assistant did (reasoning, text, calls) is one message."""
    messages: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None

    def assistant(starts_over: bool) -> dict[str, Any]:
        nonlocal turn
        if turn is None or starts_over:
            turn = {"role": "assistant", "content": None}
            messages.append(turn)
        return turn

    for item in items:
        if not isinstance(item, dict):
            messages.append({"role": "user", "content": str(item)})
            continue
        kind = item.get("type") or "message"
        if kind == "message" and item.get("role", "assistant") == "assistant":
            into = assistant(turn is not None and (turn["content"] is not None or "tool_calls" in turn))
            into["content"], refusal = _content(item.get("content"))
            if refusal:
                into["refusal"] = refusal
        elif kind == "message":
            turn = None
            messages.append({"role": item["role"], "content": _content(item.get("content"))[0]})
        elif kind in ("function_call", "custom_tool_call"):
            arguments = item.get("input") if kind == "custom_tool_call" else arguments_text(item.get("arguments", ""))
            call = {"name": item.get("name"), "arguments": arguments}
            assistant(False).setdefault("tool_calls", []).append(
                {"id": item.get("call_id"), "type": "function", "function": call}
            )
        elif kind in ("function_call_output", "custom_tool_call_output"):
            turn = None
            content = _content(item.get("output"))[0]
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        elif kind == "reasoning":
            summary = "".join(
                str(part.get("text", "")) for part in as_list(item.get("summary")) + as_list(item.get("content"))
            )
            into = assistant(turn is not None and turn["content"] is not None)
            if summary:
                into["reasoning_content"] = into.get("reasoning_content", "") + summary
        elif kind == "item_reference":
            messages.append({"role": "user", "content": None, "item_reference": item.get("id")})
        else:
            # hosted tools (web search, code interpreter, MCP) have no place in the chat form: kept as they are
            assistant(False).setdefault("items", []).append(item)
    if produced:
        # a reasoning item alone, without a word that can be shown, is still the model's turn
        return messages
    return [message for message in messages if len(message) > 2 or message["content"] is not None]


def _content(content: Any) -> tuple[str | list[Any] | None, str | None]:
    """Content in the chat form, and a refusal."""
    if content is None or isinstance(content, str):
        return content, None
    parts, refusal = [], None
    for part in as_list(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text"):
            parts.append({"type": "text", "text": part.get("text", "")})
        elif kind == "refusal":
            refusal = part.get("refusal")
        elif kind == "input_image" and part.get("image_url"):
            shown = {
                name: part[theirs] for name, theirs in (("url", "image_url"), ("detail", "detail")) if part.get(theirs)
            }
            parts.append({"type": "image_url", "image_url": shown})
        elif kind == "input_file":
            names = ("file_id", "file_data", "filename", "file_url")
            parts.append({"type": "file", "file": {name: part[name] for name in names if part.get(name)}})
        else:
            parts.append(part)
    if all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        return ("".join(part["text"] for part in parts) if parts or not refusal else None), refusal
    return parts, refusal


def _logprobs(items: list[Any]) -> list[float]:
    parts = [part for item in items if isinstance(item, dict) for part in as_list(item.get("content"))]
    tokens = [token for part in parts if isinstance(part, dict) for token in as_list(part.get("logprobs"))]
    return [float(token["logprob"]) for token in tokens if isinstance(token, dict) and "logprob" in token]
