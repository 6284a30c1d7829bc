"""LangSmith: runs as `client.list_runs` gives them (a run's JSON a line; nested `child_runs` too), and feedback as `client.list_feedback`
gives it.

Runs of type llm are interactions; the others say who called whom, and a LangGraph or agent run stands for an agent. A thread
(`session_id`, `thread_id` or `conversation_id` in the metadata) is an episode, else the trace is. Feedback becomes outcomes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from treadle.integrations._formats._messages import as_messages, as_tools, usage_of
from treadle_schemas.errors import FieldError

from treadle_streams.importing.formats._items import Bad, Call, Item, Passed, Recall, Score, Span
from treadle_streams.importing.formats._node import Node, milliseconds

__all__ = ["langsmith"]

_THREADS: Final = ("session_id", "thread_id", "conversation_id")
_NOT_SAMPLING: Final = frozenset({"model", "model_name", "tools", "functions", "_type", "stream", "messages"})


def langsmith(document: dict[str, Any], recall: Recall) -> Iterator[Item]:
    """The items of one run with those below it, or of one feedback, or of a page of either."""
    node = Node(document)
    for name in ("runs", "feedback", "feedbacks"):
        if isinstance(document.get(name), list) and "id" not in document:
            for path, record in node.nodes(name):
                yield from _guarded(record, path)
            return
    yield from _record(node)


def _guarded(record: Any, path: str) -> Iterator[Item]:
    try:
        yield from _record(Node(record, path))
    except FieldError as err:
        yield Bad(err)


def _record(node: Node) -> Iterator[Item]:
    if "run_type" in node:
        yield from _run(node)
    elif "key" in node and ("run_id" in node or "trace_id" in node or "session_id" in node):
        yield from _feedback(node)
    else:
        raise FieldError(node.path, "is no run (run_type) and no feedback (key, run_id) of LangSmith")


def _run(node: Node) -> Iterator[Item]:
    kind = node.needed("run_type")
    extra = node.object("extra")
    metadata = (extra.object("metadata") if extra else None) or Node({}, f"{node.path}.extra.metadata")
    started = node.when("start_time")
    common: dict[str, Any] = {
        "id": node.needed("id"),
        "trace_id": node.text("trace_id") or node.needed("id"),
        "parent_id": node.text("parent_run_id"),
        "name": node.text("name") or "",
        "session": next((str(metadata.value[name]) for name in _THREADS if name in metadata), None),
        "subject": metadata.text("user_id") if isinstance(metadata.any("user_id"), str) else None,
        "ended_at": node.time("end_time") or started,
    }
    if kind == "llm":
        yield _call(node, extra, metadata, started, common)
    else:
        yield Span(**common, agent=_is_agent(node, metadata))
        yield Passed(f"run {kind}")
    for path, below in node.nodes("child_runs"):
        yield from _guarded(below, path)


def _is_agent(node: Node, metadata: Node) -> bool:
    # a graph is an agent, the nodes inside it (langgraph_node) are its parts
    name = (node.text("name") or "").lower()
    return (
        node.any("run_type") == "agent" or ("agent" in name and "langgraph_node" not in metadata) or name == "langgraph"
    )


def _call(node: Node, extra: Node | None, metadata: Node, started: str, common: dict[str, Any]) -> Call:
    inputs, outputs = node.object("inputs"), node.object("outputs")
    parameters = extra.object("invocation_params") if extra else None
    asked = _asked(inputs)
    answer = _answer(outputs)
    error = node.text("error")
    declared = (inputs.any("tools") if inputs else None) or (
        parameters.any("tools", "functions") if parameters else None
    )
    labels = node.any("tags")
    first = node.time("first_token_time")
    sampling = (
        {k: v for k, v in parameters.value.items() if k not in _NOT_SAMPLING and v is not None} if parameters else {}
    )
    return Call(
        **common,
        messages=asked + answer,
        response=len(answer),
        started_at=started,
        fields={
            "model": (
                _text(metadata.any("ls_model_name"))
                or (_text(parameters.any("model", "model_name")) if parameters else None)
                or (_text(inputs.any("model")) if inputs else None)
            ),
            "tools": as_tools(declared),
            "status": "error" if error is not None or node.any("status") == "error" else None,
            "error": error,
            "sampling": sampling or None,
            "usage": _usage(node, outputs),
            "cost": node.number("total_cost"),
            "first_token_ms": milliseconds(started, first) if first else None,
            "finish_reason": _finish(outputs),
            "task_id": _text(node.any("reference_example_id")) or _text(metadata.any("task_id")),
            "tags": {str(label): True for label in labels} if isinstance(labels, list) else None,
        },
    )


def _asked(inputs: Node | None) -> list[dict[str, Any]]:
    if inputs is None:
        return []
    if "messages" in inputs:
        found = inputs.any("messages")
        if isinstance(found, list) and len(found) == 1 and isinstance(found[0], list):
            found = found[0]  # LangChain logs a batch of one conversation
        before = as_messages(inputs.any("system"), "system", f"{inputs.path}.system")
        return before + as_messages(found, "user", f"{inputs.path}.messages")
    prompts = inputs.any("prompts", "prompt", "input")
    if prompts is not None:
        alone = prompts[0] if isinstance(prompts, list) and len(prompts) == 1 else prompts
        return as_messages(alone, "user", inputs.where("prompts", "prompt", "input"))
    return as_messages(inputs.value, "user", inputs.path) if inputs.value else []


def _answer(outputs: Node | None) -> list[dict[str, Any]]:
    if outputs is None or not outputs.value:
        return []
    generations = outputs.any("generations")
    if isinstance(generations, list):
        chosen = generations[0] if generations and isinstance(generations[0], list) else generations
        return as_messages(chosen[:1], "assistant", f"{outputs.path}.generations")
    choices = outputs.any("choices")
    if isinstance(choices, list):
        return as_messages(choices[:1], "assistant", f"{outputs.path}.choices")
    return as_messages(
        outputs.any("messages", "message", "output", "content") or outputs.value, "assistant", outputs.path
    )


def _usage(node: Node, outputs: Node | None) -> dict[str, Any] | None:
    counts = {name: node.number(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    if any(counts.values()):
        return usage_of(counts)
    inside = outputs.any("usage_metadata", "usage") if outputs else None
    told = outputs.object("llm_output") if outputs else None
    return usage_of(inside or (told.any("token_usage", "usage") if told else None))


def _finish(outputs: Node | None) -> str | None:
    places: list[Any] = []
    for name in ("choices", "generations"):
        found = outputs.any(name) if outputs else None
        while isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, dict):
            places += [found, found.get("generation_info")]
    return next(
        (p["finish_reason"] for p in places if isinstance(p, dict) and isinstance(p.get("finish_reason"), str)), None
    )


def _feedback(node: Node) -> Iterator[Item]:
    source = node.object("feedback_source")
    told: dict[str, Any] = {
        "name": node.needed("key"),
        "observed_at": node.when("modified_at", "created_at"),
        "span_id": node.text("run_id"),
        "trace_id": node.text("trace_id"),
        "source": f"langsmith/{(source.text('type') if source else None) or 'api'}",
    }
    if told["span_id"] is None and told["trace_id"] is None:
        yield Passed("feedback on a project")
        return
    identity = node.needed("id")
    score, value = node.any("score"), node.any("value")
    if isinstance(score, bool | int | float):
        yield Score(**told, id=identity, value=score)
    elif isinstance(value, bool | int | float | str):
        yield Score(**told, id=identity, value=value)
    elif node.any("correction") is None and node.text("comment") is None:
        if value is not None:
            raise FieldError(node.where("value"), "is an object; an outcome is a number, a boolean or a text")
        yield Score(**told, id=identity, value=None)
    comment = node.text("comment")
    if comment is not None:
        yield Score(**told, id=f"{identity}:comment", value=comment, kind="comment")
    correction = node.any("correction")
    if correction is not None:
        right = as_messages(correction, "assistant", node.where("correction"))
        yield Score(**told, id=f"{identity}:correction", value=None, kind="demonstration", messages=right)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
