"""Anthropic messages."""

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

__all__ = ["Anthropic"]

_FINISH: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class Anthropic:
    """POST .../messages."""

    def asked(self, body: Mapping[str, Any], path: str) -> Asked | None:
        """The system prompt becomes the first message, tool results become messages of role tool."""
        turns = body.get("messages")
        if not isinstance(turns, list) or not isinstance(body.get("model"), str) or "max_tokens" not in body:
            return None  # many services have a path that ends in /messages
        messages: list[dict[str, Any]] = []
        if body.get("system"):
            messages.append({"role": "system", "content": _content(as_blocks(body["system"]))})
        for turn in turns:
            messages += _turn(turn.get("role", "user"), as_blocks(turn.get("content")))
        tools = [function_tool(tool, "input_schema") for tool in as_list(body.get("tools"))]
        return Asked(messages=messages, model=body["model"], tools=tools or None, sampling=picked(body))

    def answered(self, body: Mapping[str, Any]) -> Reply:
        """One message: text, thinking and tool calls."""
        if body.get("type") == "error" or "content" not in body:
            return Reply(error=error_text(body) or "the response has no content")
        reason = body.get("stop_reason")
        return Reply(
            response_id=body.get("id"),
            model=body.get("model"),
            usage=total_usage(body.get("usage")),
            samples=[
                Sample(
                    messages=_turn("assistant", as_blocks(body["content"])) or [{"role": "assistant", "content": ""}],
                    finish_reason=_FINISH.get(reason, reason) if isinstance(reason, str) else None,
                )
            ],
        )

    def assembler(self) -> _Events:
        """message_start, blocks with deltas, message_delta, message_stop."""
        return _Events()


class _Events:
    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._done = False
        self._error: str | None = None

    def feed(self, event: str | None, data: Any) -> bool:
        if not isinstance(data, dict):
            return False
        kind = data.get("type", event)
        if kind == "message_start":
            self._message = dict(data.get("message") or {})
        elif kind == "content_block_start":
            self._blocks[data.get("index", 0)] = dict(data.get("content_block") or {})
        elif kind == "content_block_delta":
            _grow(self._blocks.setdefault(data.get("index", 0), {"type": "text"}), data.get("delta") or {})
            return True
        elif kind == "message_delta":
            self._message.update({name: given for name, given in (data.get("delta") or {}).items() if given})
            usage = {name: given for name, given in (data.get("usage") or {}).items() if given is not None}
            self._message["usage"] = {**(self._message.get("usage") or {}), **usage}
        elif kind == "message_stop":
            self._done = True
        elif kind == "error":
            self._error = error_text(data)
        return False

    def reply(self) -> Reply:
        blocks = [self._blocks[index] for index in sorted(self._blocks)]
        reply = Anthropic().answered({**self._message, "content": blocks}) if self._message else Reply()
        reply.error = self._error
        # a caller may stop after the stop reason
        reply.complete = self._done or bool(self._message.get("stop_reason"))
        return reply


def as_blocks(content: Any) -> list[dict[str, Any]]:
    """Content as blocks; text alone is one text block."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block if isinstance(block, dict) else {"type": "text", "text": str(block)} for block in as_list(content)]


def _grow(block: dict[str, Any], delta: Mapping[str, Any]) -> None:
    kind = delta.get("type")
    if kind == "text_delta":
        block["text"] = block.get("text", "") + delta.get("text", "")
    elif kind == "input_json_delta":
        block["partial"] = block.get("partial", "") + delta.get("partial_json", "")
    elif kind == "thinking_delta":
        block["thinking"] = block.get("thinking", "") + delta.get("thinking", "")
    elif kind == "signature_delta":
        block["signature"] = delta.get("signature")
    elif kind == "citations_delta":
        block["citations"] = [*as_list(block.get("citations")), delta.get("citation")]


def _turn(role: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One turn's blocks as chat messages: tool results first, each a message, then what else the turn says."""
    results, rest, calls, thoughts = [], [], [], []
    for block in blocks:
        kind = block.get("type")
        if kind == "tool_result":
            result = {
                "role": "tool",
                "tool_call_id": block.get("tool_use_id"),
                "content": _content(as_blocks(block.get("content"))),
            }
            if block.get("is_error"):
                result["is_error"] = True
            results.append(result)
        elif kind == "tool_use":
            arguments = arguments_text(block["partial"] if block.get("partial") else block.get("input") or {})
            function = {"name": block.get("name"), "arguments": arguments}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind in ("thinking", "redacted_thinking"):
            thoughts.append(block)
        else:
            rest.append(block)
    if not (rest or calls or thoughts):
        return results
    message: dict[str, Any] = {"role": role, "content": _content(rest) if rest else None}
    if thoughts:
        message["reasoning_content"] = "".join(block.get("thinking", "") for block in thoughts)
    if calls:
        message["tool_calls"] = calls
    return [*results, message]


def _content(blocks: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Plain text as a string, anything else as parts."""
    if all(block.get("type") == "text" and not block.get("citations") for block in blocks):
        return "".join(block.get("text", "") for block in blocks)
    return [_part(block) for block in blocks]


def _part(block: dict[str, Any]) -> dict[str, Any]:
    source = block.get("source")
    if block.get("type") == "image" and isinstance(source, dict):
        if source.get("type") == "base64":
            url = f"data:{source.get('media_type')};base64,{source.get('data')}"
            return {"type": "image_url", "image_url": {"url": url}}
        if source.get("type") == "url":
            return {"type": "image_url", "image_url": {"url": source.get("url")}}
    return block
