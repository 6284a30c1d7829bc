"""Archiving: what the log has and the archive has not, in ranges of bounded size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from treadle.log import Admin, Record, read
from treadle_schemas.moments import now
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.archive._store import Folder, Store
from treadle_streams.archive._table import size_of
from treadle_streams.archive.ranges import KINDS, Archive, Range

__all__ = ["alone", "archive", "closed_ends", "sweep"]

RANGE_BYTES: Final = 64 * 1024 * 1024
"""A range holds about so many bytes of records, so that it can be written and read in memory."""
RANGE_RECORDS: Final = 100_000
_STRAY_S: Final = 86_400.0
"""A file that no manifest names yet is of no run that goes on after a day."""

Tell = Callable[[str], None]


def archive(
    servers: str,
    settings: WorkspaceSettings,
    target: Archive,
    *,
    before_ms: int | None = None,
    kinds: Sequence[str] = KINDS,
    tell: Tell | None = None,
) -> Iterator[Range]:
    """Archive what is closed: below each partition's stable end and, with `before_ms`, below the first record of that time or later.

    Goes on where the archive ends, and yields each range once it is whole. Killed anywhere, a repeated call goes on: a range is there when
    its manifest is. Raises ArchiveUnwritable, ArchiveDamaged, LogError.
    """
    admin = Admin(servers)
    for kind in kinds:
        ends = closed_ends(admin, settings, kind, before_ms)
        name = topic(settings.workspace, kind)
        starts = admin.start_offsets([(name, p) for p in ends])
        for partition, end in ends.items():
            start = starts[name, partition]
            done = [found.next for found in target.ranges(kind, partition)]
            first = max([start, *done])
            if tell is not None and done and max(done) < start:
                tell(f"{name}[{partition}]: offsets {max(done)} to {start - 1} were gone before they were archived")
            if first < end:
                yield from _partition(servers, settings, target, kind, partition, first, end)


def closed_ends(admin: Admin, settings: WorkspaceSettings, kind: str, before_ms: int | None) -> dict[int, int]:
    """By partition, the offset below which a topic is closed, and older than `before_ms`. Raises LogError."""
    name = topic(settings.workspace, kind)
    places = [(name, partition) for partition in range(admin.partitions().get(name, 0))]
    ends = admin.stable_offsets(places)
    aged = ends if before_ms is None else admin.offsets_at(places, before_ms)
    return {partition: min(end, aged[topic_, partition]) for (topic_, partition), end in ends.items()}


def alone(store: Store, folder: str) -> AbstractContextManager[None]:
    """Nobody else archives there, where the store has locks: two runs on an object store write some ranges twice, and harm nothing.

    Raises ArchiveBusy.
    """
    return store.alone(folder) if isinstance(store, Folder) else nullcontext()


def sweep(target: Archive, in_flight_s: float = _STRAY_S) -> list[str]:
    """Remove what interrupted runs left, and return what was left alone: on an object store, which has no lock, a file younger than
    `in_flight_s` seconds may be that of a run elsewhere. The caller is `alone`. Raises ArchiveUnwritable."""
    left: list[str] = []
    for name in target.strays():
        if not isinstance(target.store, Folder) and time.time() - (target.store.put_at(name) or 0.0) < in_flight_s:
            left.append(target.store.at(name))
        else:
            target.store.delete(name)
    return left


def _partition(
    servers: str, settings: WorkspaceSettings, target: Archive, kind: str, partition: int, first: int, end: int
) -> Iterator[Range]:
    name = topic(settings.workspace, kind)
    held: list[Record] = []
    size = 0
    # as they lie there: what is sealed stays sealed
    for record in read(servers, name, settings.partitions, start={partition: first}, until={partition: end}, raw=True):
        if held and (size >= RANGE_BYTES or len(held) >= RANGE_RECORDS):
            yield target.put(kind, partition, (first, record.offset), held, archived_at=now())
            first, held, size = record.offset, [], 0
        held.append(record)
        size += size_of(record)
    if held:
        yield target.put(kind, partition, (first, end), held, archived_at=now())
