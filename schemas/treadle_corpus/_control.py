"""What a corpus knows beside its rows. It is in each frame of the journal, so offsets and rows can never disagree."""

from __future__ import annotations

import msgspec

from treadle_corpus.policy import Policy

__all__ = ["Control"]


class Control(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state of a corpus beside its rows."""

    workspace: str
    workspace_created_at: str
    """Tells a workspace from a later one of the same name, whose offsets mean other records."""
    offsets: dict[str, int] = {}
    """Next offset of `.graded` by partition."""
    finished_offsets: dict[str, int] = {}
    """`offsets` when a run last finished, with or without a new version."""
    watermark_ms: int = 0
    metric_kinds: dict[str, list[str]] = {}
    """Kinds of value (bool, number, text) seen by metric, among all revisions folded."""
    version: int = 0
    """Newest finished version."""
    policy: Policy | None = None
    """Policy of the newest run that finished."""
    selector: str = ""
    """Identity of the filter that made the decisions stored with the rows."""
    rows_at_version: int = 0
    """Rows seen, selected or not, when `version` was finished."""
