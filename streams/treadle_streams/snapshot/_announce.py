"""Telling the trainer: a record on `.snapshots` for each version, written after its tag."""

from __future__ import annotations

import msgspec
from treadle.log import Sender, read
from treadle_corpus import Manifest
from treadle_schemas.codec import SNAPSHOT, encode, make_headers, to_json
from treadle_schemas.records import SnapshotRecord
from treadle_schemas.topics import topic

__all__ = ["announce", "announce_if_missing"]


def announce(servers: str, corpus: str, manifest: Manifest, written_bytes: int | None = None) -> None:
    """Write the record of a version, in the corpus of that name, and wait for its acknowledgement. Raises NotDelivered."""
    record = SnapshotRecord(
        corpus=corpus,
        version=manifest.version,
        content_hash=manifest.content_hash,
        rows=manifest.rows,
        new_rows=manifest.new_rows,
        added=manifest.added,
        updated=manifest.updated,
        removed=manifest.removed,
        created_at=manifest.created_at,
        last_append_ms=manifest.last_append_ms,
        written_bytes=written_bytes,
    )
    headers = make_headers(SNAPSHOT, manifest.workspace, source="treadle/snapshot")
    name = topic(manifest.workspace, "snapshots")
    sender = Sender(servers)  # a new one: one that ever failed to deliver says so for ever
    sender.send(name, record.corpus.encode(), encode(to_json(record)), headers, 0)
    sender.flush()


def announce_if_missing(servers: str, corpus: str, manifest: Manifest) -> bool:
    """Announce a version whose run was killed between tag and record. True where that was so."""
    for record in read(servers, topic(manifest.workspace, "snapshots"), 1):
        if record.key != corpus.encode() or record.value is None:
            continue
        try:
            found = msgspec.json.decode(record.value, type=SnapshotRecord)
        except msgspec.DecodeError:
            continue
        if (found.version, found.content_hash) == (manifest.version, manifest.content_hash):
            return False
    announce(servers, corpus, manifest)
    return True
