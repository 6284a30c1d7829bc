"""Reading `.graded` for a fold: where it ends, its records in batches, and what of a batch can be taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from treadle.log import Admin, Record
from treadle_corpus import GradedRecord, PartRecord, read_parts, read_record
from treadle_schemas.codec import GRADED, PART, REGRADED, header_map
from treadle_schemas.errors import FieldError
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.archive.history import History
from treadle_streams.snapshot.errors import LogMismatch

__all__ = ["BATCH_RECORDS", "Decoded", "batches", "decoded", "episode_of", "graded_ends"]

BATCH_RECORDS: Final = 2000
_BATCH_BYTES: Final = 64 * 1024 * 1024
"""A batch is one commit: 16 KB of log and 11 files, whatever it holds. Bounded by bytes, since rows may be megabytes."""


class Decoded(NamedTuple):
    """What a batch holds: records with what they say, and those that no corpus can take with (reason, detail)."""

    good: list[Record]
    values: list[GradedRecord | PartRecord]
    bad: list[tuple[Record, str, str]]


def graded_ends(
    admin: Admin, workspace: WorkspaceSettings, held: Mapping[int, int], folder: object, history: History
) -> dict[int, int]:
    """Where `.graded` ends. Raises LogMismatch where that does not go with the offsets that are `held` in `folder`: what is needed is
    neither in the log nor archived.
    """
    name = topic(workspace.workspace, "graded")
    partitions = [(name, p) for p in range(workspace.partitions)]
    ends, starts = admin.end_offsets(partitions), admin.start_offsets(partitions)
    for (_, partition), end in ends.items():
        known = held.get(partition)
        if known is not None and end < known:
            raise LogMismatch(
                f"{name}[{partition}] ends at offset {end}, but {folder} folded it up to {known}: the log lost "
                "records, or is another one. Write to another path"
            )
    gap = history.missing(
        "graded", {p: held.get(p, 0) for p in range(workspace.partitions)}, {p: o for (_, p), o in starts.items()}
    )
    if gap is not None:
        partition, begin, last = gap
        raise LogMismatch(
            f"{name}[{partition}] begins at offset {starts[name, partition]}, but {folder} needs it from {held.get(partition, 0)} on, and "
            f"offsets {begin} to {last} are not archived: graded rows are gone, so no version can be the exact fold of it. `.graded` must "
            "keep everything (retention.ms=-1), or be archived before it is cut"
        )
    return {partition: end for (_, partition), end in ends.items()}


def batches(
    history: History, start: Mapping[int, int], ends: Mapping[int, int], limit: int
) -> Iterator[tuple[list[Record], dict[int, int]]]:
    """The records from `start` up to `ends`, archived or live, at most `limit` at once, each batch with the offsets after it."""
    offsets = dict(start)
    batch: list[Record] = []
    size = 0
    for record in history.read("graded", start=start, until=ends):
        batch.append(record)
        size += len(record.value or b"")
        offsets[record.partition] = record.offset + 1
        if len(batch) >= limit or size >= _BATCH_BYTES:
            yield batch, dict(offsets)
            batch, size = [], 0
    if batch:
        yield batch, offsets


def decoded(batch: Sequence[Record]) -> Decoded:
    """What each record says."""
    found = Decoded([], [], [])
    for record in batch:
        try:
            taken = _decode(record)
        except FieldError as err:
            found.bad.append((record, "malformed", str(err)))
            continue
        if taken is not None:
            found.values.append(taken)
            found.good.append(record)
    return found


def episode_of(value: GradedRecord | PartRecord) -> str:
    """The episode that a record is of."""
    return value.episode_id if isinstance(value, PartRecord) else value.row.episode_id


def _decode(record: Record) -> GradedRecord | PartRecord | None:
    """What the corpus takes of a record; None: nothing."""
    found = header_map(record.headers).get("ce_type")
    if record.value is None:
        raise FieldError("$", "is null")
    if found == PART.encode():
        return read_parts(record.value)
    if found == REGRADED.encode():
        return None
    if found != GRADED.encode():
        raise FieldError("headers.ce_type", f"is {found!r}, neither {GRADED} nor {PART}")
    return read_record(record.value)
