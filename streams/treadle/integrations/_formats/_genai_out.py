"""A recorded interaction as a span of the GenAI conventions. Pure; the other way round is `_genai`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from treadle_schemas.canonical import dumps, loads
from treadle_schemas.errors import FieldError

__all__ = ["span_of"]

_REQUEST: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "stop": "stop_sequences",
    "stop_sequences": "stop_sequences",
    "n": "choice.count",
}
"""Sampling parameters that the conventions have a name for."""
_USAGE: Final = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
_FINISH: Final = {"tool_calls": "tool_call"}
_OPERATION: Final = "chat"


def span_of(value: Mapping[str, Any], handle: str, *, content: bool) -> tuple[str, dict[str, Any]]:
    """The name and the attributes of the span of an interaction's value; messages and tools only with `content`."""
    model, tags = value.get("model"), value.get("tags") or {}
    told: dict[str, Any] = {
        "gen_ai.operation.name": _OPERATION,
        "gen_ai.provider.name": tags.get("provider"),
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": _response_id(value.get("references") or ()),
        "gen_ai.conversation.id": tags.get("conversation_id"),
        "gen_ai.agent.name": value.get("agent"),
        "gen_ai.response.finish_reasons": [value["finish_reason"]] if value.get("finish_reason") else None,
        "treadle.handle": handle,
        "treadle.slot": value.get("slot"),
        "treadle.release": value.get("release"),
    }
    for ours, theirs in _REQUEST.items():
        given = (value.get("sampling") or {}).get(ours)
        if theirs == "stop_sequences" and isinstance(given, str):
            given = [given]
        told[f"gen_ai.request.{theirs}"] = given if given is not None else told.get(f"gen_ai.request.{theirs}")
    for ours, theirs in _USAGE.items():
        told[f"gen_ai.usage.{theirs}"] = (value.get("usage") or {}).get(ours)
    if value.get("status") == "error":
        told["error.type"] = str(value.get("error") or "error").partition(":")[0]
    if content:
        told |= _content(value)
    return (
        f"{_OPERATION} {model}" if model else _OPERATION,
        {name: given for name, given in told.items() if given is not None},
    )


def _content(value: Mapping[str, Any]) -> dict[str, Any]:
    messages = value["messages"]
    response = value.get("response")
    if response is None:
        response = [n for n, message in enumerate(messages) if message.get("role") == "assistant"]
    answered = frozenset(response)
    end = _FINISH.get(value.get("finish_reason") or "", value.get("finish_reason"))
    asked = [_message(message) for n, message in enumerate(messages) if n not in answered]
    answer = [{**_message(messages[n]), "finish_reason": end or "stop"} for n in response]
    tools = [
        {"type": "function", **tool["function"]} if "function" in tool else tool for tool in value.get("tools") or ()
    ]
    return {
        "gen_ai.input.messages": dumps(asked).decode() if asked else None,
        "gen_ai.output.messages": dumps(answer).decode() if answer else None,
        "gen_ai.tool.definitions": dumps(tools).decode() if tools else None,
    }


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A chat message as parts."""
    content = message.get("content")
    said = {"role": message["role"], "parts": list(_parts(message, content))}
    return {**said, "name": message["name"]} if message.get("name") else said


def _parts(message: Mapping[str, Any], content: Any) -> Iterable[dict[str, Any]]:
    if message.get("role") == "tool":
        yield {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}
        return
    if message.get("reasoning_content"):
        yield {"type": "reasoning", "content": message["reasoning_content"]}
    if isinstance(content, list):
        yield from (_part(part) for part in content)
    elif content is not None:
        yield {"type": "text", "content": content}
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        yield {
            "type": "tool_call",
            "id": call.get("id"),
            "name": function.get("name"),
            "arguments": _arguments(function.get("arguments")),
        }


def _part(part: Any) -> dict[str, Any]:
    if not isinstance(part, dict):
        return {"type": "text", "content": str(part)}
    if part.get("type") == "text":
        return {"type": "text", "content": part.get("text")}
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else None
    if not isinstance(url, str):
        return part
    kind, comma, data = url.partition(";base64,")
    if comma and kind.startswith("data:"):
        mime_type = kind.removeprefix("data:")
        return {"type": "blob", "modality": "image", "mime_type": mime_type, "content": data}
    return {"type": "uri", "modality": "image", "uri": url}


def _arguments(text: Any) -> Any:
    """An object where the text is one."""
    try:
        return loads(text) if isinstance(text, str) else text
    except FieldError:
        return text


def _response_id(references: Iterable[str]) -> str | None:
    return next((name.removeprefix("response:") for name in references if name.startswith("response:")), None)
