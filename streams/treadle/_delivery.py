"""How a recorder's events leave the process: through a file of the spool, or straight to Kafka."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from treadle import _postman
from treadle._sendable import Sendable
from treadle.errors import LogError, QueueFull, SpoolUnwritable
from treadle.spool import Drain, Spool

if TYPE_CHECKING:
    from confluent_kafka import Producer

    from treadle._ledger import Ledger

Done = Callable[[str | None], None]
"""Called once an event, with None when it arrived or with the reason why it will not. One delivery is always given the same one."""

Durability = Literal["file", "fsync", "direct"]
QUEUE_MESSAGES: Final = 20_000
QUEUE_KIBIBYTES: Final = 32 * 1024
PRODUCER_EXTRA: Mapping[str, Any] = {
    "message.timeout.ms": 0,  # as long as it takes; the queue bounds the memory
    "linger.ms": 50,
    "compression.type": "lz4",
    "queue.buffering.max.messages": QUEUE_MESSAGES,
    "queue.buffering.max.kbytes": QUEUE_KIBIBYTES,
}
SYNC_S: Final = 0.05
"""How often what is in the files is put on the disk, in the background: bounds what a power cut takes."""
ADOPT_S: Final = 5.0
"""How often the spool is searched for files of processes that are gone."""
CLOSE_S: Final = 1.0


class Delivery(Protocol):
    """Where a recorder's events go. `send_many` waits for nothing but what it documents."""

    def send_many(self, events: Sequence[Sendable], done: Done) -> None:
        """Take one event over, with its companions before it. Raises QueueFull, SpoolFull, or another TreadleError, when it cannot;
        `done` is then not called."""
        ...

    def flush(self, timeout_s: float) -> None:
        """Hurry up; may wait for at most `timeout_s`."""
        ...

    def close(self) -> None:
        """Let go of threads, files and connections. What is in files stays there; of what is only in memory each `done` is called."""
        ...

    def after_fork(self) -> None:
        """Forget what belongs to the parent process. Called in the child."""
        ...


class SpoolSettings(NamedTuple):
    """Where a delivery keeps its files."""

    folder: Path
    limit_bytes: int
    when_full: Literal["block", "refuse"]


class KafkaDelivery:
    """File first (`file`, `fsync`): an event is in a local file when `send_many` returns, and the process's background thread takes it to
    Kafka. `direct`: an event is handed to the producer's bounded queue, and to the file when that is full or Kafka refuses it.

    Where the folder cannot be written, the delivery says so once and goes direct. `servers` is asked for the address when the producer is
    made, and again until it answers, so that an agent may start before its local broker.
    """

    _lock: threading.Lock
    _io: threading.Lock
    _spool: Spool | None
    _drain: Drain | None
    _producer: Producer | None
    _closed: bool
    _adopt_at: float
    _sync_at: float
    _make_at: float

    def __init__(
        self,
        servers: Callable[[], str],
        spool: SpoolSettings,
        durability: Durability,
        ledger: Callable[[], Ledger],
    ) -> None:
        self._servers = servers
        self._settings = spool
        self._durability: Durability = durability
        self._ledger = ledger
        self._start()

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._settings.folder

    def send_many(self, events: Sequence[Sendable], done: Done) -> None:
        """See Delivery. With `fsync` it waits for the disk; with a full spool and `block` for at most treadle.spool.BLOCK_S, but never
        in a thread that runs an asyncio loop."""
        spool = self._spool or self._open(done)
        if self._durability != "direct":
            if spool.writable:
                try:
                    self._to_file(spool, events)
                    return
                except SpoolUnwritable as err:
                    self.complain(
                        "spool unwritable, events go straight to Kafka and are lost if this process dies", err
                    )
            self._to_kafka(events, done)
            return
        try:
            self._to_kafka(events, done)
        except QueueFull:
            try:
                self._to_file(spool, events)
            except SpoolUnwritable as err:
                raise QueueFull(f"{err}; and the queue in memory is full") from None

    def flush(self, timeout_s: float) -> None:
        """See Delivery."""
        if self._spool is not None:
            self._adopt_at = 0.0  # a child may have ended just now
            _postman.wake(hurry=True)

    def work(self, now_s: float) -> bool:
        """One pass of the background thread; whether something is under way."""
        with self._io:
            spool, drain = self._spool, self._drain
            if spool is None or drain is None or self._closed:
                return False
            if now_s >= self._adopt_at:
                self._adopt_at = now_s + ADOPT_S
                spool.adopt()
            producer = self._producer
            if producer is None and not drain.idle:
                producer = self._make_producer(now_s)
            busy = False
            if producer is not None:
                drain.step(producer)
                producer.poll(0)
                drain.settle()
                spool.rotate_if_acked()
                if drain.fatal:
                    self._producer = None
                    drain.start_over()
                busy = len(producer) > 0
            if now_s >= self._sync_at:
                self._sync_at = now_s + SYNC_S
                if self._durability != "fsync":
                    spool.sync()
            return busy or not drain.idle

    def complain(self, kind: str, problem: object) -> None:
        """Log a problem."""
        self._ledger().complain(kind, problem)

    def close(self) -> None:
        """See Delivery."""
        self._closed = True
        _postman.discharge(self)
        # the background thread may be in the middle of a pass
        locked = self._io.acquire(timeout=CLOSE_S)
        try:
            producer, self._producer = self._producer, None
            if self._drain is not None:
                self._drain.quiet = True
            if producer is not None:
                producer.purge()
                producer.flush(0.1)
            if self._drain is not None and locked:
                self._drain.settle()
            if self._spool is not None and locked:
                self._spool.close()
        finally:
            if locked:
                self._io.release()

    def after_fork(self) -> None:
        """See Delivery."""
        if self._producer is not None:
            import ctypes

            # Its threads did not come along: destroying it would wait for them for ever, so the child never lets go of it.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._producer))
        if self._spool is not None:
            self._spool.abandon()
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._io = threading.Lock()
        self._spool = None
        self._drain = None
        self._producer = None
        self._closed = False
        self._adopt_at = self._sync_at = self._make_at = 0.0

    def _open(self, done: Done) -> Spool:
        with self._lock:
            if self._spool is None:
                folder, limit, full = self._settings
                spool = Spool(folder, done, limit_bytes=limit, when_full=full)
                self._drain = Drain(spool, self.complain, self._worry)
                self._spool = spool
                _postman.enlist(self)
            return self._spool

    def _worry(self, problem: str) -> None:
        self._ledger().worry(problem)

    def _to_file(self, spool: Spool, events: Sequence[Sendable]) -> None:
        pieces = [piece for event in events for piece in event.frame()]
        wait = spool.when_full == "block" and not _in_event_loop()
        segment = spool.append(pieces, wait=wait)
        if self._durability == "fsync":
            spool.sync_to(segment, segment.size)
        _postman.wake()

    def _to_kafka(self, events: Sequence[Sendable], done: Done) -> None:
        from confluent_kafka import KafkaException

        producer = self._producer or self._producer_now()
        for event in events:
            try:
                producer.produce(
                    event.template.topic,
                    event.value,
                    event.key,
                    headers=list(event.headers),
                    on_delivery=self._answer_to(event, done),
                )
            except BufferError:
                raise QueueFull(
                    f"{len(producer)} events wait for Kafka ({QUEUE_MESSAGES} or {QUEUE_KIBIBYTES} KiB at most)"
                ) from None
            except KafkaException as err:
                raise LogError(f"sending to {event.template.topic}: {err.args[0].str()}") from err
        _postman.wake()

    def _answer_to(self, event: Sendable, done: Done) -> Callable[[Any, Any], None]:
        def answered(err: Any, _message: Any) -> None:
            if err is None:
                if not event.companion:
                    done(None)
                return
            try:
                if self._spool is None:
                    raise SpoolUnwritable("there is no spool")
                # without the event's being lost, its second way: the file
                self._spool.append(event.frame(), wait=False)
            except Exception:
                if not event.companion:
                    done(str(err.str()))
                return
            self._worry(str(err.str()))

        return answered

    def _producer_now(self) -> Producer:
        with self._lock:
            if self._producer is None:
                self._producer = self._new_producer()
            return self._producer

    def _make_producer(self, now_s: float) -> Producer | None:
        if now_s < self._make_at:
            return None
        self._make_at = now_s + 1.0
        try:
            return self._producer_now()
        except Exception as err:
            self._worry(str(err))
            self.complain("Kafka cannot be used yet, events stay in the spool", err)
            return None

    def _new_producer(self) -> Producer:
        from confluent_kafka import Producer

        from treadle.log import producer_settings

        return Producer({**producer_settings(self._servers()), **PRODUCER_EXTRA})


def _in_event_loop() -> bool:
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None
