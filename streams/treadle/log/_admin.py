"""Topics, offsets and groups."""

# The names below are confluent-kafka's documented public ones; its type information marks the re-exports as private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Final, cast

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from treadle.errors import LogError, LogUnreachable, TopicMissing
from treadle.log._common import Partition, missing_topics, translate

# typed as optional in the library, though they are made on the first call
_LATEST = cast(OffsetSpec, OffsetSpec.latest())  # type: ignore[no-untyped-call]
_EARLIEST = cast(OffsetSpec, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

SETTLE_S: Final = 10.0
"""How long a question about offsets is repeated while leadership moves, as in the first seconds after a broker's restart."""
_LEADER_CHANGES: Final = (
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
)


class Admin:
    """Questions about topics, offsets and groups, and the creation of topics."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._servers = bootstrap_servers
        self._admin = self._client()

    def _client(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self._servers, "log_level": 0})

    def partitions(self, timeout_s: float = 10.0) -> dict[str, int]:
        """Partition count by topic. Raises LogUnreachable."""
        try:
            topics = self._admin.list_topics(timeout=timeout_s).topics
        except KafkaException as err:
            raise translate(err, f"asking {self._servers} for its topics") from err
        return {name: len(meta.partitions) for name, meta in topics.items()}

    def topic_id(self, name: str) -> str:
        """Which creation of a topic this is. Raises LogError where there is none."""
        try:
            described = self._admin.describe_topics(TopicCollection([name]), request_timeout=10)[name].result(15)
        except KafkaException as err:
            raise translate(err, f"asking for topic {name}") from err
        except FutureTimeout as err:
            raise LogUnreachable(f"asking {self._servers} for topic {name}: no answer in 15 s") from err
        return str(described.topic_id)

    def create(self, name: str, partitions: int, config: Mapping[str, str], replication: int = -1) -> bool:
        """Create a topic; False where it exists. `replication` -1 is the cluster's default. See `wait_usable`."""
        return bool(self.create_all({name: (partitions, config)}, replication))

    def create_all(self, topics: Mapping[str, tuple[int, Mapping[str, str]]], replication: int = -1) -> set[str]:
        """Create topics (name -> partitions, configuration) in one request; the names of those that did not exist before."""
        if not topics:
            return set()
        asked = [NewTopic(name, count, replication, config=dict(config)) for name, (count, config) in topics.items()]
        created = set()
        for name, future in self._admin.create_topics(asked).items():
            try:
                future.result(30)
                created.add(name)
            except KafkaException as err:
                if err.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise translate(err, f"creating topic {name}") from err
        return created

    def wait_usable(self, topics: Mapping[str, int], timeout_s: float = 30.0) -> None:
        """Wait until every partition of `topics` (name -> count) has a leader that answers. Raises LogUnreachable."""
        wanted = [(name, number) for name, count in topics.items() for number in range(count)]
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.end_offsets(wanted)
                return
            except LogError as err:
                # a topic that was made a moment ago is unknown to some broker, or has no leader yet
                if time.monotonic() > deadline:
                    raise LogUnreachable(
                        f"{', '.join(sorted(topics))}: not usable after {timeout_s:g} s: {err}"
                    ) from err
            time.sleep(0.05)

    def alter(self, name: str, config: Mapping[str, str]) -> None:
        """Set topic configurations, leaving the others."""
        entries = [ConfigEntry(k, v, incremental_operation=AlterConfigOpType.SET) for k, v in config.items()]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        try:
            self._admin.incremental_alter_configs([resource])[resource].result(30)
        except KafkaException as err:
            raise translate(err, f"configuring topic {name}") from err

    def config(self, name: str) -> dict[str, str | None]:
        """The configuration of a topic, defaults included."""
        resource = ConfigResource(ResourceType.TOPIC, name)
        try:
            entries = self._admin.describe_configs([resource])[resource].result(30)
        except KafkaException as err:
            raise translate(err, f"asking for the configuration of topic {name}") from err
        return {key: entry.value for key, entry in entries.items()}

    def delete(self, names: Sequence[str]) -> None:
        """Delete topics; those that are gone already are fine."""
        if not names:
            return
        for name, future in self._admin.delete_topics(list(names)).items():
            try:
                future.result(30)
            except KafkaException as err:
                if err.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise translate(err, f"deleting topic {name}") from err

    def delete_before(self, offsets: Mapping[Partition, int]) -> None:
        """Delete the records of partitions below an offset, for good. Raises LogError."""
        if not offsets:
            return
        asked = [TopicPartition(name, number, offset) for (name, number), offset in offsets.items()]
        for place, future in self._admin.delete_records(asked).items():
            try:
                future.result(30)
            except KafkaException as err:
                raise translate(err, f"deleting records of {place.topic}[{place.partition}]") from err

    def groups(self, prefix: str) -> dict[str, int]:
        """Member count by consumer group, of the groups whose name starts with `prefix`."""
        try:
            listed = self._admin.list_consumer_groups(request_timeout=10).result(15)
            if listed.errors:
                raise listed.errors[0]
            names = [g.group_id for g in listed.valid if g.group_id.startswith(prefix)]
            if not names:
                return {}
            described = self._admin.describe_consumer_groups(names, request_timeout=10)
            return {name: len(future.result(15).members) for name, future in described.items()}
        except KafkaException as err:
            raise translate(err, f"asking for the consumer groups {prefix}*") from err

    def delete_groups(self, groups: Sequence[str]) -> None:
        """Delete consumer groups; those that are gone already are fine."""
        if not groups:
            return
        for name, future in self._admin.delete_consumer_groups(list(groups)).items():
            try:
                future.result(30)
            except KafkaException as err:
                if err.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                    raise translate(err, f"deleting group {name}") from err

    def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The end of each partition, open transactions included (the high watermark)."""
        return self._offsets(partitions, _LATEST, IsolationLevel.READ_UNCOMMITTED)

    def stable_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """How far a read-committed reader can get now."""
        return self._offsets(partitions, _LATEST, IsolationLevel.READ_COMMITTED)

    def start_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The first offset still kept of each partition."""
        return self._offsets(partitions, _EARLIEST, IsolationLevel.READ_UNCOMMITTED)

    def offsets_at(self, partitions: Iterable[Partition], timestamp_ms: int) -> dict[Partition, int]:
        """The first offset appended at or after a time; where there is none, the end."""
        wanted = list(partitions)
        spec = cast(OffsetSpec, OffsetSpec.for_timestamp(timestamp_ms))
        found = self._offsets(wanted, spec, IsolationLevel.READ_UNCOMMITTED)
        missing = [tp for tp, offset in found.items() if offset < 0]
        return found | self.end_offsets(missing)

    def committed(self, group: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """A group's committed positions; -1001 or lower where it has none is given as 0."""
        # not through the admin client: librdkafka 2.16 crashes the process when a coordinator that is not ready yet answers
        # its OffsetFetch with an error (rd_kafka_cgrp_op on a client without a group). This consumer joins nothing.
        consumer = Consumer(
            {"bootstrap.servers": self._servers, "group.id": group, "enable.auto.commit": False, "log_level": 0}
        )
        try:
            found = consumer.committed([TopicPartition(t, p) for t, p in partitions], timeout=30)
            for tp in found:
                if tp.error is not None:
                    raise KafkaException(tp.error)
        except KafkaException as err:
            raise translate(err, f"asking for the offsets of group {group}") from err
        finally:
            consumer.close()
        return {(tp.topic, tp.partition): max(tp.offset, 0) for tp in found}

    def _offsets(
        self, partitions: Iterable[Partition], spec: OffsetSpec, isolation: IsolationLevel
    ) -> dict[Partition, int]:
        request = {TopicPartition(t, p): spec for t, p in partitions}
        if not request:
            return {}
        deadline = time.monotonic() + SETTLE_S
        while True:
            try:
                answers = self._admin.list_offsets(request, isolation_level=isolation, request_timeout=10)
                return {(tp.topic, tp.partition): f.result(15).offset for tp, f in answers.items()}
            except (KafkaException, FutureTimeout) as err:
                # a client that saw a broker before its restart keeps that leader epoch and is refused for good: the next
                # question goes through a new one
                self._admin = self._client()
                if isinstance(err, FutureTimeout):
                    raise LogUnreachable(f"asking {self._servers} for offsets: no answer in 15 s") from err
                error = translate(err, "asking for offsets")
                if isinstance(error, LogUnreachable):
                    raise error from err
                # the client's words for a topic that does not exist are "no leaders found"
                missing = sorted({tp.topic for tp in request} - self.partitions().keys())
                if missing:
                    raise TopicMissing(missing_topics(missing)) from err
                if err.args[0].code() not in _LEADER_CHANGES or time.monotonic() > deadline:
                    raise error from err
            time.sleep(0.1)
