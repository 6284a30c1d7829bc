"""Snapshots: from graded rows to the next version of a corpus, on demand and continuously."""

from treadle_streams.snapshot.errors import JoinBehind, LogMismatch, RegradeBehind, SnapshotError
from treadle_streams.snapshot.run import DEFAULT_WAIT_S, RunReport, Snapshotter, run_snapshot
from treadle_streams.snapshot.service import DEFAULT_EVERY_S, DEFAULT_MIN_NEW_ROWS, Trigger, serve

__all__ = [
    "DEFAULT_EVERY_S",
    "DEFAULT_MIN_NEW_ROWS",
    "DEFAULT_WAIT_S",
    "JoinBehind",
    "LogMismatch",
    "RegradeBehind",
    "RunReport",
    "SnapshotError",
    "Snapshotter",
    "Trigger",
    "run_snapshot",
    "serve",
]
