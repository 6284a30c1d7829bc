"""A partition of the join in memory: drive it without a broker, in tests or for an offline fold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from treadle_streams.join.arrivals import Arrival
from treadle_streams.join.emissions import Emission
from treadle_streams.join.grading import Grading
from treadle_streams.join.meta import Meta
from treadle_streams.join.plan import Plan, plan
from treadle_streams.join.state import META_KEY, TIMER_PREFIX, RowState, decode, index_keys, row_key, timer_bound

__all__ = ["MemoryPartition"]


class MemoryPartition:
    """State, index and outputs of one partition. `step` plans and applies batches; `restart` rebuilds it from its changelog."""

    def __init__(self, grading: Grading, partition: int = 0) -> None:
        self.grading = grading
        self.partition = partition
        self.records: dict[bytes, bytes] = {}
        """What the changelog holds: rows and META."""
        self.index: set[bytes] = set()
        self.outputs: list[Emission] = []
        self.transactions = 0

    @property
    def meta(self) -> Meta:
        """The partition's META as last written."""
        data = self.records.get(META_KEY)
        return Meta() if data is None else Meta.decode(data)

    def row(self, episode_id: str, interaction_id: str) -> RowState | None:
        """The state of one row."""
        data = self.records.get(row_key(episode_id, interaction_id))
        return None if data is None else decode(data)

    def step(
        self,
        arrivals: Iterable[Arrival] = (),
        *,
        graded_at: str = "2026-01-01T00:00:00Z",
        positions: Mapping[str, int] | None = None,
        at_end_ms: Mapping[str, int] | None = None,
        most: int | None = None,
    ) -> list[Emission]:
        """One batch, and the ones that follow at once because more rows are due, `most` in all. Returns what they wrote."""
        written: list[Emission] = []
        batch: Iterable[Arrival] = arrivals
        while most is None or most > 0:
            most = None if most is None else most - 1
            made = plan(
                self.partition,
                self.meta,
                self,
                batch,
                self.grading,
                graded_at=graded_at,
                positions=positions,
                at_end_ms=at_end_ms,
            )
            if not made.empty:
                self._apply(made)
                written += made.outputs
            if not (made.more or made.background):
                break
            batch = ()
        self.outputs += written
        return written

    def restart(self) -> None:
        """Forget what is derived and rebuild it from the records, as a new owner does from the changelog."""
        self.index = {k for key, value in self.records.items() for k in index_keys(key, value)}

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See StateReader."""
        return [self.records.get(key) for key in keys]

    def due(self, clock_ms: int) -> Iterator[tuple[bytes, bytes]]:
        """See StateReader."""
        bound = timer_bound(clock_ms)
        start = len(TIMER_PREFIX) + 8
        return iter([(k, k[start:]) for k in sorted(self.index) if k.startswith(TIMER_PREFIX) and k < bound])

    def parked(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See StateReader."""
        return iter([(k, k[len(prefix) :]) for k in sorted(self.index) if k.startswith(prefix)])

    def keys(self, prefix: bytes, after: bytes = b"", limit: int = 0) -> list[bytes]:
        """See StateReader."""
        return sorted(k for k in self.records if k.startswith(prefix) and k > after)[: limit or None]

    def _apply(self, made: Plan) -> None:
        self.transactions += 1
        self.index.difference_update(made.drop_index)
        for key in made.deletes:
            del self.records[key]
        for key, value in made.puts.items():
            self.records[key] = value
            self.index.update(index_keys(key, value))
        self.records[META_KEY] = made.meta.encode()
