"""One consumer for all workspaces of a pool. It is assigned partitions one by one and fills the inboxes of their lanes.

A lane reads its inbox through `Feed` as if it were a consumer of its own. An inbox that is full lets go of its partitions until it is
emptied, so a workspace that floods keeps its records in the log, not in this process, and stops no other.
"""

# The names below are confluent-kafka's documented public ones; its type information marks the re-exports as private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from treadle.log import MAX_MESSAGE_BYTES, Partition

from treadle_streams.worker._inputs import passes
from treadle_streams.worker.errors import InputFailed

__all__ = ["Feed", "SharedFetch"]

_TAKE: Final = 500
"""Records taken from the client at a time."""
_WAIT_S: Final = 0.1
"""How long it is waited for them: how late a new assignment may begin."""


class Feed:
    """The inbox of one lane; a `ConsumerPort`."""

    def __init__(self, fetch: SharedFetch, wake: Callable[[], None], most_records: int, most_bytes: int) -> None:
        """`wake` is called when records came; the inbox is full beyond `most_records` or `most_bytes`."""
        self._fetch = fetch
        self._wake = wake
        self._most_records, self._most_bytes = most_records, most_bytes
        self._lock = threading.Lock()
        self._inbox: deque[Message] = deque()
        self._bytes = 0
        self._version = 0
        self._held = False

    # Called by the lane.

    def assign(self, partitions: Sequence[Any], /) -> None:
        """Read these from now on; what was fetched for an earlier assignment is gone."""
        with self._lock:
            self._version += 1
            version = self._version
            self._inbox.clear()
            self._bytes, self._held = 0, False
        self._fetch.ask(self, version, {(tp.topic, tp.partition): tp.offset for tp in partitions})

    def consume(self, num_messages: int, timeout: float, /) -> list[Message]:
        """What is there, at most so many and not more than half a full inbox; it is not waited for."""
        out: list[Message] = []
        taken = 0
        with self._lock:
            while self._inbox and len(out) < num_messages and taken <= self._most_bytes // 2:
                message = self._inbox.popleft()
                taken += _size(message)
                out.append(message)
            self._bytes -= taken
            resume = self._held and not self._full(2)
            if resume:
                self._held = False
        if resume:
            self._fetch.ask(self, self._version, None)
        return out

    def close(self) -> None:
        """Read nothing any more."""
        self.assign([])

    @property
    def waiting(self) -> bool:
        """Whether something is in the inbox."""
        return bool(self._inbox)

    @property
    def held(self) -> bool:
        """Whether it was full and has let go of its partitions since."""
        return self._held

    # Called by the fetching thread.

    def deliver(self, version: int, message: Message) -> bool:
        """Put a record in; False: it is full now and its partitions are to be let go of."""
        with self._lock:
            if version != self._version:
                return True
            self._inbox.append(message)
            self._bytes += _size(message)
            if self._held or not self._full(1):
                return True
            self._held = True
            return False

    def wake(self) -> None:
        """There are records."""
        self._wake()

    def _full(self, part: int) -> bool:
        return len(self._inbox) > self._most_records // part or self._bytes > self._most_bytes // part


class SharedFetch(threading.Thread):
    """The thread. Only it touches the consumer."""

    def __init__(self, servers: str, failed: Callable[[BaseException], None]) -> None:
        """`failed` is told what ends the thread, and all lanes with it."""
        super().__init__(name="treadle-fetch", daemon=True)
        self._failed = failed
        self._quit = threading.Event()
        self._asked: deque[tuple[Feed, int, Mapping[Partition, int] | None]] = deque()
        self._owner: dict[Partition, tuple[Feed, int]] = {}
        self._of: dict[Feed, set[Partition]] = {}
        self._next: dict[Partition, int] = {}
        self._held: set[Partition] = set()
        self._consumer = Consumer(
            {
                "bootstrap.servers": servers,
                # required by the client; no group is joined and nothing is committed with it
                "group.id": "treadle.pool.reader",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                # an offset that is not there any more must be seen, not skipped
                "auto.offset.reset": "error",
                # every request names all partitions, so it had better wait long for an idle pool; it ends at the first record
                "fetch.wait.max.ms": 500,
                "fetch.error.backoff.ms": 100,
                "fetch.message.max.bytes": 1024 * 1024,
                "receive.message.max.bytes": 8 * MAX_MESSAGE_BYTES,
                "queued.max.messages.kbytes": 16 * 1024,
                "queued.min.messages": 2_000,
                "reconnect.backoff.max.ms": 1_000,
                "log_level": 0,
            }
        )

    def feed(self, wake: Callable[[], None], most_records: int, most_bytes: int) -> Feed:
        """An inbox for one more lane."""
        return Feed(self, wake, most_records, most_bytes)

    def ask(self, feed: Feed, version: int, positions: Mapping[Partition, int] | None) -> None:
        """Read for `feed` from these positions and no others; None: go on with what was let go of when it was full."""
        self._asked.append((feed, version, positions))

    def close(self) -> None:
        """End the thread."""
        self._quit.set()

    def run(self) -> None:
        """The thread: without it no lane reads, so whatever it cannot handle ends the process."""
        try:
            while not self._quit.is_set():
                while self._asked:
                    self._serve(*self._asked.popleft())
                self._route(self._consumer.consume(_TAKE, _WAIT_S))
            self._consumer.close()
        except BaseException as err:
            self._failed(err)

    def _serve(self, feed: Feed, version: int, positions: Mapping[Partition, int] | None) -> None:
        if positions is None:
            mine = {tp for tp in self._of.get(feed, ()) if tp in self._held and self._owner[tp][1] == version}
            self._held -= mine
            self._read({tp: self._next[tp] for tp in mine})
            return
        old = self._of.pop(feed, set())
        self._let_go(old - self._held)
        self._held -= old
        for tp in old:
            del self._owner[tp], self._next[tp]
        if positions:
            self._of[feed] = set(positions)
            for tp, at in positions.items():
                self._owner[tp], self._next[tp] = (feed, version), at
            self._read(positions)

    def _read(self, positions: Mapping[Partition, int]) -> None:
        if positions:
            self._consumer.incremental_assign([TopicPartition(name, p, at) for (name, p), at in positions.items()])

    def _let_go(self, partitions: set[Partition]) -> None:
        if partitions:
            self._consumer.incremental_unassign([TopicPartition(name, p) for name, p in partitions])

    def _route(self, messages: Sequence[Message]) -> None:
        woken: set[Feed] = set()
        full: set[Partition] = set()
        for message in messages:
            where = (message.topic() or "", message.partition() or 0)
            owner = self._owner.get(where)
            error = message.error()
            if owner is None:
                if error is not None and not message.topic() and not passes(error):
                    raise InputFailed(f"reading for the pool: {error.str()}")
                continue
            feed, version = owner
            offset = message.offset()
            if error is None or error.code() == KafkaError._PARTITION_EOF:
                at = (offset or 0) + (0 if error is not None else 1)
                self._next[where] = max(self._next[where], at)
            if not feed.deliver(version, message):
                full |= self._of[feed]
            woken.add(feed)
        if full:
            self._let_go(full - self._held)
            self._held |= full
        for feed in woken:
            feed.wake()


def _size(message: Message) -> int:
    return len(message.value() or b"") if message.error() is None else 0
