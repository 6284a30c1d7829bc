"""Where the records come from: the topics of a workspace, or a file in the form of the golden examples."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeGuard

from treadle.log import Admin, Record, TailReader, read
from treadle_schemas.canonical import loads
from treadle_schemas.codec import header_map
from treadle_schemas.conformance import SentRecord, record_of
from treadle_schemas.errors import FieldError
from treadle_schemas.topics import topic

__all__ = ["Place", "from_file", "from_topics"]

Kind = Literal["interactions", "outcomes"]
KINDS: Final[tuple[Kind, ...]] = ("interactions", "outcomes")
MAX_DOCUMENT_BYTES: Final = 64 * 1024 * 1024
"""Largest file that is read as one JSON document; JSON lines may be of any length."""


class Place(NamedTuple):
    """Where a record stands: topic, partition and offset, or file and line."""

    where: str
    number: int
    partition: int | None = None

    def __str__(self) -> str:
        return (
            f"{self.where}:{self.number}" if self.partition is None else f"{self.where}[{self.partition}]@{self.number}"
        )

    def to_json(self) -> dict[str, Any]:
        """Its fields by name."""
        if self.partition is None:
            return {"file": self.where, "line": self.number}
        return {"topic": self.where, "partition": self.partition, "offset": self.number}


def from_file(path: Path) -> Iterator[tuple[Place, SentRecord | str]]:
    """Each record of a file, or the text of what is wrong with its line: JSON lines, a JSON list, or one example with `records`."""
    name = path.name
    if (whole := _as_one(path)) is not None:
        yield from ((Place(name, number), _record(said)) for number, said in enumerate(whole, 1))
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                said = loads(line)
            except FieldError as err:
                yield Place(name, number), str(err)
                continue
            yield Place(name, number), _record(said)


def _as_one(path: Path) -> list[Any] | None:
    """The records of a file that is one document; None for JSON lines."""
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        return None
    try:
        said = loads(path.read_bytes())
    except FieldError:
        return None
    if isinstance(said, dict) and isinstance(said.get("records"), list):
        return list(said["records"])
    return said if isinstance(said, list) else [said]


def _record(said: Any) -> SentRecord | str:
    try:
        return record_of(said)
    except FieldError as err:
        return str(err)


def from_topics(
    servers: str,
    workspace: str,
    partitions: int,
    *,
    since_ms: int | None = None,
    follow_idle_s: float | None = None,
    source: str | None = None,
) -> Iterator[tuple[Place, SentRecord]]:
    """The records of both input topics, up to their ends at the call; with `follow_idle_s` those that come from now on, until none has
    come for so long. Read committed.

    `since_ms` leaves out what was appended before it, `source` what another source sent; a record without a source is everybody's.
    """
    records = (
        chain.from_iterable(read(servers, topic(workspace, kind), partitions) for kind in KINDS)
        if follow_idle_s is None
        else _followed(servers, workspace, partitions, follow_idle_s)
    )
    for record in records:
        if since_ms is not None and record.timestamp_ms < since_ms:
            continue
        if source is not None and header_map(record.headers).get("ce_source", source.encode()) != source.encode():
            continue
        kind = record.topic.rpartition(".")[2]
        assert _is_kind(kind)
        yield (
            Place(record.topic, record.offset, record.partition),
            SentRecord(kind, record.key, record.value, record.headers, record.partition, record.timestamp_ms),
        )


def _is_kind(kind: str) -> TypeGuard[Kind]:
    return kind in KINDS


def _followed(servers: str, workspace: str, partitions: int, idle_s: float) -> Iterator[Record]:
    wanted = [(topic(workspace, kind), n) for kind in KINDS for n in range(partitions)]
    reader = TailReader(servers, Admin(servers).end_offsets(wanted))
    try:
        last = time.monotonic()
        while time.monotonic() - last < idle_s:
            for record in reader.poll(min(idle_s, 0.5)):
                last = time.monotonic()
                yield record
    finally:
        reader.close()
