"""Warm copies of partitions that other workers own: a replay of their changelog that goes on until the next assignment.

A copy reads committed, so it is never ahead of the committed changelog. It lies in the database that the partition has on this worker,
and gives no right to anything: whoever is assigned the partition goes through `recover` as every owner does, and finds less to replay.
"""

# The names below are confluent-kafka's documented public ones; its type information marks the re-exports as private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka import KafkaError, Message, TopicPartition

from treadle_streams.worker._clockwork import Copy
from treadle_streams.worker._ports import ConsumerPort, Ports
from treadle_streams.worker._recovery import changelog_reader
from treadle_streams.worker._settings import WorkerSettings
from treadle_streams.worker._store import PartitionStore

__all__ = ["Standbys"]

_QUEUED_KB = 8 * 1024
"""A copy is in no hurry, and the memory is wanted by the partitions that are owned."""


class Standbys:
    """The copies of one assignment. Used by the lane's thread alone."""

    def __init__(self, settings: WorkerSettings, ports: Ports) -> None:
        self._settings = settings
        self._ports = ports
        self._stores: Mapping[int, PartitionStore] = {}
        self._level: set[int] = set()
        self._consumer: ConsumerPort | None = None

    def __bool__(self) -> bool:
        return bool(self._stores)

    @property
    def copies(self) -> dict[int, Copy]:
        """How far each of them is."""
        return {p: Copy(store.applied, p in self._level) for p, store in self._stores.items()}

    def assign(self, stores: Mapping[int, PartitionStore]) -> None:
        """Feed these and no others; the databases of the others are free."""
        if not stores and not self._stores:
            return
        self._stores, self._level = stores, set()
        if self._consumer is None:
            self._consumer = changelog_reader(self._settings, self._ports, queued_kb=_QUEUED_KB)
        topic = self._settings.changelog
        self._consumer.assign([TopicPartition(topic, p, store.applied) for p, store in stores.items()])

    def feed(self, limit: int, timeout_s: float) -> bool:
        """Apply up to `limit` records, waiting `timeout_s` for them; whether anything came."""
        if self._consumer is None or not self._stores:
            return False
        by_partition: dict[int, list[Message]] = {}
        came = self._consumer.consume(limit, timeout_s)
        for message in came:
            error, partition = message.error(), message.partition() or 0
            if error is None:
                by_partition.setdefault(partition, []).append(message)
                self._level.discard(partition)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._level.add(partition)
        for partition, messages in by_partition.items():
            self._stores[partition].replay([(m.key(), m.value()) for m in messages], messages[-1].offset() or 0)
        return bool(came)

    def close(self) -> None:
        """Let go of databases and connection."""
        self._stores = {}
        if self._consumer is not None:
            self._consumer.close()
