"""Anchor sets: files of conversations, pairs, labelled answers or groups of attempts that a training must not forget.

A line is what `treadle corpus export --view` writes for the view of the method, in treadle's own form. For sft and kto it may also be a
conversation as in an anchor suite, {"messages": [...], "response": [...], "tools": [...]}: one to imitate, or a good answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from treadle_corpus.heldout import Foreign, HeldOut
from treadle_corpus.views import View
from treadle_schemas import SettingError, split_group
from treadle_schemas.canonical import loads
from treadle_schemas.errors import FieldError

from treadle_trainer.mixture import file_hash

__all__ = ["anchor_view", "read_anchor_set"]

Messages = list[dict[str, Any]]


class _Line(msgspec.Struct, kw_only=True):
    tools: list[dict[str, Any]] | None = None
    task_id: str | None = None
    episode_id: str | None = None
    group: str | None = None
    split: str = "train"


class _Talk(_Line, kw_only=True):
    messages: Messages
    response: list[int] | None = None
    reward: float | None = None
    steps: list[int] = []


class _Pair(_Line, kw_only=True):
    prompt: Messages
    chosen: Messages
    rejected: Messages
    chosen_response: list[int] | None = None
    rejected_response: list[int] | None = None
    margin: float | None = None


class _Label(_Line, kw_only=True):
    prompt: Messages
    completion: Messages
    label: bool
    response: list[int] | None = None


class _Attempt(msgspec.Struct, kw_only=True):
    messages: Messages
    reward: float
    tools: list[dict[str, Any]] | None = None
    response: list[int] | None = None
    token_ids: list[list[int] | None] | None = None
    logprobs: list[list[float] | None] | None = None


class _Group(_Line, kw_only=True):
    attempts: list[_Attempt]


_FORMS: Final[dict[str, tuple[type[_Line], ...]]] = {
    "sft": (_Talk,),
    "kto": (_Label, _Talk),
    "dpo": (_Pair,),
    "reward": (_Pair,),
    "rl": (_Group,),
}


def read_anchor_set(path: Path, sha256: str) -> bytes:
    """The file as it was when the job was made. Raises SettingError where it is another one now, or cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as err:
        raise SettingError(f"{path}: the anchor set cannot be read: {err}") from err
    if file_hash(data) != sha256:
        raise SettingError(
            f"{path}: the anchor set was changed since this job was made; with what it says now it is another job"
        )
    return data


def anchor_view(path: Path, data: bytes, view: str, heldout: HeldOut) -> View[Any]:
    """The examples of an anchor set for a view, in the order of the file, each line an example.

    Drops: `heldout` (the line says that it is of the held-out side), and what `HeldOut.judge` names. Raises SettingError naming the line.
    """
    examples: list[dict[str, Any]] = []
    foreign: list[Foreign] = []
    dropped: Counter[str] = Counter()
    rows = 0
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        rows += 1
        where = f"{path}:{number}"
        said = _decoded(line, view, where)
        if said.split == "heldout":
            dropped["heldout"] += 1
            continue
        example, conversations = _example(said, view, where)
        examples.append(example)
        foreign.append(Foreign(_group(said, conversations[0][0]), list(_parts(conversations))))
    if not rows:
        raise SettingError(f"{path}: the anchor set is empty")
    reasons = heldout.judge(foreign)
    dropped.update(reason for reason in reasons if reason is not None)
    kept = [example for example, reason in zip(examples, reasons, strict=True) if reason is None]
    return View(
        name=view,
        split="train",
        examples=kept,
        rows=rows,
        used=len(kept),
        dropped=dict(sorted(dropped.items())),
        left_out={},
    )


def _decoded(line: bytes, view: str, where: str) -> Any:
    forms = _FORMS[view]
    try:
        plain = loads(line, where)
    except FieldError as err:
        raise SettingError(f"{where}: not a line of JSON: {err}") from err
    problems = []
    for form in forms:
        try:
            return msgspec.convert(plain, form)
        except msgspec.ValidationError as err:
            problems.append(str(err))
    raise SettingError(
        f"{where}: no line of an anchor set for the {view} view, as `treadle corpus export --view {view}` writes it: {problems[0]}"
    )


def _example(said: Any, view: str, where: str) -> tuple[dict[str, Any], list[tuple[Messages, list[int]]]]:
    """The example as the view gives it, and its conversations with what is trained on of each."""
    match said:
        case _Talk():
            own = _response(said.messages, said.response, where)
            if view == "kto":
                first = own[0]
                example = {"prompt": said.messages[:first], "completion": said.messages[first:], "label": True}
                example |= {"response": [n - first for n in own], "tools": said.tools}
            else:
                example = {"messages": said.messages, "response": own, "tools": said.tools}
                example |= {"reward": said.reward, "steps": said.steps}
            return example, [(said.messages, own)]
        case _Label():
            own = _response(said.completion, said.response, where)
            example = {"prompt": said.prompt, "completion": said.completion, "label": said.label}
            return example | {"response": own, "tools": said.tools}, [_whole(said.prompt, said.completion, own)]
        case _Pair():
            example = {"prompt": said.prompt, "tools": said.tools, "margin": said.margin}
            conversations = []
            for half in ("chosen", "rejected"):
                answer = getattr(said, half)
                own = _response(answer, getattr(said, f"{half}_response"), where)
                example |= {half: answer, f"{half}_response": own}
                conversations.append(_whole(said.prompt, answer, own))
            return example, conversations
    attempts = []
    if len(said.attempts) < 2:
        raise SettingError(f"{where}: a group of {len(said.attempts)} attempts: expected at least 2")
    for one in said.attempts:
        own = _response(one.messages, one.response, where)
        logged = {name: getattr(one, name) or [None] * len(own) for name in ("token_ids", "logprobs")}
        if any(len(entries) != len(own) for entries in logged.values()):
            raise SettingError(
                f"{where}: token_ids and logprobs have an entry for each of the {len(own)} messages in response"
            )
        attempts.append({"messages": one.messages, "response": own, "tools": one.tools, "reward": one.reward, **logged})
    return {"attempts": attempts}, [(a["messages"], a["response"]) for a in attempts]


def _response(messages: Messages, response: list[int] | None, where: str) -> list[int]:
    """What is trained on: by default the last message of the assistant. Raises SettingError where that is none of its messages."""
    if any(not isinstance(message.get("role"), str) for message in messages):
        raise SettingError(f"{where}: a message has no role")
    spoken = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    own = spoken[-1:] if response is None else sorted(set(response))
    if not own or not set(own) <= set(spoken):
        raise SettingError(f"{where}: response {own} names no messages of the assistant (those are {spoken})")
    return own


def _whole(prompt: Messages, answer: Messages, own: list[int]) -> tuple[Messages, list[int]]:
    return [*prompt, *answer], [len(prompt) + n for n in own]


def _group(said: Any, messages: Messages) -> str:
    """The split group: what the line says of it, or what a row with these messages would have."""
    # the `group` of an anchor suite is a label; that of a line which a view wrote is the split group
    if said.task_id is None and said.group is not None and (said.episode_id is not None or isinstance(said, _Group)):
        return str(said.group)
    return split_group(said.task_id, messages)


def _parts(conversations: Sequence[tuple[Messages, list[int]]]) -> list[Messages]:
    """Conversations as rows would hold them: the whole, and each step up to a turn that is trained on."""
    return [messages[:end] for messages, own in conversations for end in {len(messages), *(n + 1 for n in own)}]
