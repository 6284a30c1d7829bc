"""A partition's local database: what `PartitionStore` asks of RocksDB, on a disk that outlives its process.

A write batch is atomic, and none survives an earlier one, as with RocksDB's own log: after a power failure the last ones may be gone, and
after the end of a process those of the last ones that were not logged.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Protocol

from rocksdict import WriteOptions

__all__ = ["Batch", "Database", "Disk"]


class Batch:
    """A write batch."""

    def __init__(self) -> None:
        self.changes: dict[bytes, bytes | None] = {}

    def put(self, key: bytes, value: bytes) -> None:
        """Set."""
        self.changes[key] = value

    def delete(self, key: bytes) -> None:
        """Remove."""
        self.changes[key] = None


class Disk:
    """The data of one database."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self._undo: list[dict[bytes, bytes | None]] = []
        self.unlogged = 0
        """How many of the last batches are in memory alone."""
        self._order: list[bytes] | None = None

    def write(self, changes: dict[bytes, bytes | None], *, logged: bool = True) -> None:
        """One batch, all of it or nothing."""
        assert not (logged and self.unlogged), "what is logged after unlogged batches would survive without them"
        self.unlogged += not logged
        self._undo.append({key: self.data.get(key) for key in changes})
        self._apply(changes)

    def flush(self) -> None:
        """Everything is on disk."""
        self.unlogged = 0

    def lose_last(self, batches: int) -> None:
        """The last batches had not reached the disk."""
        self.unlogged = max(0, self.unlogged - batches)
        for _ in range(min(batches, len(self._undo))):
            self._apply(self._undo.pop())

    def wipe(self) -> None:
        """The folder is gone."""
        self.data, self._undo, self._order, self.unlogged = {}, [], None, 0

    def order(self) -> list[bytes]:
        """All keys, sorted."""
        if self._order is None:
            self._order = sorted(self.data)
        return self._order

    def _apply(self, changes: dict[bytes, bytes | None]) -> None:
        self._order = None
        for key, value in changes.items():
            if value is None:
                self.data.pop(key, None)
            else:
                self.data[key] = value


class _Guard(Protocol):
    def written(self) -> None:
        """After each write, which is durable now."""

    def alive(self) -> None:
        """Raises Killed for a process that is dead."""


class Database:
    """A process's handle on a disk, as a raw-mode Rdict."""

    def __init__(self, disk: Disk, guard: _Guard) -> None:
        self._disk = disk
        self._guard = guard

    def get(self, key: bytes | list[bytes]) -> bytes | list[bytes | None] | None:
        """One value, or the values of a list of keys."""
        data = self._disk.data
        return [data.get(k) for k in key] if isinstance(key, list) else data.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """Set one key."""
        self._write({key: value})

    def delete(self, key: bytes) -> None:
        """Remove one key."""
        self._write({key: None})

    def write(self, batch: Batch, options: WriteOptions | None = None) -> None:
        """Write a batch."""
        self._write(batch.changes, logged=options is None or not options.disable_wal)

    def flush(self) -> None:
        """See Disk."""
        self._guard.alive()
        self._disk.flush()

    def keys(self) -> list[bytes]:
        """All keys, sorted."""
        return list(self._disk.order())

    def iter(self) -> _Iterator:
        """A cursor."""
        return _Iterator(self._disk.order())

    def _write(self, changes: dict[bytes, bytes | None], *, logged: bool = True) -> None:
        self._guard.alive()
        self._disk.write(changes, logged=logged)
        self._guard.written()


class _Iterator:
    """A cursor over the keys as they were when it was made."""

    def __init__(self, order: list[bytes]) -> None:
        self._order = order
        self._at = 0

    def seek(self, key: bytes) -> None:
        """To the first key not below."""
        self._at = bisect_left(self._order, key)

    def valid(self) -> bool:
        """Is there a key?"""
        return self._at < len(self._order)

    def key(self) -> bytes:
        """The key."""
        return self._order[self._at]

    def next(self) -> None:
        """On to the next key."""
        self._at += 1

    def __iter__(self) -> Iterator[bytes]:
        while self.valid():
            yield self.key()
            self.next()
