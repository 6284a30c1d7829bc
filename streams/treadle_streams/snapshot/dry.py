"""A dry run: how many rows a policy would let into a version now, and why not the others. Nothing is written, here or on Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from treadle.log import Admin
from treadle_corpus import Policy, Preview, Tally, erased_episodes

from treadle_streams import filter as filters
from treadle_streams import workspaces
from treadle_streams.archive.history import History
from treadle_streams.snapshot._counts import counts_json
from treadle_streams.snapshot._graded import BATCH_RECORDS, batches, decoded, episode_of, graded_ends
from treadle_streams.snapshot._pending import PendingRows
from treadle_streams.snapshot._rounds import wait_for_join, wait_regraded
from treadle_streams.snapshot._selector import PolicySelector
from treadle_streams.snapshot.run import DEFAULT_WAIT_S, Tell

__all__ = ["DryRun", "dry_run"]

WHY: Final = {
    "rejected": "the filter is false",
    "unknown": "the filter knows nothing, since a metric that it needs is",
    "incomplete": "a required metric is not observed",
    "leak": "a train row equal or near to a held-out row",
    "split_moved": "settled on both sides of the split",
    "duplicate": "equal to a better row",
    "near_duplicate": "near to a better row",
    "rights": "a use that it would be put to is denied",
    "expired": "older than the policy keeps",
    "redacted": "redaction left a tombstone",
    "erased": "a part of it was erased",
}
"""What keeps a settled row out, by the reason's name in the manifest."""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run would find. Counts are rows."""

    policy: Policy
    tally: Tally
    """Where each row would stand; `members` would be in the version."""
    split: dict[str, int]
    """Members by side: train, heldout."""
    pending: int
    """Rows that have not settled."""
    refused: int
    """Records of `.graded` that no corpus can take."""
    settled_through_ms: int
    """Newest timestamp on `.graded`; 0 where nothing is there."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "dry_run": True,
            "rows": self.tally.members,
            "split": self.split,
            **counts_json(self.tally, self.pending, self.refused, self.settled_through_ms),
        }

    def lines(self) -> Iterator[str]:
        """For people: the rows that would pass, then each reason that keeps rows out."""
        tally, split = self.tally, self.split
        settled = tally.members + sum(tally.dropped.values())
        yield f"dry run, nothing was written: {self.policy}"
        yield (
            f"{tally.members:,} of {settled:,} settled rows would be in the version "
            f"(train {split['train']:,}, held-out {split['heldout']:,})"
        )
        for reason, count in tally.dropped.items():
            if count:
                more = ", ".join(f"{why} {n:,}" for why, n in tally.unknown.items() if n) if reason == "unknown" else ""
                yield f"  {reason:<15} {count:>9,}  {WHY[reason]}{' ' if more else ''}{more}"
        if self.pending:
            yield f"  {'pending':<15} {self.pending:>9,}  not settled yet; they wait for a later version"
        if self.refused:
            yield f"  {'dead letters':<15} {self.refused:>9,}  records that no corpus can take"


def dry_run(
    servers: str,
    workspace: str,
    corpus: Path,
    policy: Policy,
    *,
    wait_s: float = DEFAULT_WAIT_S,
    tell: Tell | None = None,
) -> DryRun:
    """What `run_snapshot` would find now. `.graded` is read from its beginning, into memory; `corpus` lends its cache, where there is one.

    Raises WorkspaceMissing, JoinBehind (exit code 5), RegradeBehind, LogMismatch, FilterError, SettingError, LogError.
    """
    if policy.filter is not None:
        filters.check_syntax(policy.filter)
    settings = workspaces.get(servers, workspace)
    admin = Admin(servers)
    began = time.monotonic()
    wait_for_join(admin, settings, wait_s, tell)
    pending = PendingRows(servers, settings, corpus / "progress.json", remember=False)
    wait_regraded(admin, settings, pending, began, wait_s, tell)
    history = History(servers, settings)
    ends = graded_ends(admin, settings, {}, "a dry run", history)
    erased = erased_episodes(corpus)
    preview = Preview(policy)
    refused = 0
    for batch, offsets in batches(history, {}, ends, BATCH_RECORDS):
        found = decoded(batch)
        values = [value for value in found.values if not erased(episode_of(value))]
        refused += len(found.bad) + len(preview.apply(values, max(r.timestamp_ms for r in batch)))
        if tell is not None:
            tell(f"read {sum(offsets.values())} of {sum(ends.values())} offsets of .graded")
    selector = PolicySelector(policy, filters.metric_types(settings, preview.metric_kinds), preview.watermark_ms)
    tally, split = preview.finish(selector)
    return DryRun(
        policy=policy,
        tally=tally,
        split=split,
        pending=pending.count(preview.settled, preview.unsettled()),
        refused=refused,
        settled_through_ms=preview.watermark_ms,
    )
