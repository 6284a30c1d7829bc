"""What every provider's format is brought into: OpenAI chat messages, tools as function schemas, one usage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

__all__ = [
    "Asked",
    "Assembler",
    "Format",
    "Reply",
    "Sample",
    "arguments_text",
    "as_list",
    "error_text",
    "function_tool",
    "picked",
    "total_usage",
]

MAX_ERROR_CHARS: Final = 2000
"""A proxy's error page can be long; its beginning says what happened."""

_SAMPLING: Final = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "typical_p",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tool_calls",
        "min_tokens",
        "n",
        "best_of",
        "stop",
        "stop_sequences",
        "stop_token_ids",
        "ignore_eos",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "length_penalty",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "prompt_logprobs",
        "response_format",
        "text",
        "tool_choice",
        "parallel_tool_calls",
        "disable_parallel_tool_use",
        "reasoning",
        "reasoning_effort",
        "thinking",
        "output_config",
        "output_format",
        "verbosity",
        "modalities",
        "prediction",
        "service_tier",
        "truncation",
        "chat_template_kwargs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
        "skip_special_tokens",
        "add_generation_prompt",
        "continue_final_message",
    }
)
"""Request fields that say how the model was sampled. A list of what is kept, since other fields may hold keys."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request asked for."""

    messages: list[dict[str, Any]]
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    sampling: dict[str, Any] | None = None
    tags: dict[str, str] = field(default_factory=dict)
    """Names of state that the provider keeps and the request does not repeat."""


@dataclass(kw_only=True)
class Sample:
    """One answer: the messages that the model produced, in order. `logprobs` and `token_ids` are one list a message."""

    messages: list[dict[str, Any]]
    finish_reason: str | None = None
    logprobs: list[list[float]] | None = None
    token_ids: list[list[int]] | None = None


@dataclass(kw_only=True)
class Reply:
    """What a provider answered. With n > 1 there are several samples of one request."""

    samples: list[Sample] = field(default_factory=list)
    response_id: str | None = None
    model: str | None = None
    usage: dict[str, Any] | None = None
    cost: float | None = None
    error: str | None = None
    complete: bool = True
    """False of a stream that ended before its last event."""


class Assembler(Protocol):
    """Puts the events of one stream together."""

    def feed(self, event: str | None, data: Any) -> bool:
        """Take one event, its name and its decoded data; whether it carried something that the model generated."""
        ...

    def reply(self) -> Reply:
        """What the events so far amount to."""
        ...


class Format(Protocol):
    """One provider's wire format."""

    def asked(self, body: Mapping[str, Any], path: str) -> Asked | None:
        """The request in `body`, or None where this is no request to a model after all."""
        ...

    def answered(self, body: Mapping[str, Any]) -> Reply:
        """The response in `body`."""
        ...

    def assembler(self) -> Assembler:
        """For a response that comes as server-sent events."""
        ...


def as_list(value: Any) -> list[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def picked(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The request's sampling parameters."""
    return {name: given for name, given in body.items() if name in _SAMPLING and given is not None} or None


def function_tool(tool: Any, schema: str = "parameters") -> dict[str, Any]:
    """A flat function tool (name, description, `schema`) in the chat form; any other, such as a hosted one, as it is."""
    if not isinstance(tool, dict):
        return {"type": "unknown", "value": tool}
    if "function" in tool or "name" not in tool or (schema not in tool and tool.get("type") != "function"):
        return tool
    function = {"name": tool["name"]}
    for theirs, ours in (("description", "description"), (schema, "parameters"), ("strict", "strict")):
        if theirs in tool:
            function[ours] = tool[theirs]
    return {"type": "function", "function": function}


def arguments_text(arguments: Any) -> str:
    """A tool call's arguments as JSON text, the same whether they came as text, in pieces or as an object.

    Text that is no JSON (of a stream that broke off) stays as it is.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            return str(arguments)
    return json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))


def error_text(body: Any) -> str | None:
    """The words of an error body: OpenAI's and Anthropic's `{"error": {"type", "code", "message"}}`, or what there is."""
    if not isinstance(body, Mapping):
        return str(body)[:MAX_ERROR_CHARS] if body else None
    error = body.get("error") or body
    if not isinstance(error, Mapping):
        return str(error)[:MAX_ERROR_CHARS]
    kind = error.get("code") or error.get("type")
    words = error.get("message") or error.get("detail")
    text = ": ".join(str(part) for part in (kind, words) if part)
    return (text or json.dumps(dict(error), default=str))[:MAX_ERROR_CHARS]


def total_usage(usage: Any) -> dict[str, Any] | None:
    """The provider's counts as they are, with prompt_tokens, completion_tokens and total_tokens added where it names them otherwise.

    Anthropic counts cached tokens beside input_tokens; OpenAI's prompt_tokens includes them, and so do ours.
    """
    if not isinstance(usage, dict) or not usage:
        return None
    told = dict(usage)
    if "prompt_tokens" not in told and isinstance(told.get("input_tokens"), int):
        cached = sum(int(told.get(name) or 0) for name in ("cache_read_input_tokens", "cache_creation_input_tokens"))
        told["prompt_tokens"] = told["input_tokens"] + cached
    if "completion_tokens" not in told and isinstance(told.get("output_tokens"), int):
        told["completion_tokens"] = told["output_tokens"]
    if "total_tokens" not in told and "prompt_tokens" in told:
        told["total_tokens"] = int(told["prompt_tokens"] or 0) + int(told.get("completion_tokens") or 0)
    return told
