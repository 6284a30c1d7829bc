"""What every part of the log shares: records, and Kafka's errors in treadle's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException

from treadle.errors import LogError, LogUnreachable, TopicMissing

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""Same as the broker's and the topics' limit: an event of 8 MiB and the graded row around it fit."""

_HINT = "Does the workspace exist? `treadle workspace list` shows them"

Partition = tuple[str, int]
"""(topic, partition number)."""


class Record(NamedTuple):
    """One record. `timestamp_ms` is the broker's append time on treadle's topics."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | str | None]]


def is_outage(error: KafkaError) -> bool:
    """Whether the client reports a lost connection, which it mends by itself once the broker is back."""
    return bool(error.retriable()) or error.code() in (
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        KafkaError._RESOLVE,
    )


def missing_topics(names: Sequence[str]) -> str:
    """The message for topics that do not exist."""
    return f"{', '.join(names)}: no such topic. {_HINT}"


def translate(err: KafkaException, what: str) -> LogError:
    """The error of the tree in treadle.errors for what confluent-kafka raised while doing `what`."""
    error = err.args[0]
    code = error.code()
    text = f"{what}: {error.str()}"
    if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
        return TopicMissing(f"{text}. {_HINT}")
    if code in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE):
        return LogUnreachable(f"{text}. Is Kafka running? `treadle status` shows what treadle knows")
    return LogError(text, retriable=bool(error.retriable()))
