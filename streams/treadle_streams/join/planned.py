"""What planning a batch reads, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from treadle_streams.join.emissions import Emission
from treadle_streams.join.meta import Meta

__all__ = ["Plan", "StateReader"]


class StateReader(Protocol):
    """The partition's state as the last committed batch left it."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The records of row keys, None where there is none."""
        ...

    def due(self, clock_ms: int) -> Iterator[tuple[bytes, bytes]]:
        """(index key, row key) of timers whose deadline the clock has passed, earliest first."""
        ...

    def keys(self, prefix: bytes, after: bytes = b"", limit: int = 0) -> list[bytes]:
        """The first `limit` (0: all) keys of records that begin with `prefix` and lie above `after`, ascending."""
        ...

    def parked(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(index key, key of a row or part) of what an index prefix stands for: rows parked by an import, dependents of a part."""
        ...


@dataclass(slots=True)
class Plan:
    """What one transaction of one partition writes."""

    partition: int
    meta: Meta
    puts: dict[bytes, bytes] = field(default_factory=dict)
    """Rows and parts to write, to the changelog and then locally with their index keys."""
    deletes: list[bytes] = field(default_factory=list)
    """Keys of records that end: null in the changelog, gone locally. None of them is in `puts`."""
    drop_index: list[bytes] = field(default_factory=list)
    """Local index keys to delete; the changelog knows none."""
    outputs: list[Emission] = field(default_factory=list)
    more: bool = False
    """Rows are left over that time has made due: plan again at once."""
    background: bool = False
    """Kept rows are left to be graded by the present grading version: plan again, but let events that arrive come in between."""
    erased: list[str] = field(default_factory=list)
    """Episodes of which something was taken out of the state: local files still have its bytes until they are written anew."""
    empty: bool = False
    """Nothing happened that a restart would not find again: no transaction is needed."""
