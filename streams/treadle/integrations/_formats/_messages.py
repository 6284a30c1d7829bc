"""Chat messages in the many ways that frameworks log them, as OpenAI chat messages with tool arguments as JSON text.

Understood: OpenAI chat and responses items, Anthropic blocks, LangChain (serialised, dumped, as tuples), OpenInference, OpenTelemetry GenAI
parts, and plain text. What is none of these becomes one message that holds its JSON, so nothing is lost. Messages that are OpenAI's
already stay as they are, field by field.
"""

from __future__ import annotations

import json
from typing import Any, Final

from treadle_schemas.errors import FieldError, shown

__all__ = ["as_messages", "as_tools", "json_text", "usage_of"]

_ROLES: Final = {
    "human": "user",
    "ai": "assistant",
    "model": "assistant",
    "HumanMessage": "user",
    "HumanMessageChunk": "user",
    "AIMessage": "assistant",
    "AIMessageChunk": "assistant",
    "SystemMessage": "system",
    "ToolMessage": "tool",
    "FunctionMessage": "tool",
    "ChatMessage": "user",
}
_LISTS: Final = ("messages", "input_messages", "output_messages", "input", "output", "generations", "choices", "items")
_BLOCKS: Final = ("text", "tool_use", "tool_result", "thinking", "image", "image_url")
_MAX_DEPTH: Final = 8


def as_messages(said: Any, role: str, where: str) -> list[dict[str, Any]]:
    """What was said, as messages; `role` is whose it is where it does not say. Raises FieldError naming the part."""
    return _several(said, role, where, 0)


def json_text(value: Any) -> str:
    """`value` as JSON text; text stays as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def as_tools(declared: Any) -> list[dict[str, Any]] | None:
    """Tool declarations in the chat form, or None."""
    found = []
    for tool in declared if isinstance(declared, list) else []:
        if isinstance(tool, str):
            tool = _decoded(tool)
        if isinstance(tool, dict) and "function" not in tool and isinstance(tool.get("name"), str):
            function = {"name": tool["name"]}
            for theirs, ours in (
                ("description", "description"),
                ("parameters", "parameters"),
                ("input_schema", "parameters"),
            ):
                if theirs in tool:
                    function[ours] = tool[theirs]
            tool = {"type": "function", "function": function}
        found.append(tool if isinstance(tool, dict) else {"type": "unknown", "value": tool})
    return found or None


def usage_of(counts: Any) -> dict[str, Any] | None:
    """Token counts with prompt_tokens, completion_tokens and total_tokens beside the product's own names."""
    if not isinstance(counts, dict) or not counts:
        return None
    told = {name: given for name, given in counts.items() if given is not None}
    for ours, theirs in (
        ("prompt_tokens", ("input", "input_tokens", "prompt", "promptTokens")),
        ("completion_tokens", ("output", "output_tokens", "completion", "completionTokens")),
        ("total_tokens", ("total", "totalTokens")),
    ):
        found = next((told[name] for name in theirs if isinstance(told.get(name), int)), None)
        if found is not None:
            told.setdefault(ours, found)
    if "total_tokens" not in told and "prompt_tokens" in told and "completion_tokens" in told:
        told["total_tokens"] = told["prompt_tokens"] + told["completion_tokens"]
    return told or None


def _several(said: Any, role: str, where: str, depth: int) -> list[dict[str, Any]]:
    if depth > _MAX_DEPTH:
        raise FieldError(where, "is nested too deep for messages")
    if said is None:
        return []
    if isinstance(said, str):
        inner = _decoded(said)
        # only what looks like messages is opened: an answer may be JSON text itself
        return _several(inner, role, where, depth + 1) if _speaks(inner) else [{"role": role, "content": said}]
    if isinstance(said, list):
        if (
            len(said) == 2
            and all(isinstance(part, str) for part in said)
            and said[0] in _ROLES.keys() | {"user", "assistant", "system"}
        ):
            return [{"role": _ROLES.get(said[0], said[0]), "content": said[1]}]
        if said and all(_is_block(part) for part in said):
            return _turn({"role": role, "content": said}, role, where)
        found = []
        for n, part in enumerate(said):
            found += _several(part, role, f"{where}[{n}]", depth + 1)
        return found
    if isinstance(said, dict):
        return _object(said, role, where, depth)
    return [{"role": role, "content": json_text(said)}]


def _object(said: dict[str, Any], role: str, where: str, depth: int) -> list[dict[str, Any]]:
    kind = said.get("type")
    if said.get("lc") and isinstance(said.get("kwargs"), dict):  # LangChain's serialised constructor
        name = said["id"][-1] if isinstance(said.get("id"), list) and said["id"] else ""
        return _turn({**said["kwargs"], "role": _ROLES.get(str(name), role)}, role, where, foreign=True)
    if isinstance(kind, str) and kind in _ROLES and isinstance(said.get("data"), dict):  # messages_to_dict
        return _turn({**said["data"], "role": _ROLES[kind]}, role, where, foreign=True)
    if kind == "function_call":
        function = {"name": said.get("name"), "arguments": json_text(said.get("arguments") or "{}")}
        call = {"id": said.get("call_id") or said.get("id"), "type": "function", "function": function}
        return [{"role": "assistant", "content": None, "tool_calls": [call]}]
    if kind == "function_call_output":
        return [{"role": "tool", "tool_call_id": said.get("call_id"), "content": json_text(said.get("output"))}]
    if isinstance(said.get("role"), str) and (
        {"content", "tool_calls", "parts", "contents", "function_call"} & said.keys()
    ):
        return _turn(said, role, where)
    if isinstance(kind, str) and (kind in _ROLES or kind in ("system", "tool")) and "content" in said:
        return _turn({**said, "role": _ROLES.get(kind, kind)}, role, where, foreign=True)
    if isinstance(said.get("message"), dict):  # OpenInference, a choice, a LangChain generation
        return _object(said["message"], role, where + ".message", depth + 1)
    for name in _LISTS:
        if isinstance(said.get(name), list) or (
            isinstance(said.get(name), str | dict) and name in ("input", "output", "messages")
        ):
            before = (
                _several(said["system"], "system", where + ".system", depth + 1)
                if isinstance(said.get("system"), str | list)
                else []
            )
            return before + _several(said[name], role, f"{where}.{name}", depth + 1)
    if isinstance(said.get("text"), str) and not said.keys() - {"text", "generation_info", "type"}:
        return [{"role": role, "content": said["text"]}]
    if isinstance(said.get("content"), str | list):
        return _turn({**said, "role": role}, role, where)
    if "tool_calls" in said:
        return _turn({"content": None, **said, "role": role}, role, where)
    return [{"role": role, "content": json_text(said)}]


def _turn(said: dict[str, Any], role: str, where: str, *, foreign: bool = False) -> list[dict[str, Any]]:
    """One message that has a role. Anthropic's tool results become messages of their own, before the rest of the turn."""
    if not foreign and _is_chat(said):
        return [said]
    kind = said.get("role") if isinstance(said.get("role"), str) else role
    message: dict[str, Any] = {"role": _ROLES.get(str(kind), str(kind))}
    extra = said.get("additional_kwargs") if isinstance(said.get("additional_kwargs"), dict) else {}
    content = said.get("parts") if "parts" in said else said.get("contents", said.get("content"))
    results, calls, rest, thoughts = _blocks(content, where)
    message["content"] = rest
    given = said.get("tool_calls") or (extra or {}).get("tool_calls")
    if isinstance(given, list):
        calls = [_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(given)] or calls
    elif given:
        raise FieldError(f"{where}.tool_calls", f"is {shown(given)}, not a list")
    if thoughts:
        message["reasoning_content"] = thoughts
    if calls:
        message["tool_calls"] = calls
    for name in (
        "name",
        "tool_call_id",
        "refusal",
        "reasoning_content",
        "function_call",
        "weight",
        "is_error",
        "audio",
    ):
        if said.get(name) is not None:
            message[name] = said[name]
    if message["role"] == "tool" and len(results) == 1 and not rest:
        return results
    if results and not rest and not calls and not thoughts:
        return results
    return [*results, message]


def _blocks(content: Any, where: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Any, str]:
    """Tool results, tool calls, the content that is left, and thoughts. Content that is text or has no such blocks stays as it is."""
    if not isinstance(content, list):
        return [], [], content if content is None or isinstance(content, str) else json_text(content), ""
    results, calls, thoughts = [], [], []
    rest: list[dict[str, Any]] = []
    for n, raw in enumerate(content):
        block = raw
        if isinstance(block, dict) and isinstance(block.get("message_content"), dict):  # OpenInference
            block = block["message_content"]
        kind = block.get("type") if isinstance(block, dict) else None
        if kind in ("tool_use", "tool_call"):
            calls.append(_call(block, f"{where}.content[{n}]"))
        elif kind in ("tool_result", "tool_call_response"):
            answer = block.get("content", block.get("response", block.get("result")))
            _, _, said, _ = _blocks(answer, f"{where}.content[{n}]")
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id", block.get("id")), "content": said})
        elif kind in ("thinking", "reasoning"):
            thoughts.append(str(block.get("thinking") or block.get("content") or block.get("text") or ""))
        elif isinstance(block, str):
            rest.append({"type": "text", "text": block})
        elif kind in ("text", "input_text", "output_text") and isinstance(block.get("text", block.get("content")), str):
            rest.append({"type": "text", "text": block.get("text", block.get("content"))})
        elif kind in ("uri", "blob") and block.get("modality") == "image":
            url = block.get("uri") if kind == "uri" else f"data:{block.get('mime_type')};base64,{block.get('content')}"
            rest.append({"type": "image_url", "image_url": {"url": url}})
        else:
            rest.append(block if isinstance(block, dict) else {"type": "unknown", "value": block})
    plain = all(part.get("type") == "text" for part in rest)
    if rest and plain and (results or calls or thoughts or len(rest) == 1):
        return results, calls, "".join(part["text"] for part in rest), "".join(thoughts)
    return results, calls, rest or None, "".join(thoughts)


def _call(given: Any, where: str) -> dict[str, Any]:
    if isinstance(given, dict) and isinstance(given.get("tool_call"), dict):  # OpenInference
        given = given["tool_call"]
    if not isinstance(given, dict):
        raise FieldError(where, f"is {shown(given)}, not a tool call")
    function = given.get("function")
    if isinstance(function, dict):
        arguments = function.get("arguments")
        if isinstance(arguments, str) and given.get("type") is not None:
            return given
        function = {**function, "arguments": "{}" if arguments is None else json_text(arguments)}
        return {"id": given.get("id"), "type": "function", "function": function}
    name = given.get("name") or given.get("tool_name")
    if not isinstance(name, str):
        raise FieldError(f"{where}.name", "is missing: a tool call names its tool")
    arguments = next((given[key] for key in ("args", "arguments", "input") if given.get(key) is not None), {})
    return {"id": given.get("id"), "type": "function", "function": {"name": name, "arguments": json_text(arguments)}}


def _is_chat(said: dict[str, Any]) -> bool:
    """Whether it is an OpenAI chat message as it is."""
    if (
        said.get("role") not in ("system", "developer", "user", "assistant", "tool", "function")
        or "additional_kwargs" in said
    ):
        return False
    content = said.get("content")
    if isinstance(content, list):
        parts = ("text", "image_url", "input_audio", "file", "refusal")
        return (
            all(isinstance(part, dict) and part.get("type") in parts for part in content) and "tool_calls" not in said
        )
    if not (content is None or isinstance(content, str)) or said.keys() & {"parts", "contents"}:
        return False
    calls = said.get("tool_calls")
    return calls is None or (
        isinstance(calls, list)
        and all(
            isinstance(call, dict)
            and isinstance(call.get("function"), dict)
            and isinstance(call["function"].get("arguments"), str)
            and call.get("type") == "function"
            for call in calls
        )
    )


def _is_block(part: Any) -> bool:
    return isinstance(part, dict) and "role" not in part and part.get("type") in _BLOCKS


def _speaks(value: Any) -> bool:
    """Whether decoded JSON text is messages rather than data."""
    if isinstance(value, list):
        return bool(value) and all(_speaks(part) for part in value)
    return isinstance(value, dict) and (
        isinstance(value.get("role"), str)
        or (isinstance(value.get("messages"), list) and _speaks(value["messages"]))
        or (isinstance(value.get("choices"), list) and bool(value["choices"]))
        or bool(value.get("lc"))
        or value.get("type") in ("function_call", "function_call_output")
    )


def _decoded(text: str) -> Any:
    if not text[:64].lstrip().startswith(("[", "{")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
