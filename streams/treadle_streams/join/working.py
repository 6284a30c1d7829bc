"""The rows of a partition within one batch: what was read of them, and which are to be graded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from treadle_streams.join.state import RowState, decode, row_prefix

__all__ = ["GAUGES", "Entry", "RowReader", "Rows", "gauges_of"]

_CHUNK: Final = 50
GAUGES: Final = ("captured", "settled", "orphans", "waiting")
_NOTHING: Final = (0, 0, 0, 0)


class RowReader(Protocol):
    """What is read of the partition's state."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The records of keys, None where there is none."""
        ...

    def keys(self, prefix: bytes, after: bytes = b"", limit: int = 0) -> list[bytes]:
        """The first `limit` (0: all) keys of records that begin with `prefix` and lie above `after`, ascending."""
        ...


@dataclass(slots=True)
class Entry:
    """A row in the working set, with the bytes it had and what META counted of it."""

    row: RowState | None
    before: bytes | None
    gauges: tuple[int, ...] = ()
    touched: bool = False


class Rows:
    """The working set."""

    def __init__(self, reader: RowReader) -> None:
        self._reader = reader
        self.entries: dict[bytes, Entry] = {}
        self.lost: list[RowState] = []
        """Of those that were read: whose key was destroyed."""
        self._made: dict[str, list[bytes]] = {}

    def load(self, keys: Iterable[bytes]) -> None:
        """Read the rows that are not here yet."""
        missing = [key for key in dict.fromkeys(keys) if key not in self.entries]
        if missing:
            for key, data in zip(missing, self._reader.get_many(missing), strict=True):
                row = None if data is None else decode(data)
                self.entries[key] = Entry(row, data, gauges_of(row))
                if row is not None and row.lost:
                    self.lost.append(row)

    def get(self, key: bytes) -> Entry:
        """One row; `row` None where nothing is kept."""
        if key not in self.entries:
            self.load([key])
        return self.entries[key]

    def touch(self, keys: Iterable[bytes]) -> None:
        """Rows that are to be graded with this batch."""
        keys = list(keys)
        self.load(keys)
        for key in keys:
            entry = self.entries[key]
            entry.touched = entry.touched or entry.row is not None

    def made(self, episode_id: str, key: bytes) -> None:
        """This batch made a row that was not kept before."""
        self._made.setdefault(episode_id, []).append(key)

    def keys_of(self, episode_id: str) -> list[bytes]:
        """The keys of all rows of an episode, ascending: those kept, and those that this batch made."""
        made = self._made.get(episode_id)
        kept = self._reader.keys(row_prefix(episode_id))
        return kept if made is None else sorted({*kept, *made})

    def each(self, keys: Sequence[bytes]) -> Iterator[RowState]:
        """Rows to look at, with what this batch made of them. Those that are not in the working set are not kept in memory."""
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            missing = [key for key in chunk if key not in self.entries]
            read = dict(zip(missing, self._reader.get_many(missing), strict=True)) if missing else {}
            for key in chunk:
                data = read.get(key)
                row = self.entries[key].row if key in self.entries else None if data is None else decode(data)
                if row is not None:
                    yield row


def gauges_of(row: RowState | None) -> tuple[int, ...]:
    """What META counts of a row while it is kept, in the order of GAUGES."""
    if row is None:
        return _NOTHING
    if row.captured is None:
        return 0, 0, 1, int(row.waiting)
    return 1, int(row.settled), 0, int(row.waiting)
