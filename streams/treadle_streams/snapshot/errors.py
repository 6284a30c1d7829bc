"""The errors of snapshots, beside those of corpora, filters and the log.

TreadleError (treadle_schemas.errors)
└── SnapshotError
    ├── JoinBehind       the join did not get past the present ends in time; names the partition (retriable, exit code 5)
    ├── RegradeBehind    kept rows were not graded by changed settings in time; names the partition (retriable, exit code 5)
    └── LogMismatch      `.graded` does not go with the corpus: it is shorter than what the corpus folded, or its rest is gone
"""

from __future__ import annotations

from treadle_schemas.errors import TreadleError

__all__ = ["JoinBehind", "LogMismatch", "RegradeBehind", "SnapshotError"]


class SnapshotError(TreadleError):
    """Base of the snapshot errors."""


class JoinBehind(SnapshotError):
    """The join did not get past the present ends in time."""

    retriable = True
    exit_code = 5

    def __init__(self, workspace: str, topic: str, partition: int, position: int, end: int, waited_s: float) -> None:
        super().__init__(
            f"{topic}[{partition}]: the join stands at offset {position} of {end} after {waited_s:g} s. Is "
            f"`treadle worker --workspace {workspace}` running? `treadle status` shows it; --wait waits longer"
        )
        self.topic = topic
        self.partition = partition


class RegradeBehind(SnapshotError):
    """Kept rows were not graded by changed settings in time."""

    retriable = True
    exit_code = 5

    def __init__(self, workspace: str, version: int, partition: int, waited_s: float) -> None:
        super().__init__(
            f"partition {partition} of {workspace}: its rows are not yet graded by grading version {version} after {waited_s:g} s. Is "
            f"`treadle worker --workspace {workspace}` running? `treadle status` shows it; --wait waits longer"
        )
        self.partition = partition


class LogMismatch(SnapshotError):
    """`.graded` does not go with the corpus."""
