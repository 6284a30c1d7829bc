"""treadle's own exports, and the lines that TRL, Axolotl and verl train on.

- A line of `treadle corpus export` keeps its ids, task, tools and marks; its reward comes back as an outcome. What no interaction said (a
  demonstration, the worse half of a preference) comes back as what it was. A row in several lines is the same row in each.
- A line of another trainer is an interaction with an id made of its content: a chat (`messages`), a completion with or without a label, a
  preference. Prompts alone hold no answer and are no rows.

No line has a time: they get 1970-01-01.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from treadle_schemas.canonical import content_hash, loads
from treadle_schemas.errors import FieldError

from treadle_streams.importing.formats._items import Bad, Call, Item, Passed, Recall, Score
from treadle_streams.importing.formats._node import Node, turns

__all__ = ["treadle"]

NO_TIME: Final = "1970-01-01T00:00:00Z"
REWARD: Final = "reward"


def treadle(document: dict[str, Any], recall: Recall) -> Iterator[Item]:
    """The items of one line."""
    node = Node(document)
    if "attempts" in node:
        for path, attempt in node.nodes("attempts"):
            try:
                yield from _row(
                    Node({"task_id": node.any("task_id"), **attempt}, path), turns(Node(attempt, path), "messages")
                )
            except FieldError as err:
                yield Bad(err)
    elif "chosen" in node and "rejected" in node:
        yield from _pair(node)
    elif "completion" in node:
        prompt, answer = turns(node, "prompt"), turns(node, "completion")
        yield from _row(node, prompt + answer, first=len(prompt))
    elif "messages" in node:
        yield from _row(node, turns(node, "messages"))
    elif "prompt" in node:
        yield Passed("prompt without an answer")
    else:
        raise FieldError("$", "is no line of an export: it has no messages, completion, chosen or attempts")


def _row(node: Node, messages: list[dict[str, Any]], first: int | None = None) -> Iterator[Item]:
    """One answer. `first` is the message at which it begins, and to which marks count; None: marks count from 0, or flags say it."""
    marks = node.any("response")
    if marks is None:
        marks = _flagged(messages, first or 0)
    elif not isinstance(marks, list) or not all(isinstance(i, int) for i in marks):
        raise FieldError(f"{node.path}.response", "is no list of indices")
    else:
        marks = [i + (first or 0) for i in marks]
    kind = node.text("origin") or "logged"
    if kind == "demonstration":
        yield from _told(node, messages, marks, "demonstration")
        return
    if kind == "preference":  # of kto: the answer that lost
        yield from _told(node, messages, marks, "preference")
        return
    identity = (
        node.text("interaction_id")
        or content_hash([node.value.get("prompt"), node.value.get("completion"), messages])[:32]
    )
    yield _call(node, identity, node.text("episode_id"), messages, marks)
    worth = _worth(node)
    if worth is not None:
        yield _score(identity, REWARD, worth, node.text("episode_id"))


def _pair(node: Node) -> Iterator[Item]:
    """Two answers: rows where they were logged, and a preference where no reward says it."""
    prompt = turns(node, "prompt") if "prompt" in node else turns(node, "messages") if "messages" in node else []
    halves: dict[str, list[dict[str, Any]]] = {}
    for half in ("chosen", "rejected"):
        given = node.any(half)
        halves[half] = [given] if isinstance(given, dict) else turns(node, half)
        if not prompt:
            continue
        if halves[half][: len(prompt)] == prompt:
            halves[half] = halves[half][len(prompt) :]
    ids = {half: node.text(f"{half}_id") for half in halves}
    own = ids["chosen"] is None and ids["rejected"] is None
    if own:
        ids["chosen"] = content_hash([prompt, halves["chosen"], node.any("tools")])[:32]
    for half, identity in ids.items():
        if identity is None:
            continue
        messages = prompt + halves[half]
        marks = node.any(f"{half}_response")
        marks = _flagged(messages, len(prompt)) if marks is None else [i + len(prompt) for i in marks]
        yield _call(node, identity, None, messages, marks)
        reward = node.number(f"{half}_reward")
        if reward is not None:
            yield _score(identity, REWARD, reward, None)
    if ids["chosen"] is None:
        assert ids["rejected"] is not None
        yield _said(ids["rejected"], "demonstration", halves["chosen"])
    elif ids["rejected"] is None or node.text("origin") == "preference":
        yield _said(ids["chosen"], "preference", halves["rejected"])


def _told(node: Node, messages: list[dict[str, Any]], marks: list[int], kind: Any) -> Iterator[Item]:
    """What somebody said of a row: the row itself is another line, or none."""
    identity = node.needed("interaction_id")
    yield _said(identity, kind, messages[min(marks, default=0) :], node.text("episode_id"))


def _call(node: Node, identity: str, episode: str | None, messages: list[dict[str, Any]], marks: list[int]) -> Call:
    tools = node.any("tools")
    if isinstance(tools, str):  # tables hold them as text
        tools = loads(tools)
    fields: dict[str, Any] = {
        "response": marks,
        "tools": tools or None,
        "task_id": node.text("task_id"),
        "model": node.text("model"),
        "release": node.text("release"),
    }
    for name in ("token_ids", "logprobs"):
        given = node.any(name)
        if given and all(one is not None for one in given):
            fields[name] = given
    return Call(
        id=identity,
        trace_id=identity,
        session=episode if episode != identity else None,
        messages=[_bare(message) for message in messages],
        response=0,
        started_at=NO_TIME,
        ended_at=NO_TIME,
        fields=fields,
    )


def _score(identity: str, name: str, value: Any, episode: str | None) -> Score:
    key = content_hash([episode, identity, name, value])[:32]
    return Score(id=key, name=name, value=value, observed_at=NO_TIME, span_id=identity, source="treadle/export")


def _said(identity: str, kind: Any, messages: list[dict[str, Any]], episode: str | None = None) -> Score:
    return Score(
        id=content_hash([episode, identity, kind, messages])[:32],
        name=kind,
        value=None,
        observed_at=NO_TIME,
        span_id=identity,
        kind=kind,
        messages=[_bare(message) for message in messages],
        source="treadle/export",
    )


def _worth(node: Node) -> Any:
    """The reward, or the label of an unpaired preference."""
    reward = node.number("reward")
    if reward is not None:
        return reward
    label = node.any("label")
    return float(label) if isinstance(label, bool) else None


def _flagged(messages: list[dict[str, Any]], first: int) -> list[int]:
    """Every assistant turn from `first` on, but for those that a flag leaves out (Axolotl's `train`, OpenAI's `weight`)."""
    return [
        i
        for i, message in enumerate(messages)
        if i >= first
        and message.get("role") == "assistant"
        and message.get("train") is not False
        and message.get("weight") != 0
    ]


def _bare(message: dict[str, Any]) -> dict[str, Any]:
    """Without flags, and without the nulls that tables fill in. `content` may be null in truth."""
    return {
        name: value
        for name, value in message.items()
        if name not in ("train", "weight") and (value is not None or name == "content")
    }
