"""Grading kept rows anew after the metrics, the credit rule or the reward of the workspace changed, beside the stream.

META remembers the version that every row of the partition has (`regraded`), the one under way, and the key reached. A transaction takes the
next MAX_ROWS records, episodes first, so that the steps after each row are counted by the new rule; a record that an event has graded by
the new version meanwhile is passed over. When the last one is done, markers on `.graded` and `.progress` say so. Killed anywhere, it goes
on from META; changed again meanwhile, it begins anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from treadle_schemas.codec import encode, to_json
from treadle_schemas.records import Regraded

from treadle_streams.join.emissions import Emission
from treadle_streams.join.meta import Meta
from treadle_streams.join.state import EPISODES, ROWS
from treadle_streams.join.working import Entry, RowReader, Rows

__all__ = ["MAX_BYTES", "MAX_ROWS", "go_on"]

MAX_ROWS: Final = 200
MAX_BYTES: Final = 4 * 1024 * 1024
"""Most records, and bytes of them, that one transaction brings in: events that arrive meanwhile wait for no more than this."""
_CHUNK: Final = 50


class Changes(Protocol):
    """What a plan writes."""

    outputs: list[Emission]
    more: bool
    background: bool


def go_on(
    meta: Meta,
    version: int,
    reader: RowReader,
    rows: Rows,
    out: Changes,
    episode: Callable[[bytes], None],
    evaluate: Callable[[bytes, Entry], None],
) -> None:
    """Take the next records to `version`; nothing where they have it. `episode` brings an episode to it, `evaluate` grades a row."""
    if meta.regraded >= version:
        return
    if meta.grading != version:
        meta.grading, meta.cursor, meta.looked_at = version, EPISODES, 0
    taken = size = 0
    while taken < MAX_ROWS and size < MAX_BYTES:
        prefix = meta.cursor[:1]
        keys = reader.keys(prefix, meta.cursor, min(_CHUNK, MAX_ROWS - taken))
        if not keys and prefix == ROWS:
            # steps that changes of episodes still bring are graded first
            if not out.more:
                _finish(meta, version, out)
                return
            break
        if not keys:
            meta.cursor = ROWS
            continue
        meta.cursor = keys[-1]
        taken += len(keys)
        if prefix == EPISODES:
            for key in keys:
                episode(key)
            continue
        rows.load(keys)
        for key in keys:
            entry = rows.entries[key]
            size += len(entry.before or b"")
            row = entry.row
            if row is None or row.captured is None:
                continue
            meta.looked_at += 1
            if row.version != version:
                entry.touched = True
                evaluate(key, entry)
    out.background = True


def _finish(meta: Meta, version: int, out: Changes) -> None:
    value = encode(to_json(Regraded(grading_version=version, rows=meta.looked_at)))
    meta.regraded, meta.cursor, meta.looked_at = version, b"", 0
    out.outputs += [Emission("regraded", None, value), Emission("regraded-progress", None, value)]
