"""The topics of a workspace: how many partitions, and how long they keep what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from treadle.log import MAX_MESSAGE_BYTES
from treadle_schemas.topics import CONTROL, DATA_TOPICS, KINDS, topic
from treadle_schemas.workspace import WorkspaceSettings

INPUT_RETENTION_MS: Final = 180 * 86_400_000
"""Inputs are kept at least so long, and twice as long as the join's state, so that lost state can be rebuilt."""

_INPUTS = ("interactions", "outcomes", "references")
_COMPACTED = {"cleanup.policy": "compact"}
# the broker's append time is what windows are made of; a producer's clock settles nothing
_APPEND_TIME = {"message.timestamp.type": "LogAppendTime"}
_FOR_GOOD = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}


def topic_plan(settings: WorkspaceSettings) -> dict[str, tuple[int, Mapping[str, str]]]:
    """Every topic of the workspace by name: partitions and configuration. Replication is the cluster's default."""
    return {
        topic(settings.workspace, kind): (settings.partitions if kind in DATA_TOPICS else 1, _config(kind, settings))
        for kind in KINDS
    }


def control_plan() -> dict[str, tuple[int, Mapping[str, str]]]:
    """The operators' topic."""
    return {CONTROL: (1, _COMPACTED)}


def _config(kind: str, settings: WorkspaceSettings) -> dict[str, str]:
    large = {"max.message.bytes": str(MAX_MESSAGE_BYTES)}
    if kind == "settings":
        return _COMPACTED | large
    if kind in _INPUTS:
        keep_ms = max(INPUT_RETENTION_MS, int(2_000 * settings.retention_s))
        return large | _APPEND_TIME | {"cleanup.policy": "delete", "retention.ms": str(keep_ms)}
    if kind == "progress":
        return large | _APPEND_TIME | _FOR_GOOD
    return large | _FOR_GOOD
