"""What a version says of itself."""

from __future__ import annotations

from typing import TypedDict

import msgspec

from treadle_corpus.policy import Policy

__all__ = ["Manifest", "StateCounts"]


class StateCounts(TypedDict):
    """How many rows of a version have a metric observed, absent (or never seen), or still pending."""

    observed: int
    absent: int
    pending: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of one version, stored inside it."""

    version: int
    workspace: str
    rows: int
    """Members: what `rows("all")` yields."""
    split: dict[str, int]
    """Members by side: train, heldout."""
    added: int
    """Members that the version before did not have."""
    updated: int
    """Members whose content changed since."""
    removed: int
    """Members of the version before that are in this one no more."""
    new_rows: int
    """Rows that settled for the first time since the version before, selected or not."""
    dropped: dict[str, int]
    """Rows that are in the corpus but not in the version, by reason: rejected, unknown, incomplete (a required metric is not observed),
    leak, split_moved, duplicate, near_duplicate, rights (its side of the split is denied, or a use that the policy asks for), expired (by
    the policy's retention), redacted (only a tombstone was recorded), erased (a part of it was)."""
    unknown: dict[str, int]
    """Why the filter knew nothing of `dropped["unknown"]` rows: a metric was pending, or absent."""
    pending: int
    """Rows that had not settled when the run ended. They wait for a later version."""
    completeness: dict[str, StateCounts]
    """By metric, over the members."""
    pass_at_all: dict[str, float | None]
    """pass^1 to pass^4 over tasks, see `pass_hat`; null where no task has as many graded attempts."""
    content_hash: str
    """See `treadle_corpus.hashing`."""
    offsets: dict[str, int]
    """Next offset of `.graded` by partition: the version is the exact fold of everything below."""
    watermark_ms: int
    """Newest timestamp on `.graded` below the offsets; what `now` means in the filter."""
    last_append_ms: int | None
    """Append time of the newest member's interaction."""
    policy: Policy
    code_version: str
    created_at: str
