"""Reading the inputs: a consumer that is assigned, never subscribed, at the offsets that META names.

Each assignment of the group gets an `assign` of its own, so nothing fetched under an older one survives. Reads committed; PARTITION_EOF
carries the position past transaction markers.
"""

# The names below are confluent-kafka's documented public ones; its type information marks the re-exports as private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, Message, TopicPartition
from treadle.log import MAX_MESSAGE_BYTES
from treadle_schemas import topics

from treadle_streams.join import INPUTS, Arrival, Input
from treadle_streams.worker._ports import REAL, Ports
from treadle_streams.worker.errors import InputFailed

__all__ = ["Inputs", "passes"]

Position = tuple[Input, int]


class Inputs:
    """The input topics of the partitions this worker owns."""

    def __init__(self, servers: str, workspace: str, ports: Ports = REAL) -> None:
        self._kinds: dict[str, Input] = {topics.topic(workspace, kind): kind for kind in INPUTS}
        self._names = {kind: name for name, kind in self._kinds.items()}
        self.positions: dict[Position, int] = {}
        """By topic kind and partition, the next offset to read; past markers."""
        self._consumer = (ports.inputs or ports.consumer)(
            {
                "bootstrap.servers": servers,
                # required by the client; no group is joined and nothing is committed with it
                "group.id": topics.group(workspace, "join") + ".reader",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                # an offset that is not there any more must be seen, not skipped
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 100,
                "fetch.error.backoff.ms": 100,
                "fetch.message.max.bytes": 4 * 1024 * 1024,
                "receive.message.max.bytes": 4 * MAX_MESSAGE_BYTES,
                "queued.max.messages.kbytes": 32 * 1024,
                "reconnect.backoff.max.ms": 1_000,
                "log_level": 0,
            }
        )

    def assign(self, positions: Mapping[Position, int]) -> None:
        """Read these partitions from these offsets and no others."""
        self.positions = dict(positions)
        self._consumer.assign([TopicPartition(self._names[kind], p, at) for (kind, p), at in positions.items()])

    def poll(self, limit: int, timeout_s: float) -> list[Arrival]:
        """Up to `limit` records; waits `timeout_s` for them. Raises InputFailed."""
        if not self.positions:
            return []
        out: list[Arrival] = []
        for message in self._consumer.consume(limit, timeout_s):
            error = message.error()
            kind = self._kinds.get(message.topic() or "")
            where = (kind, message.partition() or 0) if kind is not None else None
            if error is None:
                if where is not None and where in self.positions:
                    self.positions[where] = (message.offset() or 0) + 1
                    out.append(_arrival(where, message))
            elif error.code() == KafkaError._PARTITION_EOF:
                if where is not None and where in self.positions:
                    self.positions[where] = max(self.positions[where], message.offset() or 0)
            elif not passes(error):
                raise InputFailed(f"reading {message.topic()}[{message.partition()}]: {error.str()}")
        return out

    def close(self) -> None:
        """Let go of the connection."""
        self._consumer.close()


def passes(error: KafkaError) -> bool:
    """Whether the client reports an outage, which it mends by itself once the broker is back."""
    return bool(error.retriable()) or error.code() in (
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        KafkaError._RESOLVE,
    )


def _arrival(where: Position, message: Message) -> Arrival:
    headers: Any = list(message.headers() or ())
    return Arrival(
        where[0],
        where[1],
        message.offset() or 0,
        message.timestamp()[1],
        message.key(),
        message.value(),
        headers,
    )
