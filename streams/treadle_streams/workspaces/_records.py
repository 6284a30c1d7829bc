"""The settings record of a workspace and the operators' record about it, and writing both as one.

Writers of one workspace share a transactional id: Kafka lets only the newest of them commit, so a change that was decided on what it read
is never made on top of somebody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import KafkaException, Producer
from treadle.errors import LogError, TopicMissing
from treadle.log import Record, producer_settings, read
from treadle_schemas.canonical import loads
from treadle_schemas.codec import SETTINGS, WORKSPACE, encode, make_headers, to_json
from treadle_schemas.errors import ContractError
from treadle_schemas.topics import CONTROL, prefix, topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.errors import WorkspaceDamaged, WorkspaceExists

_SOURCE = "treadle/workspaces"
_SETTINGS_KEY = b"settings"
_TIMEOUT_S = 30.0


class Write(NamedTuple):
    """One record to be written; a value of None is a tombstone."""

    topic: str
    key: bytes
    value: bytes | None
    type: str


def settings_write(settings: WorkspaceSettings) -> Write:
    """The record that makes the workspace exist."""
    return Write(topic(settings.workspace, "settings"), _SETTINGS_KEY, encode(to_json(settings)), SETTINGS)


def control_write(settings: WorkspaceSettings) -> Write:
    """The operators' record of the workspace."""
    value = {
        "workspace": settings.workspace,
        "partitions": settings.partitions,
        "created_at": settings.created_at,
    }
    return Write(CONTROL, settings.workspace.encode(), encode(value), WORKSPACE)


def control_tombstone(workspace: str) -> Write:
    """The end of the operators' record of the workspace."""
    return Write(CONTROL, workspace.encode(), None, WORKSPACE)


def read_settings(servers: str, workspace: str) -> WorkspaceSettings | None:
    """The settings of a workspace whose settings topic exists; None while it holds no record. Raises WorkspaceDamaged."""
    name = topic(workspace, "settings")
    last: Record | None = None
    for record in read(servers, name, 1, timeout_s=_TIMEOUT_S):
        last = record
    if last is None or last.value is None:
        return None
    try:
        return msgspec.convert(loads(last.value), WorkspaceSettings)
    except (ContractError, msgspec.ValidationError) as err:
        raise WorkspaceDamaged(workspace, f"its settings record {name}[0]@{last.offset} cannot be read: {err}") from err


def read_control(servers: str) -> dict[str, dict[str, Any]]:
    """The operators' records by workspace."""
    known: dict[str, dict[str, Any]] = {}
    try:
        for record in read(servers, CONTROL, 1, timeout_s=_TIMEOUT_S):
            name = (record.key or b"").decode(errors="replace")
            if record.value is None:
                known.pop(name, None)
            else:
                known[name] = loads(record.value, f"{CONTROL}[0]@{record.offset}")
    except TopicMissing:
        return {}
    return known


def write_once(servers: str, workspace: str, decide: Callable[[], Iterable[Write]]) -> None:
    """Write what `decide` gives, all or nothing. `decide` runs when every earlier writer has ended or can no longer commit.

    Raises WorkspaceExists when a later writer came in between, LogError for the rest.
    """
    producer = Producer(
        {
            **producer_settings(servers),
            "transactional.id": prefix(workspace) + "settings",
            "transaction.timeout.ms": int(_TIMEOUT_S * 1000),
        }
    )
    try:
        producer.init_transactions(_TIMEOUT_S)
        writes = list(decide())
        if not writes:
            return
        producer.begin_transaction()
        for write in writes:
            headers = make_headers(write.type, workspace, source=_SOURCE)
            producer.produce(write.topic, write.value, write.key, headers=list(headers))
        producer.commit_transaction(_TIMEOUT_S)
    except KafkaException as err:
        error = err.args[0]
        if error.fatal():
            raise WorkspaceExists(workspace, "another process is creating or changing it just now") from err
        raise LogError(
            f"writing the settings of workspace {workspace}: {error.str()}", retriable=error.retriable()
        ) from err
