"""Dead letters of the snapshotter: records on `.graded` that no corpus can take."""

from __future__ import annotations

from treadle.log import MAX_MESSAGE_BYTES, Record, Sender
from treadle_schemas.codec import DEAD_LETTER, make_headers
from treadle_schemas.topics import topic

__all__ = ["send_dead_letters"]

_MAX_VALUE_BYTES = MAX_MESSAGE_BYTES - 1024 * 1024
"""Leaves room for the headers: a dead letter that cannot be written would stop the snapshotter for good."""


def send_dead_letters(servers: str, workspace: str, refused: list[tuple[Record, str, str]]) -> None:
    """Write (record, reason, detail) to `.dead-letter` and wait for the acknowledgement. A repeated run repeats them.

    Raises NotDelivered.
    """
    if not refused:
        return
    sender = Sender(servers)
    for record, reason, detail in refused:
        headers = make_headers(DEAD_LETTER, workspace, source="treadle/snapshot")
        headers += [
            ("reason", reason.encode()),
            ("detail", detail.encode(errors="replace")[:2000]),
            ("topic", record.topic.encode()),
            ("partition", str(record.partition).encode()),
            ("offset", str(record.offset).encode()),
            ("timestamp", str(record.timestamp_ms).encode()),
        ]
        headers += [
            (f"original.{name}", value.encode() if isinstance(value, str) else value)
            for name, value in record.headers
            if value is not None
        ]
        value = record.value
        if value is not None and len(value) > _MAX_VALUE_BYTES:
            headers.append(("truncated_from", str(len(value)).encode()))
            value = value[:_MAX_VALUE_BYTES]
        sender.send(topic(workspace, "dead-letter"), record.key, value, headers, record.partition)
    sender.flush()
