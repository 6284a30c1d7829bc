"""One partition's RocksDB: what the plan reads, and the one write batch that follows a committed transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from rocksdict import WriteOptions

from treadle_streams.join import (
    META_KEY,
    TIMER_PREFIX,
    Meta,
    Plan,
    index_keys,
    is_erased_episode,
    state_prefixes,
    timer_bound,
)
from treadle_streams.worker._ports import REAL
from treadle_streams.worker.errors import StateUnwritable

__all__ = ["PartitionStore"]

_APPLIED: Final = b"__faust\0offset__"
"""Faust's key for the changelog offset that the database has reached; written in the same batch as what it covers."""
_IDENTITY: Final = b"\0w"
"""Which creation of the workspace this database belongs to: one that was deleted and made again starts empty."""
_ROW_AT: Final = len(TIMER_PREFIX) + 8
_IO_ERROR: Final = "IO error"
_ERASED_MARK: Final = b"\0s"
"""Before the id of an episode of which something was erased: its bytes may still lie in older files."""
_SCRUB_RANGES: Final = 100
"""Beyond so many episodes the whole database is merged at once."""
_BEHIND: Final = b"\xff" * 600
"""Behind every key with a prefix: ids have at most 256 bytes, and UTF-8 has no such byte."""
_UNLOGGED: Final = WriteOptions()
_UNLOGGED.disable_wal = True  # pyright: ignore[reportAttributeAccessIssue] - its stub takes it for a method


class PartitionStore:
    """State of one partition, never ahead of the changelog. Implements `StateReader`."""

    def __init__(self, db: Any, identity: str, write_batch: Callable[[], Any] = REAL.write_batch) -> None:
        """`db` is the raw-mode Rdict that Faust opened; a database of another `identity` is emptied."""
        self._db = db
        self._write_batch = write_batch
        self._siblings: Any = None
        self.replayed = 0
        """Changelog records applied so far."""
        known = db.get(_IDENTITY)
        if known != identity.encode():
            if known is not None:
                self.clear()
            db.put(_IDENTITY, identity.encode())
        self.scrub_due = next(self._keys(_ERASED_MARK), None) is not None
        """Do files hold bytes of what was erased? See `scrub`."""

    @property
    def applied(self) -> int:
        """The next changelog offset to apply."""
        return int(self._db.get(_APPLIED) or b"-1") + 1

    def meta(self) -> Meta | None:
        """The partition's META, None where there is none."""
        data = self._db.get(META_KEY)
        return None if data is None else Meta.decode(data)

    def clear(self) -> None:
        """Forget everything; the changelog has it."""
        identity = self._db.get(_IDENTITY)
        batch = self._write_batch()
        for key in self._db.keys():  # noqa: SIM118 - an Rdict is no dict
            batch.delete(key)
        if identity is not None:
            batch.put(_IDENTITY, identity)
        self._write(batch)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See StateReader."""
        return list(self._db.get(list(keys))) if keys else []

    def due(self, clock_ms: int) -> Iterator[tuple[bytes, bytes]]:
        """See StateReader."""
        bound = timer_bound(clock_ms)
        for key in self._keys(TIMER_PREFIX):
            if key >= bound:
                return
            yield key, key[_ROW_AT:]

    def keys(self, prefix: bytes, after: bytes = b"", limit: int = 0) -> list[bytes]:
        """See StateReader. Nearly every interaction asks for its siblings: one iterator serves until the next write, at half the cost."""
        if self._siblings is None:
            self._siblings = self._db.iter()
        iterator = self._siblings
        iterator.seek(max(prefix, after + b"\0"))
        found: list[bytes] = []
        while iterator.valid() and (not limit or len(found) < limit):
            key = bytes(iterator.key())
            if not key.startswith(prefix):
                break
            found.append(key)
            iterator.next()
        return found

    def parked(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See StateReader."""
        for key in self._keys(prefix):
            yield key, key[len(prefix) :]

    def apply(self, made: Plan, meta: bytes, changelog_offset: int) -> None:
        """What a committed plan changed, in one write batch: index keys and what ended away, the rest with index keys, META, the offset."""
        batch = self._write_batch()
        for key in (*made.drop_index, *made.deletes):
            batch.delete(key)
        for key, value in made.puts.items():
            _put(batch, key, value)
        self._mark(batch, made.erased)
        batch.put(META_KEY, meta)
        batch.put(_APPLIED, b"%d" % changelog_offset)
        self._write(batch)

    def replay(
        self, records: Sequence[tuple[bytes | None, bytes | None]], changelog_offset: int, *, bulk: bool = False
    ) -> None:
        """Apply changelog records up to `changelog_offset`. Index keys of replaced records stay and are skipped when found.

        With `bulk` nothing goes to RocksDB's own log, which would be half of the work. Memtables reach the disk in order and each batch
        carries the offset, so a crash leaves the state of an earlier offset, from which the replay goes on. What is written with that
        log afterwards would come back without what is missing before it: `flush` must come first.
        """
        self.replayed += len(records)
        # a row that was written twice within the records is written once
        latest = dict(records)
        latest.pop(None, None)
        batch = self._write_batch()
        for key, value in latest.items():
            assert key is not None
            if value is None:
                batch.delete(key)
            else:
                _put(batch, key, value)
                if is_erased_episode(key, value):
                    self._mark(batch, [key[1:].decode()])
        batch.put(_APPLIED, b"%d" % changelog_offset)
        self._write(batch, *((_UNLOGGED,) if bulk else ()))

    def scrub(self) -> int:
        """Write the files anew in which something of erased episodes may lie, so that nothing is in them that was taken out; how many
        episodes that were.

        An overwritten value lies in an older file until that is merged with the newer one: from memory to a file first, then all files over
        these keys down to the last level. Raises StateUnwritable.
        """
        self._siblings = None  # it would keep files that are gone
        marks = list(self._keys(_ERASED_MARK))
        with self._named():
            self._db.flush()
            if len(marks) > _SCRUB_RANGES:
                self._db.compact_range(None, None)
            else:
                for mark in marks:
                    for prefix in state_prefixes(mark[len(_ERASED_MARK) :].decode()):
                        self._db.compact_range(prefix, prefix + _BEHIND)
        batch = self._write_batch()
        for mark in marks:
            batch.delete(mark)
        self._write(batch)
        self.scrub_due = False
        return len(marks)

    def flush(self) -> None:
        """See that everything written so far is on disk. Raises StateUnwritable."""
        with self._named():
            self._db.flush()

    def _mark(self, batch: Any, erased: Iterable[str]) -> None:
        for episode in erased:
            batch.put(_ERASED_MARK + episode.encode(), b"")
            self.scrub_due = True

    def _write(self, batch: Any, *options: Any) -> None:
        self._siblings = None  # it would not see what is written, and keep files that are gone
        with self._named():
            self._db.write(batch, *options)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except Exception as err:
            if str(err).startswith(_IO_ERROR):  # RocksDB's errors have no types
                raise StateUnwritable(self._db.path(), str(err)) from err
            raise

    def _keys(self, prefix: bytes) -> Iterator[bytes]:
        iterator = self._db.iter()
        iterator.seek(prefix)
        while iterator.valid():
            key = bytes(iterator.key())
            if not key.startswith(prefix):
                return
            yield key
            iterator.next()


def _put(batch: Any, key: bytes, value: bytes) -> None:
    batch.put(key, value)
    for index_key in index_keys(key, value):
        batch.put(index_key, b"")
