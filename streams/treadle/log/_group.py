"""Reading a topic as a named consumer: Kafka keeps its positions, and shares the partitions among the processes of that name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from treadle.errors import LogError
from treadle.log._admin import SETTLE_S
from treadle.log._common import Partition, translate
from treadle.log._reading import TailReader, reading_settings

__all__ = ["GroupReader", "begin_group"]

T = TypeVar("T")

SESSION_TIMEOUT_S: Final = 6
"""Partitions of a killed process are given to the others of its name after so long; the least that brokers accept by default."""
MAX_POLL_INTERVAL_S: Final = 900
"""A process that asks for nothing for so long loses its partitions to the others of its name."""
_TIMEOUT_S: Final = 30.0
_COORDINATOR_MOVES: Final = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)
_ELSEWHERE: Final = (
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_INSTANCE_ID,
)


def begin_group(
    bootstrap_servers: str, group: str, first: Mapping[Partition, int], *, anew: bool = False
) -> dict[Partition, int]:
    """The positions of a group, those of `first` written where it has none yet (`anew`: everywhere).

    Written at once, so that a group that begins at the end and is killed before its first commit does not begin at a later end.
    With `anew` raises LogError while the group has members: their own commits would win.
    """
    consumer = _consumer(bootstrap_servers, group)
    try:
        found = _settled(lambda: consumer.committed([TopicPartition(t, p) for t, p in first], timeout=_TIMEOUT_S))
        known = {(tp.topic, tp.partition): tp.offset for tp in found if tp.offset >= 0}
        missing = {tp: offset for tp, offset in first.items() if anew or tp not in known}
        if missing:
            offsets = [TopicPartition(t, p, o) for (t, p), o in missing.items()]
            try:
                _settled(lambda: consumer.commit(offsets=offsets, asynchronous=False))
            except KafkaException as err:
                # members are running, so they have begun; what they committed is theirs to move
                if anew or err.args[0].code() not in _ELSEWHERE:
                    raise
        return {**known, **missing}
    except KafkaException as err:
        raise translate(err, f"setting the positions of group {group}, which other processes may be using") from err
    finally:
        consumer.close()


def _settled(ask: Callable[[], T]) -> T:
    """The answer of the group's coordinator, asked again while that moves or starts."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            return ask()
        except KafkaException as err:
            if err.args[0].code() not in _COORDINATOR_MOVES or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


class GroupReader(TailReader):
    """A member of a consumer group that reads one topic. `positions` holds the partitions that are this process's now.

    Nothing is committed but by `commit`. Where partitions move, `moved` counts; a partition that comes begins at the group's position.
    """

    def __init__(self, bootstrap_servers: str, group: str, topic: str, first: Mapping[Partition, int]) -> None:
        self._consumer = _consumer(bootstrap_servers, group)
        self._group, self._first = group, dict(first)
        self.positions: dict[Partition, int] = {}
        self.at_end: set[Partition] = set()
        self.heard: set[Partition] = set()
        self._assigned = False
        self.moved = 0
        self._consumer.subscribe([topic], on_assign=self._got, on_revoke=self._gave, on_lost=self._gave)

    @property
    def ready(self) -> bool:
        """Whether the group has given this process its share, be it none, and Kafka has answered for each partition of it."""
        return self._assigned and super().ready

    def commit(self, positions: Mapping[Partition, int]) -> None:
        """Make `positions` those of the group. Raises LogError, which can be retried never: the partitions are another process's by now."""
        if not positions:
            return
        try:
            self._consumer.commit(
                offsets=[TopicPartition(t, p, o) for (t, p), o in positions.items()], asynchronous=False
            )
        except KafkaException as err:
            if err.args[0].code() in _ELSEWHERE:
                raise LogError(
                    f"group {self._group} has given partitions of this process to another one; what was read since the last commit "
                    "is read again there. Go on with the next values"
                ) from err
            raise translate(err, f"committing positions of group {self._group}") from err

    def _take(self, msg: Message, out: list[Any]) -> None:
        error = msg.error()
        # the client leaves the group and joins again by itself
        if error is None or error.code() != KafkaError._MAX_POLL_EXCEEDED:
            super()._take(msg, out)

    def _got(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        found = _settled(lambda: consumer.committed(partitions, timeout=_TIMEOUT_S))
        begin = {(tp.topic, tp.partition): tp.offset for tp in found}
        begin = {tp: offset if offset >= 0 else self._first[tp] for tp, offset in begin.items()}
        consumer.incremental_assign([TopicPartition(t, p, o) for (t, p), o in begin.items()])
        self.positions |= begin
        self._assigned = True
        self.moved += 1

    def _gave(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for tp in partitions:
            self.positions.pop((tp.topic, tp.partition), None)
            self.at_end.discard((tp.topic, tp.partition))
            self.heard.discard((tp.topic, tp.partition))
        consumer.incremental_unassign(partitions)
        self.moved += 1


def _consumer(bootstrap_servers: str, group: str) -> Consumer:
    return Consumer(
        {
            **reading_settings(bootstrap_servers),
            "group.id": group,
            "enable.auto.offset.store": False,
            # partitions that stay with a process are not read again when others come or go
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": SESSION_TIMEOUT_S * 1000,
            "heartbeat.interval.ms": 1_500,
            "max.poll.interval.ms": MAX_POLL_INTERVAL_S * 1000,
        }
    )
