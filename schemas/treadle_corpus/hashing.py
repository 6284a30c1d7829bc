"""The bytes that hashes of rows cover.

A row's *line* is the canonical JSON of `records.row_content` (ids, task_id, messages, tools, metrics as name -> [state, value],
reward, split) and one newline. A version's content_hash is the lower-case hex sha256 over the lines of its rows, sorted by
(episode_id, interaction_id) by code point. It says nothing of workspace, offsets, revisions or paths, so two workspaces that saw the
same events agree.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from treadle_schemas.canonical import canonical_json
from treadle_schemas.errors import FieldError
from treadle_schemas.records import Grade, GradedRow, row_content

__all__ = [
    "LinePieces",
    "content_hash",
    "digest",
    "line_middle",
    "messages_digest",
    "normal_message",
    "plain_sink_digest",
    "row_line",
    "sink_digest",
    "twin_digest",
]

DIGEST_BYTES = 16
"""Length of the digests that rows are compared by. 128 bits: no accidental collision among 10**12 rows."""


_MESSAGES: Final = b',"messages":'


class LinePieces(NamedTuple):
    """A row's line in three pieces: what is the same for each of its grades, before and after what is not.

    The names of a line in order are episode_id, interaction_id, messages; metrics, reward, split; task_id, tools.
    """

    head: bytes
    middle: bytes
    tail: bytes

    @classmethod
    def of(cls, row: GradedRow) -> LinePieces:
        """Cut the line of a row. The pieces joined are `row_line`."""
        interaction = row.interaction
        messages = canonical_json(interaction["messages"])
        tools = canonical_json(interaction.get("tools"))
        frame = {
            "episode_id": row.episode_id,
            "interaction_id": row.interaction_id,
            "messages": None,
            "task_id": interaction.get("task_id"),
        }
        # no id holds the separator: its quotes would be escaped there
        head, _, tail = canonical_json(frame).partition(_MESSAGES + b"null,")
        return cls(
            head + _MESSAGES + messages,
            line_middle(row.grade.metrics, row.grade.reward, row.split),
            b',%b,"tools":%b}\n' % (tail[:-1], tools),
        )

    @property
    def line(self) -> bytes:
        """The line of the row."""
        return self.head + self.middle + self.tail


def line_middle(metrics: dict[str, Any], reward: float | None, split: str) -> bytes:
    """The piece of a line that a grade changes."""
    said = {"metrics": {name: list(state) for name, state in metrics.items()}, "reward": reward, "split": split}
    return b"," + canonical_json(said)[1:-1]


def row_line(row: GradedRow) -> bytes:
    """The line of a row: canonical JSON of its content and a newline."""
    return canonical_json(row_content(row)) + b"\n"


def content_hash(lines: Iterable[bytes]) -> str:
    """content_hash of a version from the lines of its rows, which come in the order of (episode_id, interaction_id)."""
    total = hashlib.sha256()
    for line in lines:
        total.update(line)
    return total.hexdigest()


def digest(data: bytes) -> bytes:
    """The first 128 bits of sha256."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def sink_digest(row: GradedRow, line: bytes) -> bytes:
    """Digest of everything that is content of one revision as it came: the digest of its `line`, how it was graded, the parts that it
    names, what is denied. Provenance is not in it, and the content of parts is not needed for it.
    """
    said: list[Any] = _grading(row.grade)
    transcript, claims = row.interaction.get("transcript"), row.interaction.get("claims")
    if transcript is not None or claims is not None:
        said += [transcript, claims]
    if row.rights is not None or row.erased:
        said += [None if row.rights is None else msgspec.to_builtins(row.rights), row.erased]
    return digest(line + canonical_json(said))


def plain_sink_digest(grade: Grade, line: bytes) -> bytes:
    """`sink_digest` of a row without parts, rights and erasure."""
    return digest(line + canonical_json(_grading(grade)))


def _grading(grade: Grade) -> list[Any]:
    return [grade.grading_version, grade.completeness, grade.settled]


def twin_digest(row: GradedRow) -> bytes:
    """Rows whose *normalised* messages are equal must not lie on both sides of the split.

    Normalised: role, text (Unicode NFKC, case folded, white space collapsed) and tool calls (name, arguments as JSON values), in order.
    Ids of messages and tool calls are left out: they differ between two recordings of the same conversation.
    """
    return messages_digest(row.interaction["messages"])


def messages_digest(messages: Sequence[dict[str, Any]]) -> bytes:
    """The same for conversations that are equal once they are normalised as for `twin_digest`."""
    return digest(canonical_json([normal_message(m) for m in messages]))


def normal_message(message: dict[str, Any]) -> list[Any]:
    calls = message.get("tool_calls")
    return [
        message.get("role"),
        _normal_content(message.get("content")),
        [_normal_call(c) for c in calls] if isinstance(calls, list) else None,
        _normal_content(message.get("function_call")),
    ]


def _normal_content(value: Any) -> Any:
    match value:
        case str():
            return " ".join(unicodedata.normalize("NFKC", value).casefold().split())
        case list():
            return [_normal_content(v) for v in value]
        case dict():
            return {str(k): _normal_content(v) for k, v in value.items()}
        case _:
            return value


def _normal_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return _normal_content(call)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
            canonical_json(arguments)
        except (ValueError, RecursionError, FieldError):
            arguments = function.get("arguments")
    return [function.get("name"), _normal_content(arguments)]
