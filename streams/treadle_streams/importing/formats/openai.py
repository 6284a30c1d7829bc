"""OpenAI: stored completions, batches, fine-tuning files.

- A stored completion (`client.chat.completions.list`, `retrieve`) holds no prompt: either its line has `messages` (or `input`) beside
  it, or the list of its messages (`client.chat.completions.messages.list`, ids begin with the completion's) is another line or file.
- A batch is its input file and its output and error files, in any order; `custom_id` joins them. Chat completions and responses.
- A fine-tuning line (`messages`) is an interaction; a preference line (`input`, `preferred_output`, `non_preferred_output`) is one that
  answers with the preferred output, and a preference outcome over the other. Such lines have no time: they get 1970-01-01, and ids made of
  their content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from treadle.integrations._formats import Unreadable, error_text, format_of
from treadle.integrations._formats._messages import as_messages
from treadle_schemas.canonical import content_hash
from treadle_schemas.errors import FieldError, shown
from treadle_schemas.moments import from_micros

from treadle_streams.importing.formats._items import Bad, Call, Item, Passed, Recall, Remember, Score
from treadle_streams.importing.formats._node import Node, turns

__all__ = ["openai"]

NO_TIME: Final = "1970-01-01T00:00:00Z"
_CHAT: Final = "/v1/chat/completions"
_PATHS: Final = (_CHAT, "/v1/responses")
_MESSAGE_ID = re.compile(r"(.+)-\d+")
_OTHER: Final = ("/v1/embeddings", "/v1/completions", "/v1/moderations", "/v1/images/generations", "/v1/images/edits")


def openai(document: dict[str, Any], recall: Recall) -> Iterator[Item]:
    """The items of one line."""
    node = Node(document)
    if "custom_id" in node:
        yield from _batch(node, recall)
    elif node.any("object") == "list" and "data" not in node:
        raise FieldError("$.data", "is missing: a list has its objects there")
    elif node.any("object") == "list" or (isinstance(document.get("data"), list) and "choices" not in node):
        for path, entry in node.nodes("data"):
            try:
                yield from _listed(Node(entry, path), recall)
            except FieldError as err:
                yield Bad(err)
    elif "preferred_output" in node:
        yield from _preference(node)
    elif node.any("object") in ("chat.completion", "response") or "choices" in node:
        yield from _stored(node, recall)
    elif "messages" in node:
        yield from _example(node)
    else:
        raise FieldError(
            "$", "is no stored completion (object), batch line (custom_id) or fine-tuning line (messages, input)"
        )


def _listed(node: Node, recall: Recall) -> Iterator[Item]:
    if node.any("object") in ("chat.completion", "response"):
        yield from _stored(node, recall)
        return
    found = _MESSAGE_ID.fullmatch(node.needed("id")) if "role" in node else None
    if found is None:
        raise FieldError(node.path, "is no stored completion and no message of one")
    number = int(node.needed("id").rpartition("-")[2])
    said = {name: given for name, given in node.value.items() if name != "id" and given is not None}
    yield Remember(f"stored:{found[1]}:{number}", said)
    yield Passed("message of a stored completion")


def _stored(node: Node, recall: Recall) -> Iterator[Item]:
    path = "/v1/responses" if node.any("object") == "response" else _CHAT
    beside = node.any("messages", "input")
    identity = node.needed("id")
    if beside is None:
        beside = []
        while (message := recall(f"stored:{identity}:{len(beside)}")) is not None:
            beside.append(message)
    if not beside:
        raise FieldError(
            node.where("messages"), f"is missing, and no messages of {identity} are in these files: export them too"
        )
    request = {**node.value, ("messages" if path == _CHAT else "input"): beside}
    yield from _answered(node, identity, request, node.value, path)


def _batch(node: Node, recall: Recall) -> Iterator[Item]:
    identity = node.needed("custom_id")
    if "url" in node:
        body = node.object("body")
        if body is None:
            raise FieldError(f"{node.path}.body", "is missing")
        yield Remember(f"batch:{identity}", {"url": node.needed("url"), "body": body.value})
        yield Passed("batch request")
        return
    asked = recall(f"batch:{identity}")
    if asked is None:
        raise FieldError(
            node.where("custom_id"), f"no request {shown(identity)} is in these files: give the batch's input file too"
        )
    if asked["url"] not in _PATHS:
        if asked["url"] in _OTHER:
            yield Passed(f"batch answer of {asked['url']}")
            return
        raise FieldError("$.url", f"{shown(asked['url'])} is not known; known are {', '.join(_PATHS)}")
    response, error = node.object("response"), node.any("error")
    body = response.object("body") if response else None
    code = response.number("status_code") if response else None
    if body is None or error or (code is not None and code >= 400):
        problem = error_text(error or (body.value if body else None)) or f"status {code}"
        yield from _failed(node, identity, asked, problem)
        return
    yield from _answered(body, node.text("id") or identity, asked["body"], body.value, asked["url"])


def _failed(node: Node, identity: str, asked: dict[str, Any], problem: str) -> Iterator[Item]:
    request = _asked(asked["body"], asked["url"], node.path)
    name = node.text("id") or identity
    fields = {
        "model": request.model,
        "tools": request.tools,
        "sampling": request.sampling,
        "status": "error",
        "error": problem,
    }
    messages = as_messages(request.messages, "user", "$.body.messages")
    yield Call(
        id=name, trace_id=name, messages=messages, response=0, started_at=NO_TIME, ended_at=NO_TIME, fields=fields
    )


def _answered(node: Node, identity: str, request: dict[str, Any], answer: dict[str, Any], path: str) -> Iterator[Item]:
    asked = _asked(request, path, node.path)
    try:
        reply = format_of(path).answered(answer)
    except (AttributeError, KeyError, TypeError, ValueError, Unreadable) as err:
        raise FieldError(node.path, f"is no answer as {path} gives it: {err}") from None
    created = node.number("created", "created_at")
    finished = node.number("completed_at")
    at = _seconds(created, node.where("created", "created_at")) if created is not None else NO_TIME
    if not reply.samples:
        raise FieldError(node.where("choices", "output"), reply.error or "holds no answer")
    labels = node.object("metadata")
    for n, sample in enumerate(reply.samples):
        # further choices are answers to the same question, each an episode of its own
        name = identity if n == 0 else f"{identity}:{n}"
        yield Call(
            id=name,
            trace_id=name,
            messages=asked.messages + sample.messages,
            response=len(sample.messages),
            started_at=at,
            ended_at=_seconds(finished, node.where("completed_at")) if finished is not None else at,
            subject=node.text("user", "safety_identifier"),
            fields={
                "model": reply.model or asked.model,
                "tools": asked.tools,
                "sampling": asked.sampling,
                "usage": reply.usage,
                "finish_reason": sample.finish_reason,
                "logprobs": sample.logprobs,
                "status": "error" if reply.error else None,
                "error": reply.error,
                "references": [f"response:{reply.response_id}"] if reply.response_id else [],
                "tags": {k: v for k, v in labels.value.items() if isinstance(v, str)} if labels else None,
            },
        )


def _asked(body: dict[str, Any], path: str, where: str) -> Any:
    try:
        asked = format_of(path).asked(body, path)
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise FieldError(where, f"is no request as {path} takes it: {err}") from None
    if asked is None:
        raise FieldError(where, f"is no request as {path} takes it")
    return asked


def _example(node: Node) -> Iterator[Item]:
    messages = turns(node, "messages")
    # only what the line wants trained; a weight belongs to fine-tuning, not to what was said
    answers = [n for n, turn in enumerate(messages) if turn.get("role") == "assistant" and turn.get("weight", 1) != 0]
    if not answers:
        raise FieldError(node.where("messages"), "has no answer of the assistant")
    identity = content_hash(node.value)[:32]
    yield Call(
        id=identity,
        trace_id=identity,
        messages=[{name: given for name, given in turn.items() if name != "weight"} for turn in messages],
        response=0,
        started_at=NO_TIME,
        ended_at=NO_TIME,
        fields={
            "tools": node.any("tools") or None,
            "response": answers,
            "model": node.text("model"),
            "sampling": _sampling(node),
        },
    )


def _preference(node: Node) -> Iterator[Item]:
    given = node.object("input")
    if given is None:
        raise FieldError(f"{node.path}.input", "is missing")
    asked = turns(given, "messages")
    better, worse = turns(node, "preferred_output"), turns(node, "non_preferred_output")
    identity = content_hash(node.value)[:32]
    yield Call(
        id=identity,
        trace_id=identity,
        messages=asked + better,
        response=len(better),
        started_at=NO_TIME,
        ended_at=NO_TIME,
        fields={"tools": given.any("tools") or None, "sampling": _sampling(given)},
    )
    yield Score(
        id=f"{identity}:preference",
        name="preference",
        value=None,
        observed_at=NO_TIME,
        span_id=identity,
        kind="preference",
        messages=worse,
        source="openai/fine-tuning",
    )


def _sampling(node: Node) -> dict[str, Any] | None:
    parallel = node.any("parallel_tool_calls")
    return {"parallel_tool_calls": parallel} if parallel is not None else None


def _seconds(given: float, where: str) -> str:
    try:
        return from_micros(round(given * 1_000_000))
    except (OverflowError, ValueError):
        raise FieldError(where, f"{shown(given)} is no time") from None
