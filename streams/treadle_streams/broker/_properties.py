"""What the broker is told: one table of Kafka properties, written as a file or as container variables."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from pathlib import Path

KAFKA_VERSION = "4.3.1"
"""Pinned: 4.4.0 is listed on Maven Central but does not resolve."""

IMAGE = f"apache/kafka:{KAFKA_VERSION}"
CONTAINER_DATA = "/var/lib/kafka/data"
HEAP = "256m"
"""Java heap; a broker takes about 200 MB of memory in all."""
MESSAGE_MAX_BYTES = 16 * 1024 * 1024
SESSION_TIMEOUT_MS = 3_000

_NODE_ID = 1

_COMMON: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": str(_NODE_ID),
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    # One node: every internal topic has one replica.
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # Fewer partitions of internal topics: each costs files, and start time.
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.num.partitions": "8",
    "share.coordinator.state.topic.num.partitions": "2",
    "num.partitions": "8",
    # Topics are created by treadle with the settings they need; a typing error must not make one.
    "auto.create.topics.enable": "false",
    "message.max.bytes": str(MESSAGE_MAX_BYTES),
    "replica.fetch.max.bytes": str(MESSAGE_MAX_BYTES),
    # Kafka's defaults drop records and group offsets after 7 days: never by default here.
    "log.retention.ms": "-1",
    "offsets.retention.minutes": "525600",
    # The join's sessions are 6 s and its transactions 5 s: allow short ones, and look for dead ones each second.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # 128 MB of heap by default; with the rest of these a broker takes 200 MB instead of 330.
    "log.cleaner.dedupe.buffer.size": "4194304",
    "log.cleaner.io.buffer.size": "65536",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "num.recovery.threads.per.data.dir": "1",
    # After kill -9 the old registration must time out before the node may register again.
    "broker.session.timeout.ms": str(SESSION_TIMEOUT_MS),
    "broker.heartbeat.interval.ms": "500",
}


def local_properties(
    *, data: Path, port: int, controller_port: int, session_timeout_ms: int = SESSION_TIMEOUT_MS
) -> dict[str, str]:
    """The properties of a broker on this machine that listens on the loopback interface only."""
    return {
        **_COMMON,
        "controller.quorum.voters": f"{_NODE_ID}@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": str(data),
        "broker.session.timeout.ms": str(session_timeout_ms),
    }


def container_properties(*, host_port: int, inside: str = "localhost") -> dict[str, str]:
    """The properties of a broker in a container.

    ``inside`` is the container's name on its network: other containers reach ``inside:19092``, programs on the host
    ``127.0.0.1:host_port``, which the engine forwards to port 9092 in the container.
    """
    return {
        **_COMMON,
        "controller.quorum.voters": f"{_NODE_ID}@localhost:9093",
        "listeners": "PLAINTEXT://:19092,HOST://:9092,CONTROLLER://:9093",
        "advertised.listeners": f"PLAINTEXT://{inside}:19092,HOST://127.0.0.1:{host_port}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,HOST:PLAINTEXT",
        "log.dirs": CONTAINER_DATA,
    }


def container_environment(*, host_port: int, cluster_id: str, inside: str = "localhost") -> dict[str, str]:
    """All variables of a container of the official image."""
    return {
        **as_environment(container_properties(host_port=host_port, inside=inside)),
        "KAFKA_HEAP_OPTS": f"-Xmx{HEAP}",
        "CLUSTER_ID": cluster_id,
    }


def new_cluster_id() -> str:
    """A random id as Kafka makes them: base64 of a UUID, not beginning with a dash (it would look like an option)."""
    while True:
        made = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")
        if not made.startswith("-"):
            return made


def as_environment(properties: Mapping[str, str]) -> dict[str, str]:
    """The same properties as the official image takes them: ``log.dirs`` becomes ``KAFKA_LOG_DIRS``."""
    return {"KAFKA_" + key.upper().replace(".", "_"): value for key, value in properties.items()}


def as_file(properties: Mapping[str, str]) -> str:
    """The same properties as a Java properties file, pure ASCII, so that any path survives."""
    return "".join(f"{key}={_escape(value)}\n" for key, value in properties.items())


def _escape(value: str) -> str:
    """Escape a value: the file is read as Latin-1, a backslash escapes, a leading blank is dropped."""
    out: list[str] = []
    for position, char in enumerate(value):
        if char == "\\" or (position == 0 and char in " \t\f"):
            out.append("\\" + char)
        elif " " <= char <= "~":
            out.append(char)
        else:  # UTF-16 code units, as Java reads them
            units = char.encode("utf-16-be", "surrogatepass")
            out.extend(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
    return "".join(out)
