"""Names of topics, consumer groups and transactional ids. Everything of a workspace starts with `treadle.<workspace>.`."""

from __future__ import annotations

from treadle_schemas.ids import check_workspace

__all__ = ["CONTROL", "DATA_TOPICS", "KINDS", "group", "prefix", "topic"]

CONTROL = "treadle.workspaces"
"""The operators' compacted topic: one record a workspace, a tombstone when it is deleted."""

DATA_TOPICS = ("interactions", "outcomes", "references", "progress", "graded", "dead-letter")
"""Co-partitioned topics: same partition count, murmur2 partitioner, key = episode_id."""

KINDS = (*DATA_TOPICS, "snapshots", "releases", "settings")
"""Every topic kind of a workspace. `snapshots`, `releases` and `settings` have one partition."""


def prefix(workspace: str) -> str:
    """`treadle.<workspace>.`, the one prefix that an access rule needs. Raises FieldError for no workspace name."""
    return f"treadle.{check_workspace(workspace)}."


def topic(workspace: str, kind: str) -> str:
    """The topic of `kind` (one of KINDS) in a workspace."""
    if kind not in KINDS:
        raise ValueError(f"no topic kind {kind!r}; expected one of {', '.join(KINDS)}")
    return prefix(workspace) + kind


def group(workspace: str, role: str) -> str:
    """The consumer group of a role, for example `join` or `snapshot`."""
    return prefix(workspace) + role
