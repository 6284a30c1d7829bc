"""What the lane asks of the world: a Kafka client, a clock, a mailbox, a write batch. A simulation brings its own.

The protocols name just what the lane, recovery, transactions and inputs call, so that the same code runs against either.
"""

# The names below are confluent-kafka's documented public ones; its type information marks the re-exports as private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from confluent_kafka import Consumer, Producer
from rocksdict import WriteBatch
from treadle.log import Admin, Partition
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import workspaces
from treadle_streams.worker._faults import Faults

__all__ = ["REAL", "AdminPort", "ConsumerPort", "MailPort", "Ports", "ProducerPort"]


class ProducerPort(Protocol):
    """A transactional producer, as `confluent_kafka.Producer`."""

    def init_transactions(self, timeout: float, /) -> Any: ...
    def begin_transaction(self) -> Any: ...
    def produce(self, topic: str, *args: Any, **kwargs: Any) -> Any: ...
    def poll(self, timeout: float, /) -> Any: ...
    def flush(self, timeout: float, /) -> int: ...
    def send_offsets_to_transaction(self, positions: list[Any], group_metadata: Any, timeout: float, /) -> Any: ...
    def commit_transaction(self, timeout: float, /) -> Any: ...
    def abort_transaction(self, timeout: float, /) -> Any: ...


class ConsumerPort(Protocol):
    """A consumer that is assigned, never subscribed, as `confluent_kafka.Consumer`."""

    def assign(self, partitions: list[Any], /) -> Any: ...
    def consume(self, num_messages: int, timeout: float, /) -> Sequence[Any]: ...
    def close(self) -> Any: ...


class AdminPort(Protocol):
    """Questions about offsets and topics, as `treadle.log.Admin`."""

    def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]: ...
    def start_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]: ...
    def committed(self, group: str, partitions: Iterable[Partition]) -> dict[Partition, int]: ...
    def topic_id(self, name: str) -> str: ...


class MailPort(Protocol):
    """How other threads reach the lane, as `queue.SimpleQueue`."""

    def put(self, item: Any, /) -> None: ...
    def get(self, block: bool = True, timeout: float | None = None) -> Any: ...
    def get_nowait(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Ports:
    """How each of them is made."""

    producer: Callable[[Mapping[str, Any]], ProducerPort]
    consumer: Callable[[Mapping[str, Any]], ConsumerPort]
    admin: Callable[[str], AdminPort]
    mail: Callable[[], MailPort]
    faults: Callable[[], Faults]
    write_batch: Callable[[], Any]
    """A RocksDB write batch in raw mode."""
    inputs: Callable[[Mapping[str, Any]], ConsumerPort] | None = None
    """The consumer of the inputs, where it is another one than for the changelog."""
    settings: Callable[[str, str], WorkspaceSettings] = workspaces.get
    """The present settings of a workspace, by servers and name."""
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


REAL = Ports(
    producer=lambda config: Producer(dict(config)),
    consumer=lambda config: Consumer(dict(config)),
    admin=Admin,
    mail=queue.SimpleQueue,
    faults=Faults,
    write_batch=lambda: WriteBatch(raw_mode=True),
)
