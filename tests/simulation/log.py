"""The log: partitions with transactions as Kafka has them, and the coordinator that begins, times out and ends those.

Offsets are those of Kafka: markers take one, aborted records keep theirs. The stable offset of a partition is the first record of its
oldest open transaction. A decided commit reaches each partition by its own marker, in any order and not at once. A transaction that
outlives its timeout is aborted, and its producer fenced by a higher epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from simulation.scheduler import Scheduler

__all__ = ["CLEANUP_S", "T0_MS", "Entry", "Log", "PartitionLog", "Refusal", "Share", "Transactional"]

T0_MS: Final = 1_700_000_000_000
CLEANUP_S: Final = 1.0
"""How often transactions that are out of time are looked for."""

Place = tuple[str, int]


class Refusal(Exception):
    """What a broker answers instead of doing it; the name is Kafka's."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Share:
    """What a transaction has in one partition: where it begins there, and what its marker said."""

    __slots__ = ("committed", "first")

    def __init__(self, first: int) -> None:
        self.first = first
        self.committed: bool | None = None


@dataclass(slots=True)
class Entry:
    """One offset of a partition. `kind` is the event kind of the schedule, None for what workers wrote; markers have `marker`."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, Any]]
    append_ms: int
    share: Share | None = None
    kind: str | None = None
    marker: bool = False
    compacted: bool = False

    @property
    def visible(self) -> bool:
        """Does a reader of committed data get it, once below the stable offset?"""
        return not (self.marker or self.compacted) and (self.share is None or self.share.committed is True)


class PartitionLog:
    """One partition of one topic."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.open: dict[int, Share] = {}
        """By producer id."""
        self.watchers: dict[Callable[[], None], None] = {}
        """Called once, at the next change."""

    @property
    def end(self) -> int:
        """The high watermark."""
        return len(self.entries)

    @property
    def stable(self) -> int:
        """The stable offset."""
        return min(s.first for s in self.open.values()) if self.open else len(self.entries)

    def committed(self) -> Iterable[tuple[int, Entry]]:
        """(offset, entry) of what a reader of committed data gets."""
        for offset in range(self.stable):
            if self.entries[offset].visible:
                yield offset, self.entries[offset]

    def changed(self) -> None:
        """Tell who waits."""
        watchers, self.watchers = self.watchers, {}
        for watcher in watchers:
            watcher()


@dataclass(slots=True)
class Transactional:
    """A producer as its coordinator knows it."""

    number: int
    timeout_s: float
    epoch: int = 0
    state: str = "empty"
    """empty, ongoing, or ending: decided, but not all markers are written."""
    since_s: float = 0.0
    places: list[Place] = field(default_factory=list)
    offsets: dict[Place, int] = field(default_factory=dict)
    """Positions that count when it commits."""


class Log:
    """All partitions of all topics, the group's positions, and the transactions."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.skew_ms = 0
        """How far the broker's clock was set ahead by the schedule."""
        self.partitions: dict[Place, PartitionLog] = {}
        self.positions: dict[Place, int] = {}
        """Of the one consumer group."""
        self.producers: list[Transactional] = []
        self.slow_markers = 0.0
        """Share of markers that take more than a second."""

    def __getitem__(self, place: Place) -> PartitionLog:
        found = self.partitions.get(place)
        if found is None:
            found = self.partitions[place] = PartitionLog()
        return found

    def broker_ms(self) -> int:
        """The broker's clock."""
        return T0_MS + self.skew_ms + int(self._scheduler.now_s * 1000)

    def append(self, place: Place, entry: Entry) -> int:
        """Append what no transaction brings; the offset."""
        log = self[place]
        log.entries.append(entry)
        log.changed()
        return len(log.entries) - 1

    # What a coordinator is asked.

    def producer(self, timeout_s: float) -> Transactional:
        """InitProducerId, for a transactional id that nobody had before."""
        made = Transactional(len(self.producers), timeout_s)
        self.producers.append(made)
        return made

    def write(self, who: Transactional, epoch: int, place: Place, entries: list[Entry]) -> int:
        """Produce in a transaction, which begins with it where none is under way. The first offset."""
        self._ongoing(who, epoch)
        log = self[place]
        share = log.open.get(who.number)
        if share is None:
            share = log.open[who.number] = Share(log.end)
            who.places.append(place)
        first = log.end
        for entry in entries:
            entry.share = share
            log.entries.append(entry)
        log.changed()
        return first

    def add_positions(self, who: Transactional, epoch: int, positions: dict[Place, int]) -> None:
        """TxnOffsetCommit, after the group has agreed."""
        self._ongoing(who, epoch)
        who.offsets.update(positions)

    def end(self, who: Transactional, epoch: int, commit: bool) -> None:
        """EndTxn: decided at once, carried out marker by marker."""
        if epoch != who.epoch:
            raise Refusal("_FENCED")
        if who.state == "ending":
            raise Refusal("CONCURRENT_TRANSACTIONS")
        if who.state == "ongoing":
            self._decide(who, commit)

    def expire(self) -> None:
        """Abort what is out of time, and fence its producer."""
        for who in self.producers:
            if who.state == "ongoing" and self._scheduler.now_s - who.since_s > who.timeout_s:
                who.epoch += 1
                self._scheduler.note("coordinator: transaction of producer", who.number, "timed out")
                self._decide(who, False)

    def pending(self, places: Iterable[Place]) -> bool:
        """Is there a position of one of these that may still be committed?"""
        return any(place in who.offsets for who in self.producers for place in places)

    def compact(self, topic: str) -> None:
        """Drop what a later committed record of the same key replaces, and markers, up to the stable offset. Offsets stay."""
        for (name, _), log in self.partitions.items():
            if name != topic:
                continue
            last = {entry.key: offset for offset, entry in log.committed()}
            for offset in range(log.stable):
                entry = log.entries[offset]
                if entry.key is not None and last.get(entry.key, -1) > offset:
                    entry.compacted = True
                    entry.value = None

    def _ongoing(self, who: Transactional, epoch: int) -> None:
        if epoch != who.epoch:
            raise Refusal("_FENCED")
        if who.state == "ending":
            raise Refusal("CONCURRENT_TRANSACTIONS")
        if who.state == "empty":
            who.state, who.since_s = "ongoing", self._scheduler.now_s

    def _decide(self, who: Transactional, commit: bool) -> None:
        who.state = "ending"
        left: list[Place | None] = [*who.places, None]  # None: the group's positions
        self._scheduler.random.shuffle(left)
        open_markers = len(left)

        def mark(place: Place | None) -> None:
            nonlocal open_markers
            if place is None:
                if commit:
                    self.positions.update(who.offsets)
                who.offsets = {}
            else:
                log = self[place]
                log.open.pop(who.number).committed = commit
                log.entries.append(Entry(None, None, [], self.broker_ms(), marker=True))
                log.changed()
            open_markers -= 1
            if not open_markers:
                who.places, who.state = [], "empty"

        random = self._scheduler.random
        for place in left:
            delay_s = random.uniform(1.0, 4.0) if random.random() < self.slow_markers else random.uniform(0.001, 0.02)
            self._scheduler.after(delay_s, partial(mark, place))
