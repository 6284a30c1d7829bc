"""Reading topics without a consumer group: once up to an end, or following the tail."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from treadle.errors import LogUnreachable
from treadle.log._admin import Admin
from treadle.log._common import Partition, Record, is_outage, translate
from treadle.log._opening import open_record


def read(
    bootstrap_servers: str,
    topic: str,
    partitions: int,
    *,
    start: Mapping[int, int] | None = None,
    until: Mapping[int, int] | None = None,
    timeout_s: float = 60.0,
    raw: bool = False,
) -> Iterator[Record]:
    """Every committed record of a topic from `start` up to but without `until`, in the order of offsets within a partition.

    Both are offsets by partition. `until` is by default the ends at the call; partitions that it does not name are not read. Where
    `start` says nothing, a partition begins at the first offset that is still kept.

    Sealed values come as the text that they seal, and those whose key was destroyed not at all; with `raw` all come as they lie there.
    Raises KeyUnavailable where the key store of this machine lacks a key.

    Ends when each partition's position (markers of transactions included) has reached its end. Raises LogUnreachable after
    `timeout_s` without a new record, for instance while the broker is away or a transaction below the end stays open.
    """
    admin = Admin(bootstrap_servers)
    numbers = range(partitions) if until is None else sorted(until)
    ends = (
        dict(until)
        if until is not None
        else {p: offset for (_, p), offset in admin.end_offsets((topic, p) for p in numbers).items()}
    )
    begin = dict(start or {})
    unknown = [(topic, p) for p in numbers if p not in begin and ends[p] > 0]
    begin |= {p: offset for (_, p), offset in admin.start_offsets(unknown).items()}
    left = {p for p in numbers if begin.get(p, 0) < ends[p]}
    if not left:
        return
    consumer = _consumer(bootstrap_servers)
    try:
        consumer.assign([TopicPartition(topic, p, begin[p]) for p in left])
        deadline = time.monotonic() + timeout_s
        while left:
            for msg in consumer.consume(1000, 0.2):
                err = msg.error()
                partition, offset = msg.partition() or 0, msg.offset() or 0
                if err is None:
                    deadline = time.monotonic() + timeout_s
                    if partition in left and offset < ends[partition]:
                        record = _record(msg)
                        opened = record if raw else open_record(record)
                        if opened is not None:
                            yield opened
                    if offset >= ends[partition] - 1:
                        left.discard(partition)
                elif err.code() == KafkaError._PARTITION_EOF:
                    # carries the position past markers and aborted batches; below the end a transaction is still open
                    if offset >= ends[partition]:
                        left.discard(partition)
                elif not is_outage(err):
                    raise translate(KafkaException(err), f"reading {topic}[{partition}]")
            if left and time.monotonic() > deadline:
                raise LogUnreachable(f"{topic}{sorted(left)}: no progress in {timeout_s:g} s before offset {ends}")
    finally:
        consumer.close()


class TailReader:
    """Follows topics from given positions, read committed, without a consumer group. Survives an absent broker.

    Sealed values come as by `read`. `positions` are the next offsets, past markers of transactions too; `at_end` says who has nothing
    more to read now.
    """

    def __init__(self, bootstrap_servers: str, positions: Mapping[Partition, int]) -> None:
        self._consumer = _consumer(bootstrap_servers)
        self.positions = dict(positions)
        self._consumer.assign([TopicPartition(t, p, o) for (t, p), o in positions.items()])
        self.at_end: set[Partition] = set()
        self.heard: set[Partition] = set()

    @property
    def ready(self) -> bool:
        """Whether Kafka has answered for each partition since the reader was made: with a record, or with the end."""
        return self.heard.issuperset(self.positions)

    def poll(self, timeout_s: float, limit: int = 1000) -> list[Record]:
        """Up to `limit` records; returns as soon as it has some, at the latest after `timeout_s` (an empty list).

        Raises LogError for what waiting does not mend, for example a topic that is gone.
        """
        out: list[Record] = []
        deadline = time.monotonic() + timeout_s
        while True:
            # in short pieces: the client itself would wait the whole time for `limit` records
            left_s = max(0.0, deadline - time.monotonic())
            for msg in self._consumer.consume(limit - len(out), min(left_s, 0.05)):
                self._take(msg, out)
            if out or left_s == 0.0:
                return out

    def close(self) -> None:
        """Let go of the connection."""
        self._consumer.close()

    def _take(self, msg: Message, out: list[Record]) -> None:
        err = msg.error()
        if err is None:
            record = _record(msg)
            opened = open_record(record)
            if opened is not None:
                out.append(opened)
            self.positions[(record.topic, record.partition)] = record.offset + 1
            self.heard.add((record.topic, record.partition))
            self.at_end.discard((record.topic, record.partition))
        elif err.code() == KafkaError._PARTITION_EOF:
            where = (msg.topic() or "", msg.partition() or 0)
            self.positions[where] = max(self.positions.get(where, 0), msg.offset() or 0)
            self.at_end.add(where)
            self.heard.add(where)
        elif not is_outage(err):
            raise translate(KafkaException(err), f"reading {msg.topic()}[{msg.partition()}]")


def reading_settings(bootstrap_servers: str) -> dict[str, Any]:
    """Settings of every plain consumer: read committed, nothing committed by itself, no position made up."""
    return {
        "bootstrap.servers": bootstrap_servers,
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "auto.offset.reset": "error",
        "fetch.wait.max.ms": 100,
        "fetch.message.max.bytes": 4 * 1024 * 1024,
        "receive.message.max.bytes": 100_000_000,
        "queued.max.messages.kbytes": 65_536,
        "reconnect.backoff.max.ms": 2_000,
        "log_level": 0,
    }


def _consumer(bootstrap_servers: str) -> Consumer:
    # a group's name is required by the client; nothing is committed and no group is joined
    return Consumer({**reading_settings(bootstrap_servers), "group.id": "treadle-reader"})


def _record(msg: Message) -> Record:
    return Record(
        msg.topic() or "",
        msg.partition() or 0,
        msg.offset() or 0,
        msg.timestamp()[1],
        msg.key(),
        msg.value(),
        list(msg.headers() or ()),  # type: ignore[arg-type]
    )
