"""Examples of what a producer may send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from treadle_schemas import codec
from treadle_schemas.canonical import content_hash
from treadle_schemas.examples._build import (
    ANSWER,
    CALL,
    MINIMAL,
    OUTCOME_VALUE,
    RESULT,
    STEP_OUTCOME,
    TOOLS,
    USER,
    Json,
    became,
    record,
    said,
)
from treadle_schemas.parts import SentParts, split


def _full() -> Json:
    return {
        **MINIMAL,
        "interaction_id": "0194bb70-8d1c-7c3a-9a55-3f1f0f6b2c11",
        "episode_id": "ticket/4711",
        "task_id": "where-is-order",
        "slot": "main",
        "model": "gpt-4o-mini",
        "release": "shop/main/r3",
        "step": 2,
        "messages": [USER, CALL, RESULT, ANSWER],
        "response": [1, 3],
        "tools": TOOLS,
        "status": "ok",
        "subject": "customer-9",
        "tags": {"channel": "mail", "tries": 1, "score": 0.5, "vip": True, "region": None},
        "sampling": {"temperature": 0.7, "top_p": 1},
        "usage": {"prompt_tokens": 180, "completion_tokens": 32, "total_tokens": 212},
        "token_ids": [[9906, 11], [1]],
        "logprobs": [[-0.25, -1.5], [0.0]],
        "finish_reason": "stop",
        "cost": 0.000123,
        "first_token_ms": 412.5,
        "attempts": [
            {
                "status": "error",
                "error": "429",
                "started_at": "2026-01-31T09:30:00Z",
                "ended_at": "2026-01-31T09:30:01Z",
            }
        ],
        "parent_id": "i-0",
        "references": ["response:chatcmpl-7", "ticket:4711"],
        "rights": {"train": "allow", "eval": "deny"},
        "redaction": {"policy": "secrets", "version": 1, "counts": {"api_key": 1}},
    }


def _episode() -> list[Json]:
    first = [USER, ANSWER]
    second = [*first, {"role": "user", "content": "And order 18?"}, {"role": "assistant", "content": "Cancelled."}]
    common = {"episode_id": "s-1", "task_id": "orders"}
    return [
        said(interaction_id="i-1", **common, step=0, messages=first, response=[1]),
        said(
            interaction_id="i-2",
            **common,
            step=1,
            messages=second,
            response=[3],
            started_at="2026-01-31T09:31:00+00:00",
            ended_at="2026-01-31T10:31:02.25+01:00",
        ),
        became(STEP_OUTCOME),
    ]


def _parts() -> list[Json]:
    """What the SDK sends for two steps of an episode whose messages are long: links of one chain, and a claimed tool list."""
    sent, records = SentParts(), []
    long_user = {"role": "user", "content": "Where is order 17? " * 60}
    tools = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "description": "Look an order up. " * 60}}]
    messages = [long_user, ANSWER]
    for step in range(2):
        value = {**MINIMAL, "interaction_id": f"i-{step}", "episode_id": "s-2", "step": step, "messages": messages}
        value, parts = split({**value, "response": [len(messages) - 1], "tools": tools}, sent)
        records += [record(codec.PART, part) for part in parts]
        records.append(record(codec.INTERACTION, value))
        messages = [*messages, {"role": "user", "content": "And order 18?"}, {"role": "assistant", "content": "Gone."}]
    return records


def _marker(phase: str, topic: str) -> Json:
    value = {"import_id": "im-1", "phase": phase}
    return record(codec.IMPORT_MARKER, value, topic=topic, import_id="im-1") | {"every_partition": True}


def _import() -> list[Json]:
    both = ("interactions", "outcomes")
    return [
        *(_marker("begin", topic) for topic in both),
        record(codec.INTERACTION, MINIMAL, import_id="im-1"),
        record(codec.OUTCOME, OUTCOME_VALUE, import_id="im-1"),
        *(_marker("end", topic) for topic in both),
    ]


_DEMONSTRATION: Final = [USER, {"role": "assistant", "content": "Order 17 arrives on Tuesday."}]
_RETRACT: Final[Json] = {**STEP_OUTCOME, "op": "retract", "value": ..., "observed_at": "2026-02-01T08:00:00Z"}
VALID: Final[dict[str, tuple[str, Callable[[], list[Json]]]]] = {
    "interaction-minimal": ("The least that an interaction says. Its episode is itself.", lambda: [said()]),
    "interaction-full": ("Every field.", lambda: [record(codec.INTERACTION, _full())]),
    "interaction-tool-calls": (
        "A tool call, its result and the answer; arguments are JSON in a string.",
        lambda: [said(interaction_id="i-3", messages=[USER, CALL, RESULT, ANSWER], response=[1, 3], tools=TOOLS)],
    ),
    "interaction-error": (
        "The model did not answer: no message is its response.",
        lambda: [
            said(
                interaction_id="i-4",
                messages=[USER],
                response=[],
                status="error",
                error="APITimeoutError: no answer in 30 s",
            )
        ],
    ),
    "interaction-odd-text": (
        "What JSON can carry comes back byte for byte: NUL, U+2028, an emoji, an escaped lone surrogate, a long integer.",
        lambda: [
            said(
                interaction_id="i-5",
                messages=[{"role": "user", "content": "a\u0000\u2028🙂\ud83d"}],
                usage={"n": 2**64 + 1},
            )
        ],
    ),
    "interaction-unknown-field": (
        "A field of a later minor version is kept; check-producer warns of it.",
        lambda: [said(interaction_id="i-6", colour={"r": 1})],
    ),
    "episode": ("Two steps of one episode under one key, and the outcome of the second.", _episode),
    "episode-end": (
        "Nothing that belongs to the episode has started after this time.",
        lambda: [
            record(
                codec.EPISODE_END, {"episode_id": "s-1", "ended_at": "2026-01-31T10:00:00Z", "source": "/agents/desk"}
            )
        ],
    ),
    "erasure": (
        "The episode is taken away for good, with all that was or will be said in it.",
        lambda: [
            record(
                codec.ERASURE,
                {"episode_id": "s-1", "erased_at": "2026-03-01T10:00:00Z", "reason": "asked for by the subject"},
            )
        ],
    ),
    "parts": ("Long messages and tools are stored once: parts first, then the interactions that name them.", _parts),
    "part-erased": (
        "The content of a part is taken away for good.",
        lambda: [
            record(
                codec.PART,
                {"episode_id": "s-2", "part": content_hash("gone")[:32], "erased": "asked for by the subject"},
            )
        ],
    ),
    "outcome": ("An outcome of an interaction that is its own episode.", lambda: [became()]),
    "outcome-of-a-step": (
        "With the episode, which is then the key.",
        lambda: [became(STEP_OUTCOME)],
    ),
    "outcome-null": (
        "The source says that there is no value: absent, not zero.",
        lambda: [became(value=None, outcome_id="csat-8818")],
    ),
    "outcome-by-episode": (
        "Of the whole episode.",
        lambda: [became(STEP_OUTCOME, interaction_id=..., name="solved", value=True, outcome_id="desk-4711")],
    ),
    "outcome-by-reference": (
        "By a name that an interaction was recorded with.",
        lambda: [
            became(
                interaction_id=...,
                reference="pr:acme/shop#12",
                name="pr_merged",
                value=True,
                outcome_id="72d3162e-cc78-11e3-81ab-4c9367dc0958",
                source="github",
            )
        ],
    ),
    "outcome-retract": ("Takes one outcome back.", lambda: [became(_RETRACT)]),
    "outcome-retract-all": (
        "Without outcome_id: all of that name on that target observed at or before this time.",
        lambda: [became(_RETRACT, outcome_id=...)],
    ),
    "comment": (
        "What somebody wrote about it.",
        lambda: [became(kind="comment", name="comment", value="Too short.", outcome_id="note-3")],
    ),
    "preference-over-interaction": (
        "The target is better than another interaction.",
        lambda: [became(kind="preference", name="preference", value=None, over="i-2", outcome_id="pair-1")],
    ),
    "preference-over-answer": (
        "The target is better than an answer that was not recorded.",
        lambda: [
            became(
                kind="preference",
                name="preference",
                value=None,
                messages=[{"role": "assistant", "content": "No idea."}],
                outcome_id="pair-2",
            )
        ],
    ),
    "demonstration": (
        "What should have been said.",
        lambda: [
            became(
                kind="demonstration",
                name="demonstration",
                value=None,
                messages=_DEMONSTRATION[1:],
                outcome_id="edit-1",
            )
        ],
    ),
    "rights": (
        "A later word on what may be done with a row.",
        lambda: [became(kind="rights", name="train", value="deny", outcome_id="revoke-1")],
    ),
    "import": (
        "A marker at both ends, on every partition of both topics, and the import's id on each record.",
        _import,
    ),
}
