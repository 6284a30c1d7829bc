"""Reading dead letters, and what was done about them.

A dead letter is named by its place, `PARTITION@OFFSET`. A *resolution* is a record on the same partition with the header `resolved` that
names one, and `how`: `replayed` or `dropped`. Sending again comes first and its resolution second: cut off in between, a letter is open
still, and what it stands for may go out twice, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from treadle.log import Sender, open_record, read
from treadle_schemas import codec, topics
from treadle_schemas.canonical import dumps, loads
from treadle_schemas.errors import FieldError
from treadle_schemas.moments import from_micros
from treadle_schemas.workspace import WorkspaceSettings

__all__ = ["DeadLetter", "letters", "replay", "resolve"]

_SOURCE = "treadle/dead-letter"
_ORIGINAL = "original."
How = Literal["replayed", "dropped"]


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One refused record, as it lies on `.dead-letter`."""

    partition: int
    offset: int
    at: str
    """When it was refused; RFC 3339."""
    reason: str
    detail: str
    topic: str
    """Where the record came from, with `source_partition` and `source_offset`."""
    source_partition: int
    source_offset: int
    key: bytes | None
    value: bytes | None
    """As it lies there, sealed or not: that is what is sent again."""
    text: bytes | None
    """What it says; None where that was erased."""
    headers: list[tuple[str, bytes]]
    """Those of the record itself."""
    cut: bool = False
    """Value or headers were too large to be kept whole: it cannot be sent again from here."""
    done: How | None = None
    """What was done about it; None: nothing yet."""

    @property
    def name(self) -> str:
        """PARTITION@OFFSET."""
        return f"{self.partition}@{self.offset}"

    def plain(self, *, whole: bool = False) -> dict[str, object]:
        """As JSON; `whole` with headers and value."""
        shown: dict[str, object] = {
            "id": self.name,
            "at": self.at,
            "reason": self.reason,
            "detail": self.detail,
            "topic": self.topic,
            "partition": self.source_partition,
            "offset": self.source_offset,
            "key": None if self.key is None else self.key.decode(errors="replace"),
            "bytes": len(self.value or b""),
            "done": self.done,
        }
        if whole:
            shown["headers"] = {name: value.decode(errors="replace") for name, value in self.headers}
            shown["value"] = _readable(self.text)
        return shown


def letters(servers: str, workspace: WorkspaceSettings) -> list[DeadLetter]:
    """All dead letters of a workspace, the oldest first within a partition, with what was done about them. Raises LogError."""
    found: dict[str, DeadLetter] = {}
    for record in read(servers, topics.topic(workspace.workspace, "dead-letter"), workspace.partitions, raw=True):
        by_name = codec.header_map(record.headers)
        if "resolved" in by_name:
            name = by_name["resolved"].decode(errors="replace")
            how: How = "dropped" if by_name.get("how") == b"dropped" else "replayed"
            if name in found:
                found[name] = msgspec.structs.replace(found[name], done=how)
            continue
        letter = DeadLetter(
            partition=record.partition,
            offset=record.offset,
            at=from_micros(record.timestamp_ms * 1000),
            reason=_text(by_name, "reason"),
            detail=_text(by_name, "detail"),
            topic=_text(by_name, "topic"),
            source_partition=_number(by_name, "partition"),
            source_offset=_number(by_name, "offset"),
            key=record.key,
            value=record.value,
            text=None if (opened := open_record(record)) is None else opened.value,
            headers=[
                (name.removeprefix(_ORIGINAL), value.encode() if isinstance(value, str) else value or b"")
                for name, value in record.headers
                if name.startswith(_ORIGINAL)
            ],
            cut="truncated_from" in by_name or "original_headers_cut" in by_name,
        )
        found[letter.name] = letter
    return list(found.values())


def replay(servers: str, workspace: WorkspaceSettings, chosen: Sequence[DeadLetter]) -> list[DeadLetter]:
    """Send records again to where they came from, by their own key. Those that were not kept whole are left; returns the ones sent.

    Raises LogError, and NotDelivered when Kafka did not take all: then none counts as replayed.
    """
    prefix = topics.prefix(workspace.workspace)
    sent = [letter for letter in chosen if not letter.cut and letter.topic.startswith(prefix)]
    sender = Sender(servers)
    for letter in sent:
        partition = letter.source_partition if letter.key is None else None
        sender.send(letter.topic, letter.key, letter.value, letter.headers, partition)
    sender.flush()
    resolve(servers, workspace, sent, "replayed")
    return sent


def resolve(servers: str, workspace: WorkspaceSettings, chosen: Iterable[DeadLetter], how: How) -> None:
    """Write down what was done about dead letters. Raises LogError, NotDelivered."""
    sender = Sender(servers)
    for letter in chosen:
        headers = codec.make_headers(codec.DEAD_LETTER, workspace.workspace, source=_SOURCE)
        headers += [("resolved", letter.name.encode()), ("how", how.encode())]
        topic = topics.topic(workspace.workspace, "dead-letter")
        sender.send(topic, letter.key, None, headers, letter.partition)
    sender.flush()


def _text(headers: dict[str, bytes], name: str) -> str:
    return headers.get(name, b"").decode(errors="replace")


def _number(headers: dict[str, bytes], name: str) -> int:
    raw = headers.get(name, b"")
    return int(raw) if raw.isdigit() else -1


def _readable(value: bytes | None) -> object:
    if value is None:
        return None
    try:
        found = loads(value)
        dumps(found)
        return found
    except FieldError:
        return value.decode(errors="replace")
