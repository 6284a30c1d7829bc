"""Producing with a count of what became of each record."""

from __future__ import annotations

from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from treadle_schemas.codec import Headers

from treadle.errors import NotDelivered
from treadle.log._common import MAX_MESSAGE_BYTES, Partition, translate

KEPT_FAILURES: Final = 100
"""Reasons kept in `Sender.failures`; `Sender.failed` counts all."""


def producer_settings(bootstrap_servers: str) -> dict[str, Any]:
    """Settings of every plain producer: idempotent, all in-sync replicas, Java's partitioner (co-partitioning needs it)."""
    return {
        "bootstrap.servers": bootstrap_servers,
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": "murmur2_random",
        "compression.type": "zstd",
        "linger.ms": 20,
        "batch.size": 1_000_000,
        "message.max.bytes": MAX_MESSAGE_BYTES,
        "queue.buffering.max.messages": 100_000,
        "queue.buffering.max.kbytes": 65_536,
        "reconnect.backoff.max.ms": 2_000,
        "log_level": 0,
    }


class Sender:
    """An idempotent producer that counts: sent == acked + failed + still in flight.

    `failures` holds the first reasons; `last_timestamp_ms` the broker's time of the last acknowledged record by partition.
    """

    def __init__(self, bootstrap_servers: str, *, timeout_s: float = 30.0) -> None:
        self._producer = Producer({**producer_settings(bootstrap_servers), "message.timeout.ms": int(timeout_s * 1000)})
        self._servers = bootstrap_servers
        self.sent = 0
        self.acked = 0
        self.failed = 0
        self.failures: list[str] = []
        self.last_timestamp_ms: dict[Partition, int] = {}

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, partition: int | None = None
    ) -> None:
        """Hand one record over; waits while the local queue is full. Delivery is known after `flush`."""
        extra: dict[str, Any] = {} if partition is None else {"partition": partition}
        while True:
            try:
                self._producer.produce(topic, value, key, headers=list(headers), on_delivery=self._delivered, **extra)
                break
            except BufferError:
                self._producer.poll(0.05)
            except KafkaException as err:
                raise translate(err, f"sending to {topic}") from err
        self.sent += 1
        self._producer.poll(0)

    def wait_below(self, in_flight: int) -> None:
        """Wait until fewer than `in_flight` records are unacknowledged. Ends: each one is acknowledged or fails in its time."""
        while self.sent - self.acked - self.failed >= in_flight:
            self._producer.poll(0.05)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until everything is acknowledged. Raises NotDelivered (how many, and the broker's first reason)."""
        left = self._producer.flush(timeout_s)
        if self.failed or left:
            reason = self.failures[0] if self.failures else f"no answer from {self._servers} in {timeout_s:g} s"
            raise NotDelivered(f"{left + self.failed} records not acknowledged: {reason}", left)

    def _delivered(self, err: KafkaError | None, msg: Message) -> None:
        if err is not None:
            self.failed += 1
            if len(self.failures) < KEPT_FAILURES:
                self.failures.append(f"{msg.topic()}: {err.str()}")
            return
        self.acked += 1
        self.last_timestamp_ms[(msg.topic() or "", msg.partition() or 0)] = msg.timestamp()[1]
