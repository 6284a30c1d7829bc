"""The client library as the lane sees it: producer, consumer, admin, mailbox, in the shape of confluent-kafka's and treadle.log's.

Each request reaches the broker some time after it was made, and its answer comes some time after that; whoever made it may be stopped or
dead by then. Acknowledgements come in any order, a flush in several requests, a fetch brings any part of what is there.
"""

# The names below are confluent-kafka's documented public ones; its type information marks the re-exports as private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import queue
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from treadle.errors import LogError
from treadle_schemas.partitioner import partition_of

from simulation.log import Entry, Refusal
from simulation.scheduler import Killed

if TYPE_CHECKING:
    from simulation.process import Process

__all__ = ["Consumer", "Mail", "Message", "Offsets", "Producer"]

T = TypeVar("T")
Place = tuple[str, int]

_RETRY_S: Final = 0.05
_STALE: Final = frozenset({"ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "REBALANCE_IN_PROGRESS"})
_METADATA: Final = b"CGMDv2:"


class Failure:
    """An error as `KafkaError` shows it. (One of those cannot be made with all its flags from Python.)"""

    def __init__(self, name: str, code: int = -1) -> None:
        self._name = name
        self._code = code

    def name(self) -> str:
        """Kafka's name."""
        return self._name

    def code(self) -> int:
        """The number, where it is looked at."""
        return self._code

    def str(self) -> str:
        """In words."""
        return f"simulated {self._name}"

    def retriable(self) -> bool:
        """May the call be made again?"""
        return self._name == "_TIMED_OUT"

    def fatal(self) -> bool:
        """Is the producer of no more use?"""
        return self._name == "_FENCED"

    def txn_requires_abort(self) -> bool:
        """Is an abort the way on?"""
        return self._name in _STALE


class Message:
    """A record, or an error of a partition."""

    __slots__ = ("_entry", "_error", "_offset", "_place")

    def __init__(self, place: Place, offset: int, entry: Entry | None = None, error: Failure | None = None) -> None:
        self._place, self._offset, self._entry, self._error = place, offset, entry, error

    def error(self) -> Failure | None:
        """None for a record."""
        return self._error

    def topic(self) -> str:
        """Its topic."""
        return self._place[0]

    def partition(self) -> int:
        """Its partition."""
        return self._place[1]

    def offset(self) -> int:
        """Its offset; of an end, the next one."""
        return self._offset

    def key(self) -> bytes | None:
        """Its key."""
        return None if self._entry is None else self._entry.key

    def value(self) -> bytes | None:
        """Its value."""
        return None if self._entry is None else self._entry.value

    def headers(self) -> list[tuple[str, Any]]:
        """Its headers."""
        return [] if self._entry is None else self._entry.headers

    def timestamp(self) -> tuple[int, int]:
        """(log append time, milliseconds)."""
        return 2, 0 if self._entry is None else self._entry.append_ms


def ask(process: Process, question: Callable[[], T], partitions: Iterable[int] = (), timeout_s: float = 10.0) -> T:
    """One request and its answer. Raises Refusal, also `_TIMED_OUT`: then it may still be carried out. Raises Killed."""
    scheduler, cluster = process.scheduler, process.cluster
    process.alive()
    task = scheduler.current
    assert task is not None
    asked = list(partitions)
    answer: list[tuple[T | None, Refusal | None]] = []

    def serve() -> None:
        held_s = cluster.held_s(asked)
        if held_s > 0:
            scheduler.after(held_s, serve)
            return
        try:
            answer.append((question(), None))
        except Refusal as refusal:
            answer.append((None, refusal))
        if task.wait_number == waited:
            scheduler.wake(task, cluster.latency_s())

    scheduler.after(cluster.latency_s(), serve)
    deadline_s = scheduler.now_s + timeout_s
    while not answer:
        waited = task.wait_number + 1
        if not scheduler.wait(deadline_s - scheduler.now_s) and not answer:
            raise Refusal("_TIMED_OUT")
    value, refusal = answer[0]
    if refusal is not None:
        raise refusal
    return value  # type: ignore[return-value]


class Producer:
    """A transactional producer."""

    def __init__(self, process: Process, config: Mapping[str, Any]) -> None:
        self._process = process
        self._timeout_s = config["transaction.timeout.ms"] / 1000
        self._buffer: list[tuple[Place, Entry, Callable[..., None]]] = []
        self._failed: Failure | None = None

    def init_transactions(self, timeout: float) -> None:
        """Get a producer id."""
        log = self._process.cluster.log
        self._who = self._ask(lambda: log.producer(self._timeout_s), timeout)
        self._epoch = self._who.epoch

    def begin_transaction(self) -> None:
        """Nothing is sent yet."""
        self._process.alive()
        assert not self._buffer, "a transaction begins with an empty buffer"
        self._failed = None

    def produce(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int = -1,
        *,
        on_delivery: Callable[..., None] = lambda *_: None,
        headers: list[tuple[str, Any]] | None = None,
    ) -> None:
        """Buffer a record."""
        if partition < 0:
            partition = partition_of(key or b"", self._process.cluster.partitions)
        self._buffer.append(((topic, partition), Entry(key, value, headers or [], 0), on_delivery))

    def poll(self, timeout: float) -> int:
        """Acknowledgements come with the flush."""
        self._process.alive()
        return 0

    def flush(self, timeout: float) -> int:
        """Send what is buffered, in one request or several, and take the acknowledgements. How many there are none of."""
        random = self._process.scheduler.random
        deadline_s = self._process.scheduler.now_s + timeout
        by_place: dict[Place, list[tuple[Entry, Callable[..., None]]]] = {}
        for place, entry, on_delivery in self._buffer:
            by_place.setdefault(place, []).append((entry, on_delivery))
        self._buffer = []
        groups = list(by_place.items())
        random.shuffle(groups)
        if groups and random.random() < 0.5:  # one partition's records in two requests
            place, entries = groups.pop()
            cut = random.randint(0, len(entries))
            groups += [(place, part) for part in (entries[:cut], entries[cut:]) if part]
        acks: list[tuple[Failure | None, Message, Callable[..., None]]] = []
        left = sum(len(entries) for _, entries in groups)
        while groups:
            count = random.randint(1, len(groups))
            request, groups = groups[:count], groups[count:]
            try:
                firsts = self._ask(
                    partial(self._write, request),
                    deadline_s - self._process.scheduler.now_s,
                    {place[1] for place, _ in request},
                )
                failure = None
            except Refusal as refusal:
                if refusal.name == "_TIMED_OUT":
                    break
                firsts, failure = [0] * len(request), Failure(refusal.name)
            for (place, entries), first in zip(request, firsts, strict=True):
                left -= len(entries)
                acks += [(failure, Message(place, first + n), done) for n, (_, done) in enumerate(entries)]
            if groups:
                self._process.point("flush part")
        random.shuffle(acks)
        for failure, message, on_delivery in acks:
            self._failed = self._failed or failure
            on_delivery(failure, message)
        return left

    def send_offsets_to_transaction(self, positions: list[TopicPartition], metadata: bytes, timeout: float) -> None:
        """Positions of the group, checked against its generation unless there are none."""
        cluster = self._process.cluster
        generation, member_id = _membership(metadata)

        def send() -> None:
            if positions:
                cluster.group.check(member_id, generation)
            cluster.log.add_positions(self._who, self._epoch, {(p.topic, p.partition): p.offset for p in positions})

        self._call(send, timeout)
        self._process.point("send unanswered")

    def commit_transaction(self, timeout: float) -> None:
        """Decide for it."""
        self._call(lambda: self._process.cluster.log.end(self._who, self._epoch, True), timeout)
        self._process.point("commit unanswered")

    def abort_transaction(self, timeout: float) -> None:
        """Decide against it."""
        self._buffer, self._failed = [], None
        self._call(lambda: self._process.cluster.log.end(self._who, self._epoch, False), timeout)

    def _write(self, request: list[tuple[Place, list[tuple[Entry, Callable[..., None]]]]]) -> list[int]:
        log = self._process.cluster.log
        now_ms = log.broker_ms()
        firsts = []
        for place, entries in request:
            for entry, _ in entries:
                entry.append_ms = now_ms
            firsts.append(log.write(self._who, self._epoch, place, [entry for entry, _ in entries]))
        return firsts

    def _call(self, question: Callable[[], None], timeout_s: float) -> None:
        if self._failed is not None:  # as librdkafka: a record that was not taken fails the transaction
            raise KafkaException(self._failed)
        try:
            self._ask(question, timeout_s)
        except Refusal as refusal:
            raise KafkaException(Failure(refusal.name)) from None

    def _ask(self, question: Callable[[], T], timeout_s: float, partitions: Iterable[int] = ()) -> T:
        """As librdkafka: while the markers of the transaction before are being written, again and again."""
        scheduler = self._process.scheduler
        deadline_s = scheduler.now_s + timeout_s
        asked = list(partitions)
        while True:
            try:
                return ask(self._process, question, asked, deadline_s - scheduler.now_s)
            except Refusal as refusal:
                if refusal.name != "CONCURRENT_TRANSACTIONS":
                    raise
                if scheduler.now_s >= deadline_s:
                    raise Refusal("_TIMED_OUT") from None
            scheduler.wait(_RETRY_S)


def _membership(metadata: bytes) -> tuple[int, str]:
    """Generation and member id of librdkafka's serialised group metadata."""
    assert metadata.startswith(_METADATA), metadata
    (generation,) = struct.unpack_from("<i", metadata, len(_METADATA))
    _, member_id, _ = metadata[len(_METADATA) + 4 :].split(b"\0")
    return generation, member_id.decode()


class Consumer:
    """A consumer that reads committed, with partition ends."""

    def __init__(self, process: Process, fetched: Callable[[Iterable[Entry]], None]) -> None:
        """`fetched` is told what came with each poll."""
        self._process = process
        self._fetched = fetched
        self._positions: dict[Place, int] = {}
        self._ends: dict[Place, int] = {}
        self._closed = False

    def assign(self, partitions: list[TopicPartition]) -> None:
        """Read these from there on."""
        self._positions = {(p.topic, p.partition): p.offset for p in partitions}
        self._ends = {}

    def consume(self, count: int, timeout: float) -> list[Message]:
        """Some of what is there; waits for it. Takes time in any case, so that others get on."""
        scheduler = self._process.scheduler
        self._process.alive()
        out = self._gather(count)
        if out:
            scheduler.wait(scheduler.random.uniform(0.0005, 0.005))
        else:
            deadline_s = scheduler.now_s + timeout
            while not out:
                for place in self._positions:
                    self._process.cluster.log[place].watchers[self._changed] = None
                woken = scheduler.wait(max(deadline_s - scheduler.now_s, 0.0005))
                out = self._gather(count)
                if not woken:
                    break
        self._fetched(entry for m in out if (entry := m._entry) is not None)
        return out

    def close(self) -> None:
        """Nothing is read any more."""
        self._positions = {}

    def _changed(self) -> None:
        task = self._process.task
        if task is not None and not self._process.dead:
            self._process.scheduler.wake(task, self._process.cluster.latency_s() * 2)

    def _gather(self, count: int) -> list[Message]:
        random, cluster = self._process.scheduler.random, self._process.cluster
        if self._positions and cluster.held_s() > 0:
            return []
        out: list[Message] = []
        places = list(self._positions)
        random.shuffle(places)
        for place in places:
            log, at = cluster.log[place], self._positions[place]
            stable = log.stable
            if at > log.end:
                out.append(Message(place, at, error=Failure("_AUTO_OFFSET_RESET", KafkaError._AUTO_OFFSET_RESET)))
                continue
            if at >= stable and self._ends.get(place) == at:
                continue
            if cluster.held_s([place[1]]) > 0:
                continue
            room = count - len(out)
            if random.random() < 0.25:
                room = min(room, random.randint(0, 3))
            while at < stable and room > 0:
                entry = log.entries[at]
                if entry.visible:
                    out.append(Message(place, at, entry))
                    room -= 1
                at += 1
            self._positions[place] = at
            if at >= stable and room > 0 and self._ends.get(place) != at:
                self._ends[place] = at
                out.append(Message(place, at, error=Failure("_PARTITION_EOF", KafkaError._PARTITION_EOF)))
        return out


class Offsets:
    """What `treadle.log.Admin` answers."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def end_offsets(self, partitions: Iterable[Place]) -> dict[Place, int]:
        """The high watermarks."""
        log = self._process.cluster.log
        return self._ask(list(partitions), lambda place: log[place].end)

    def start_offsets(self, partitions: Iterable[Place]) -> dict[Place, int]:
        """Nothing is ever cut off."""
        return self._ask(list(partitions), lambda _: 0)

    def stable_offsets(self, partitions: Iterable[Place]) -> dict[Place, int]:
        """The stable offsets."""
        log = self._process.cluster.log
        return self._ask(list(partitions), lambda place: log[place].stable)

    def topic_id(self, name: str) -> str:
        """No topic is ever made anew."""
        return "1"

    def committed(self, group: str, partitions: Iterable[Place]) -> dict[Place, int]:
        """The group's positions, once none is pending."""
        scheduler, log = self._process.scheduler, self._process.cluster.log
        places = list(partitions)
        deadline_s = scheduler.now_s + 30.0

        def stable(place: Place) -> int:
            if log.pending(places):
                raise Refusal("UNSTABLE_OFFSET_COMMIT")
            return log.positions.get(place, 0)

        while True:
            try:
                return self._ask(places, stable)
            except LogError:
                if scheduler.now_s > deadline_s:
                    raise
            scheduler.wait(0.1)

    def _ask(self, places: list[Place], what: Callable[[Place], int]) -> dict[Place, int]:
        try:
            found = ask(self._process, lambda: {place: what(place) for place in places}, timeout_s=30.0)
        except Refusal as refusal:
            raise LogError(refusal.name) from None
        self._process.point("recover asked")
        return found


class Mail:
    """The lane's mailbox."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        """From the process's other thread."""
        self._items.append(item)
        task = self._process.task
        if task is not None and not self._process.dead:
            self._process.scheduler.wake(task, self._process.cluster.latency_s())

    def get_nowait(self) -> Any:
        """Raises queue.Empty."""
        if self._process.dead:
            raise Killed
        if not self._items:
            raise queue.Empty
        return self._items.popleft()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Wait for an item. Raises queue.Empty."""
        scheduler = self._process.scheduler
        deadline_s = scheduler.now_s + (timeout or 0.0)
        while not self._items and scheduler.wait(max(deadline_s - scheduler.now_s, 0.001)):
            pass
        return self.get_nowait()
