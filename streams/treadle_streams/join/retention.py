"""How state ends. Every length is counted from an append and compared with the partition's clock, so a replay ends things as it went.

    row           keep after the append of its first copy, then a tombstone (hash of its ids, last revision) for TOMBSTONE_MS
    orphan        keep after its own append, then a dead letter `orphan`
    parts         with the last row of their episode
    tombstone     for good

What arrives for a row whose time is over is a dead letter `row_expired`. That is decided by append times alone (`late`), so it does not
depend on how far the timers have got, on batches or on the order of topics: with the first copy of the row appended at `a`, what came at
`t` belongs to it if a - keep <= t <= a + keep.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, Protocol

from treadle_streams.join.errors import StateError
from treadle_streams.join.state import (
    KEPT_PARTS,
    NEVER_MS,
    TOMBSTONES,
    RowState,
    Seen,
    content_key,
    index_keys,
    parts_prefix,
)

__all__ = ["MAX_ENDED", "TOMBSTONE_MS", "Endings", "late", "row_ends_ms", "take_orphans", "tombstone", "tombstone_key"]

TOMBSTONE_MS: Final = 400 * 86_400_000
"""How long the join knows that a row was there."""
MAX_ENDED: Final = 5_000
"""Most parts that end in one transaction; the rest follows in the next ones."""
_MARK = struct.Struct(">cQI")
_TOMBSTONE: Final = b"T"
_KEPT: Final = b"K"
_DUE_AT_ONCE_MS: Final = 0


class EndReader(Protocol):
    """What is read of the partition's state."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The records of keys, None where there is none."""
        ...

    def keys(self, prefix: bytes, after: bytes = b"", limit: int = 0) -> list[bytes]:
        """The keys of records that begin with `prefix` and lie above `after`, ascending; at most `limit`, 0: all."""
        ...


class Changes(Protocol):
    """What a plan writes."""

    puts: dict[bytes, bytes]
    deletes: list[bytes]
    drop_index: list[bytes]
    more: bool


class Counter(Protocol):
    """What META counts."""

    def count(self, name: str, by: int = 1) -> None:
        """Add to a count."""
        ...


def late(row: RowState, came_ms: int, keep_ms: int) -> Literal["row_expired", "orphan"] | None:
    """Why what was appended at `came_ms` does not belong to a captured row; None: it does, or the row is not captured."""
    if row.captured is None:
        return None
    if came_ms > row.append_ms + keep_ms:
        return "row_expired"
    return "orphan" if came_ms < row.append_ms - keep_ms else None


def row_ends_ms(row: RowState, keep_ms: int) -> int:
    """The clock after which the row ends, or of a row that is not captured the first of what waits for it."""
    if row.captured is not None or row.revision:
        return min(row.append_ms + keep_ms, NEVER_MS)
    times = [seen.append_ms for seen in row.outcomes.values()]
    if row.retracted_ids or row.retracted_until or row.rights:
        times.append(row.said_ms)
    return min(min(times, default=0) + keep_ms, NEVER_MS)


def take_orphans(row: RowState, bound_ms: int) -> list[Seen]:
    """Take the outcomes that were appended before `bound_ms` out of a row, and the retracts and rights if all of them were."""
    ended = [seen for seen in row.outcomes.values() if seen.append_ms < bound_ms]
    for seen in ended:
        del row.outcomes[seen.outcome_id]
        row.outcome_bytes -= len(seen.raw.encode())
    if row.said_ms < bound_ms:
        row.retracted_ids.clear()
        row.retracted_until.clear()
        row.rights.clear()
        if not row.outcomes:
            row.outcome_bytes = 0
    return ended


def tombstone_key(key: bytes) -> bytes:
    """The key of what is left of the row with that key: a hash, since ids may be private."""
    return TOMBSTONES + hashlib.sha256(key).digest()[:16]


def tombstone(append_ms: int, keep_ms: int, revision: int) -> bytes:
    """The bytes of a tombstone of a row whose first copy was appended at `append_ms`."""
    return _MARK.pack(_TOMBSTONE, min(append_ms + keep_ms + TOMBSTONE_MS, NEVER_MS), revision)


def kept_parts_key(episode_id: str) -> bytes:
    """The key of the record that says when it is time to look whether an episode's parts are still needed."""
    return KEPT_PARTS + episode_id.encode()


class Endings:
    """What ends in one batch, and what ended before."""

    def __init__(self, reader: EndReader, out: Changes, meta: Counter, keep_ms: int) -> None:
        self._reader = reader
        self._out = out
        self._meta = meta
        self._keep_ms = keep_ms
        self._revisions: dict[bytes, int] = {}
        self._alive: set[bytes] = set()
        self._fresh: set[str] = set()
        self._ended_parts = 0

    def load(self, missing: Iterable[bytes]) -> None:
        """Look for tombstones of rows that are not kept."""
        keys = [key for key in dict.fromkeys(missing) if key not in self._revisions and key not in self._alive]
        if not keys:
            return
        for key, data in zip(keys, self._reader.get_many([tombstone_key(key) for key in keys]), strict=True):
            if data is None:
                self._alive.add(key)
            else:
                self._revisions[key] = _revision(data)

    def ended(self, key: bytes) -> int | None:
        """The last revision of a row that has ended; None: it has not."""
        return self._revisions.get(key)

    def end_row(self, row: RowState, before: bytes | None) -> None:
        """The row is over: a tombstone takes its place, and its parts go if no other row of the episode is left."""
        key = row.key
        if before is not None:
            self._out.deletes.append(key)
            self._out.drop_index.extend(index_keys(key, before))
        self._out.puts[tombstone_key(key)] = tombstone(row.append_ms, self._keep_ms, row.revision)
        self._revisions[key] = row.revision
        self._meta.count("tombstones")
        self._meta.count("expired")
        if row.captured is not None and row.captured.parts:
            parts = kept_parts_key(row.episode_id)
            known = self._reader.get_many([parts])[0]
            if known is not None:
                self._put_kept(parts, known, _DUE_AT_ONCE_MS)
                self._out.more = True

    def end_orphan(self, key: bytes, before: bytes | None) -> None:
        """Nothing is left of a row that never came."""
        if before is not None:
            self._out.deletes.append(key)
            self._out.drop_index.extend(index_keys(key, before))

    def end_tombstone(self, key: bytes) -> None:
        """Nobody will know any more that the row was there."""
        if self._reader.get_many([key])[0] is not None:
            self._out.deletes.append(key)
            self._meta.count("tombstones", -1)

    def parts_came(self, episode_id: str, append_ms: int) -> None:
        """Parts of an episode were stored: see later whether they are still needed."""
        if episode_id in self._fresh:
            return
        self._fresh.add(episode_id)
        key = kept_parts_key(episode_id)
        if self._reader.get_many([key])[0] is None:
            self._put_kept(key, None, min(append_ms + self._keep_ms, NEVER_MS))

    def parts_erased(self, episode_id: str) -> None:
        """The episode was erased: its parts end with the next transactions."""
        key = kept_parts_key(episode_id)
        known = self._reader.get_many([key])[0]
        if known is not None or key in self._out.puts:
            self._put_kept(key, known, _DUE_AT_ONCE_MS)
            self._out.more = True

    def parts_due(
        self,
        key: bytes,
        clock_ms: int,
        rows_of: Callable[[str], Iterable[bytes]],
        erased: Callable[[str], bool] = lambda _: False,
        tell: Callable[[str, bytes, bytes], None] = lambda *_: None,
    ) -> int:
        """End the parts of an episode that is `erased` or has no row any more, or look again later. Bytes that were read, roughly.

        Each part of an erased episode that ends is told: episode, key, and what is known of it.
        """
        known = self._reader.get_many([key])[0]
        if known is None or key in self._out.puts:
            return 0
        episode_id = key[1:].decode()
        gone = erased(episode_id)
        if not gone and (episode_id in self._fresh or any(row not in self._revisions for row in rows_of(episode_id))):
            self._put_kept(key, known, clock_ms + self._keep_ms)
            return 0
        size = 0
        room = MAX_ENDED - self._ended_parts
        parts = self._reader.keys(parts_prefix(episode_id), b"", room + 1)
        for part, node in zip(parts[:room], self._reader.get_many(parts[:room]), strict=True):
            assert node is not None
            self._out.deletes += [part, content_key(part)]
            self._out.drop_index += index_keys(part, node)
            self._ended_parts += 1
            if gone:
                tell(episode_id, part, node)
            size += len(node)
        if len(parts) > room:
            self._put_kept(key, known, _DUE_AT_ONCE_MS)
            self._out.more = True
            return size
        self._out.deletes.append(key)
        self._out.drop_index.extend(index_keys(key, known))
        return size

    def _put_kept(self, key: bytes, before: bytes | None, deadline_ms: int) -> None:
        value = _MARK.pack(_KEPT, deadline_ms, 0)
        if before is not None:
            kept = index_keys(key, value)
            self._out.drop_index.extend(k for k in index_keys(key, before) if k not in kept)
        self._out.puts[key] = value


def _revision(data: bytes) -> int:
    kind, _, revision = _MARK.unpack(data)
    if kind != _TOMBSTONE:
        raise StateError(f"{data[:40]!r} is no tombstone of the join")
    return int(revision)
