"""Snapshots: from graded rows to the next version of a corpus, on demand and continuously, by policies that a workspace stores."""

from treadle_streams.snapshot.dry import DryRun, dry_run
from treadle_streams.snapshot.errors import (
    JoinBehind,
    LogGone,
    LogMismatch,
    PolicyExists,
    PolicyMissing,
    PolicyNotReproducible,
    RegradeBehind,
    ReplayError,
    SnapshotError,
    TargetTaken,
    VersionDiffers,
    WorkspaceReplaced,
)
from treadle_streams.snapshot.policies import (
    delete_policy,
    find_policy,
    is_built_in,
    policies_of,
    selection,
    store_policy,
    target_of,
)
from treadle_streams.snapshot.replay import prove, rebuild
from treadle_streams.snapshot.run import DEFAULT_WAIT_S, RunReport, Snapshotter, run_snapshot
from treadle_streams.snapshot.service import DEFAULT_EVERY_S, DEFAULT_MIN_NEW_ROWS, Trigger, serve, serve_policies

__all__ = [
    "DEFAULT_EVERY_S",
    "DEFAULT_MIN_NEW_ROWS",
    "DEFAULT_WAIT_S",
    "DryRun",
    "JoinBehind",
    "LogGone",
    "LogMismatch",
    "PolicyExists",
    "PolicyMissing",
    "PolicyNotReproducible",
    "RegradeBehind",
    "ReplayError",
    "RunReport",
    "SnapshotError",
    "Snapshotter",
    "TargetTaken",
    "Trigger",
    "VersionDiffers",
    "WorkspaceReplaced",
    "delete_policy",
    "dry_run",
    "find_policy",
    "is_built_in",
    "policies_of",
    "prove",
    "rebuild",
    "run_snapshot",
    "selection",
    "serve",
    "serve_policies",
    "store_policy",
    "target_of",
]
