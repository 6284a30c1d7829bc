"""Taking partitions over: the changelog is replayed to the end that was seen after the assignment, then META says where to read on.

The end is asked for read uncommitted, so it lies past everything that can still be committed. The replay reads committed and is done when
its position (which a PARTITION_EOF carries past markers and aborted batches) has reached that end. A transaction that an owner left open
when it died is waited for: it times out in five seconds.
"""

# The names below are confluent-kafka's documented public ones; its type information marks the re-exports as private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from confluent_kafka import KafkaError, Message, TopicPartition
from treadle.errors import LogError
from treadle_schemas import topics

from treadle_streams.join import INPUTS, Meta
from treadle_streams.worker._ports import AdminPort, ConsumerPort, Ports
from treadle_streams.worker._settings import WorkerSettings
from treadle_streams.worker._store import PartitionStore
from treadle_streams.worker.errors import StateLost

__all__ = ["Overtaken", "asked_until_there", "changelog_reader", "recover"]

_T = TypeVar("_T")

_RETRY_S: Final = 0.2
_PATIENCE_S: Final = 60.0
"""How long questions to the broker are repeated while it is away."""


class Overtaken(Exception):
    """The assignment changed while its state was being rebuilt. No error, so no part of the tree."""


def recover(
    settings: WorkerSettings,
    ports: Ports,
    admin: AdminPort,
    stores: Mapping[int, PartitionStore],
    current: Callable[[], bool],
) -> tuple[dict[int, Meta], set[int]]:
    """META of each partition, and the partitions whose group position is not what META says.

    `current` says whether the assignment still stands; it is asked often. Raises Overtaken, StateLost, LogError.
    """
    if not stores:
        return {}, set()
    _catch_up(settings, ports, admin, stores, current)
    try:
        return _checked(settings, ports, admin, stores, current)
    except StateLost:
        # a worker stopped in between may be seeing what a later owner did; that has its META below the end as it is now
        _catch_up(settings, ports, admin, stores, current)
        return _checked(settings, ports, admin, stores, current)


def _catch_up(
    settings: WorkerSettings,
    ports: Ports,
    admin: AdminPort,
    stores: Mapping[int, PartitionStore],
    current: Callable[[], bool],
) -> None:
    changelog = settings.changelog
    ends = asked_until_there(ports, current, lambda: admin.end_offsets((changelog, p) for p in stores))
    left = {}
    for partition, store in stores.items():
        end = ends[changelog, partition]
        if store.applied > end:
            store.clear()  # a changelog shorter than what was applied is another one
        if store.applied < end:
            left[partition] = end
    if left:
        _replay(settings, ports, {p: stores[p] for p in left}, left, current)


def _replay(
    settings: WorkerSettings,
    ports: Ports,
    stores: Mapping[int, PartitionStore],
    ends: Mapping[int, int],
    current: Callable[[], bool],
) -> None:
    consumer = changelog_reader(settings, ports)
    left = set(ends)
    try:
        consumer.assign([TopicPartition(settings.changelog, p, stores[p].applied) for p in left])
        while left:
            if not current():
                raise Overtaken
            by_partition: dict[int, list[Message]] = {}
            for message in consumer.consume(5_000, 0.05):
                error, partition = message.error(), message.partition() or 0
                if error is None:
                    by_partition.setdefault(partition, []).append(message)
                elif error.code() == KafkaError._PARTITION_EOF and (message.offset() or 0) >= ends[partition]:
                    left.discard(partition)
            for partition, messages in by_partition.items():
                stores[partition].replay(
                    [(m.key(), m.value()) for m in messages], messages[-1].offset() or 0, bulk=True
                )
    finally:
        consumer.close()
        for store in stores.values():
            store.flush()


def _with_records(
    settings: WorkerSettings, ports: Ports, topic: str, partitions: set[int], current: Callable[[], bool]
) -> set[int]:
    """Those of the partitions that hold a committed record. Their ends do not tell: aborted transactions and markers take offsets too."""
    if not partitions:
        return set()
    consumer = changelog_reader(settings, ports)
    found: set[int] = set()
    left = set(partitions)
    try:
        consumer.assign([TopicPartition(topic, p, 0) for p in left])
        while left:
            if not current():
                raise Overtaken
            for message in consumer.consume(100, 0.05):
                error, partition = message.error(), message.partition() or 0
                if error is None:
                    found.add(partition)
                if error is None or error.code() == KafkaError._PARTITION_EOF:
                    left.discard(partition)
    finally:
        consumer.close()
    return found


def changelog_reader(settings: WorkerSettings, ports: Ports, *, queued_kb: int = 64 * 1024) -> ConsumerPort:
    """Reads what is committed, says where partitions end, and fetches up to `queued_kb` ahead."""
    return ports.consumer(
        {
            "bootstrap.servers": settings.servers,
            "group.id": settings.group + ".reader",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 50,
            "fetch.error.backoff.ms": 50,
            "fetch.message.max.bytes": 4 * 1024 * 1024,
            "queued.max.messages.kbytes": queued_kb,
            "log_level": 0,
        }
    )


def _checked(
    settings: WorkerSettings,
    ports: Ports,
    admin: AdminPort,
    stores: Mapping[int, PartitionStore],
    current: Callable[[], bool],
) -> tuple[dict[int, Meta], set[int]]:
    names = {kind: topics.topic(settings.workspace, kind) for kind in INPUTS}
    graded = topics.topic(settings.workspace, "graded")
    inputs = [(name, p) for name in names.values() for p in stores]
    starts = asked_until_there(ports, current, lambda: admin.start_offsets(inputs))
    committed = asked_until_there(ports, current, lambda: admin.committed(settings.group, inputs))
    new = [p for p, store in stores.items() if store.meta() is None]
    written = asked_until_there(ports, current, lambda: admin.end_offsets((graded, p) for p in new)) if new else {}
    graded_before = _with_records(settings, ports, graded, {p for (_, p), end in written.items() if end > 0}, current)
    metas: dict[int, Meta] = {}
    behind: set[int] = set()
    for partition, store in stores.items():
        meta = store.meta()
        if meta is None:
            if any(committed[name, partition] > 0 for name in names.values()):
                raise StateLost(
                    settings.workspace, partition, f"group {settings.group} has positions, but there is no META"
                )
            if partition in graded_before:
                raise StateLost(settings.workspace, partition, f"{graded} has records, but there is no META")
            # a log whose start was cut off before anything was joined begins where it begins now
            meta = Meta(offsets={kind: at for kind, name in names.items() if (at := starts[name, partition]) > 0})
        else:
            for kind, name in names.items():
                position, start = meta.offsets.get(kind, 0), starts[name, partition]
                if position < start:
                    found = f"META stands at offset {position} of {name}, whose log begins at {start}"
                    raise StateLost(settings.workspace, partition, found)
                if committed[name, partition] != position:
                    behind.add(partition)
        metas[partition] = meta
    return metas, behind


def asked_until_there(ports: Ports, current: Callable[[], bool], question: Callable[[], _T]) -> _T:
    """The answer to a question about the log, which is repeated while the broker is away. Raises Overtaken, LogError."""
    deadline = ports.monotonic() + _PATIENCE_S
    while True:
        if not current():
            raise Overtaken
        try:
            return question()
        except LogError:
            # a broker that restarts answers with all sorts of things before it answers
            if ports.monotonic() > deadline:
                raise
        ports.sleep(_RETRY_S)
