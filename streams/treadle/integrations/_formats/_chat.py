"""OpenAI chat completions, and the many servers that speak them (vLLM, Azure, Ollama, gateways)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from treadle.integrations._formats._shape import (
    Asked,
    Reply,
    Sample,
    as_list,
    error_text,
    function_tool,
    picked,
    total_usage,
)

__all__ = ["Chat"]

# these come once or are repeated, other text comes in pieces
_WHOLE = frozenset({"role", "id", "type", "name", "index"})


class Chat:
    """POST .../chat/completions."""

    def asked(self, body: Mapping[str, Any], path: str) -> Asked | None:
        """The messages stay as the host wrote them."""
        messages = body.get("messages")
        if not isinstance(messages, list):
            return None
        tools = [function_tool(tool) for tool in as_list(body.get("tools"))]
        tools += [{"type": "function", "function": function} for function in as_list(body.get("functions"))]
        model = body.get("model") or _deployment(path)
        return Asked(messages=messages, model=model, tools=tools or None, sampling=picked(body))

    def answered(self, body: Mapping[str, Any]) -> Reply:
        """Each choice is a sample, its message as the server wrote it."""
        reply = Reply(
            response_id=body.get("id"),
            model=body.get("model"),
            usage=total_usage(body.get("usage")),
            cost=_cost(body.get("usage")),
        )
        for choice in as_list(body.get("choices")):
            message = choice.get("message") or {"role": "assistant", "content": None}
            reply.samples.append(
                Sample(
                    messages=[message if "role" in message else {"role": "assistant", **message}],
                    finish_reason=choice.get("finish_reason"),
                    logprobs=_logprobs(choice.get("logprobs")),
                    token_ids=[choice["token_ids"]] if choice.get("token_ids") else None,
                )
            )
        if not reply.samples:
            reply.error = error_text(body) or "the response has no choices"
        return reply

    def assembler(self) -> _Chunks:
        """Chunks with deltas, ended by [DONE]."""
        return _Chunks()


class _Chunks:
    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._done = False
        self._error: str | None = None

    def feed(self, event: str | None, data: Any) -> bool:
        if data is None:  # [DONE]
            self._done = True
            return False
        if not isinstance(data, dict):
            return False
        if data.get("error"):
            self._error = error_text(data)
        for name in ("id", "model", "usage"):
            if data.get(name):
                self._head[name] = data[name]
        generated = False
        for choice in as_list(data.get("choices")):
            into = self._choices.setdefault(choice.get("index", 0), {"message": {}})
            delta = choice.get("delta") or {}
            _merge(into["message"], delta)
            generated = generated or any(given for name, given in delta.items() if name != "role")
            if choice.get("finish_reason"):
                into["finish_reason"] = choice["finish_reason"]
            if choice.get("token_ids"):
                into.setdefault("token_ids", []).extend(choice["token_ids"])
            told = (choice.get("logprobs") or {}).get("content")
            if told:
                into.setdefault("logprobs", {"content": []})["content"].extend(told)
        return generated

    def reply(self) -> Reply:
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            for call in as_list(choice["message"].get("tool_calls")):
                call.pop("index", None)
        reply = Chat().answered({**self._head, "choices": choices})
        reply.error = self._error
        # some servers end without [DONE]; a caller may stop after the finish reason
        reply.complete = self._done or (bool(choices) and all(choice.get("finish_reason") for choice in choices))
        if self._done and not choices:
            reply.error = self._error or "the stream has no choices"
        return reply


def _merge(into: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, given in delta.items():
        before = into.get(name)
        if given is None or before is None:
            if isinstance(given, dict):
                into[name] = {}
                _merge(into[name], given)
            elif isinstance(given, list):
                into[name] = []
                _merge_list(into[name], given)
            elif given is not None or name not in into:
                into[name] = given
        elif isinstance(before, str) and isinstance(given, str) and name not in _WHOLE:
            into[name] = before + given
        elif isinstance(before, dict) and isinstance(given, dict):
            _merge(before, given)
        elif isinstance(before, list) and isinstance(given, list):
            _merge_list(before, given)
        elif given != "":
            into[name] = given


def _merge_list(into: list[Any], pieces: list[Any]) -> None:
    for piece in pieces:
        index = piece.get("index") if isinstance(piece, dict) else None
        found = next((one for one in into if index is not None and one.get("index") == index), None)
        if found is None:
            into.append(dict(piece) if isinstance(piece, dict) else piece)
        else:
            _merge(found, piece)


def _logprobs(told: Any) -> list[list[float]] | None:
    content = as_list(told.get("content")) if isinstance(told, dict) else []
    return [[float(token["logprob"]) for token in content]] if content else None


def _cost(usage: Any) -> float | None:
    # OpenRouter and LiteLLM's proxy say it there, in dollars
    cost = usage.get("cost") if isinstance(usage, dict) else None
    return float(cost) if isinstance(cost, int | float) else None


def _deployment(path: str) -> str | None:
    """Azure names the model in the path."""
    parts = path.split("/")
    return unquote(parts[parts.index("deployments") + 1]) if "deployments" in parts[:-1] else None
