"""How a recorder's events leave the process: the direct producer, safe over fork and at exit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from treadle_schemas.codec import Headers

from treadle.errors import LogError, QueueFull

if TYPE_CHECKING:
    from confluent_kafka import Producer

Done = Callable[[str | None], None]
"""Called once an event, with None when it arrived or with the reason why it will not."""

POLL_S: Final = 0.1
QUEUE_MESSAGES: Final = 20_000
QUEUE_KIBIBYTES: Final = 32 * 1024
PRODUCER_EXTRA: Mapping[str, Any] = {
    "message.timeout.ms": 0,  # as long as it takes; the queue bounds the memory
    "queue.buffering.max.messages": QUEUE_MESSAGES,
    "queue.buffering.max.kbytes": QUEUE_KIBIBYTES,
}


class Delivery(Protocol):
    """Where a recorder's events go. `send` never waits."""

    def send(self, topic: str, key: bytes, value: bytes, headers: Headers, done: Done) -> None:
        """Take one event over. Raises QueueFull, or another TreadleError, when it cannot; `done` is then not called."""
        ...

    def flush(self, timeout_s: float) -> None:
        """Hurry up, and wait at most `timeout_s`."""
        ...

    def close(self) -> None:
        """Give up what is still queued (each `done` is called with a reason) and let go of threads and connections."""
        ...

    def after_fork(self) -> None:
        """Forget what belongs to the parent process. Called in the child."""
        ...


class KafkaDelivery:
    """One idempotent producer and one thread that polls it, both made at the first event, in the process that sends it.

    `send` hands the event to the client's bounded queue (QUEUE_MESSAGES, QUEUE_KIBIBYTES) and never waits: it raises QueueFull instead.
    While Kafka is away the queue holds events as long as it takes. `servers` is asked for the address when the producer is made, so an
    agent may start before its local broker.
    """

    _producer: Producer | None
    _thread: threading.Thread | None

    def __init__(self, servers: Callable[[], str]) -> None:
        self._servers = servers
        self._start()

    def send(self, topic: str, key: bytes, value: bytes, headers: Headers, done: Done) -> None:
        """See Delivery."""
        from confluent_kafka import KafkaException

        producer = self._producer or self._make()
        try:
            producer.produce(topic, value, key, headers=list(headers), on_delivery=lambda err, msg: done(_reason(err)))
        except BufferError:
            raise QueueFull(
                f"{len(producer)} events wait for Kafka ({QUEUE_MESSAGES} or {QUEUE_KIBIBYTES} KiB at most)"
            ) from None
        except KafkaException as err:
            raise LogError(f"sending to {topic}: {err.args[0].str()}") from err

    def flush(self, timeout_s: float) -> None:
        """See Delivery."""
        if self._producer is not None:
            self._producer.flush(timeout_s)

    def close(self) -> None:
        """See Delivery."""
        with self._lock:
            producer, thread = self._producer, self._thread
            self._producer = self._thread = None
            self._stop.set()
        if producer is not None:
            producer.purge()
            producer.flush(POLL_S)
        if thread is not None:
            thread.join(10 * POLL_S)

    def after_fork(self) -> None:
        """See Delivery."""
        if self._producer is not None:
            import ctypes

            # Its threads did not come along: destroying it would wait for them for ever, so the child never lets go of it.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._producer))
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._producer = None
        self._thread = None

    def _make(self) -> Producer:
        with self._lock:
            if self._producer is not None:
                return self._producer
            from confluent_kafka import Producer

            from treadle.log import producer_settings

            producer = Producer({**producer_settings(self._servers()), **PRODUCER_EXTRA})
            self._thread = threading.Thread(
                target=_serve, args=(producer, self._stop), name="treadle-recorder", daemon=True
            )
            self._thread.start()
            self._producer = producer
            return producer


def _serve(producer: Producer, stop: threading.Event) -> None:
    while not stop.is_set():
        producer.poll(POLL_S)


def _reason(err: Any) -> str | None:
    return None if err is None else str(err.str())
