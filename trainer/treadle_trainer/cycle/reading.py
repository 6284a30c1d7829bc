"""Turns, read from Kafka."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import msgspec
from treadle.log import Admin, Record, read
from treadle_schemas import SnapshotRecord
from treadle_schemas.codec import SNAPSHOT, decode
from treadle_schemas.topics import topic

from treadle_trainer.cycle.spending import windows
from treadle_trainer.cycle.turns import Turn, turns_of

__all__ = ["read_turns"]


def read_turns(
    bootstrap_servers: str, workspace: str, last: int = 10, *, slot: str | None = None, inputs: bool = False
) -> list[Turn]:
    """The newest turns of a workspace, or of one slot of it. Reads `.snapshots` and `.releases` whole, of `.progress` what the turns need.

    With `inputs` the interactions and outcomes of those versions are read as well: what was captured, and what graders spent.
    Raises LogUnreachable or TopicMissing.
    """
    admin = Admin(bootstrap_servers)
    counts = admin.partitions()

    def records(kind: str, since_ms: int | None = None) -> Iterator[Record]:
        name = topic(workspace, kind)
        partitions = [(name, number) for number in range(counts.get(name, 1))]
        start = None if since_ms is None else {p: at for (_, p), at in admin.offsets_at(partitions, since_ms).items()}
        return read(bootstrap_servers, name, len(partitions), start=start)

    snapshots, releases = list(records("snapshots")), list(records("releases"))
    began = [turn.began_ms for turn in turns_of(snapshots, releases, (), last, slot)]
    if not began:
        return []
    turns = turns_of(snapshots, releases, records("progress", min(began)), last, slot)
    if inputs:
        bounds = [(_before(snapshots, turn), turn.snapshot_ms) for turn in turns]
        since_ms = min(after for after, _ in bounds)
        found = windows(chain(records("interactions", since_ms), records("outcomes", since_ms)), bounds)
        for turn, window in zip(turns, found, strict=True):
            turn.window = window
    return turns


def _before(snapshots: Iterable[Record], turn: Turn) -> int:
    """Append time of the version before a turn's, 0 where it is the first of its corpus."""
    before = 0
    for record in snapshots:
        event = decode(record.value, record.headers) if record.value is not None else None
        if event is None or event.type != SNAPSHOT or record.timestamp_ms >= turn.snapshot_ms:
            continue
        made = msgspec.convert(event.data, SnapshotRecord)
        if made.corpus == turn.corpus and made.version < turn.version:
            before = max(before, record.timestamp_ms)
    return before
