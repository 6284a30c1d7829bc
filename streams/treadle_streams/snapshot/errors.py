"""The errors of snapshots, beside those of corpora, filters and the log.

TreadleError (treadle_schemas.errors)
└── SnapshotError
    ├── JoinBehind       the join did not get past the present ends in time; names the partition (retriable, exit code 5)
    ├── RegradeBehind    kept rows were not graded by changed settings in time; names the partition (retriable, exit code 5)
    ├── PolicyExists     a stored policy of that name is there already (exit code 2)
    ├── PolicyMissing    no policy of that name is stored; names the nearest one (exit code 2)
    ├── TargetTaken      another stored policy writes the corpus there (exit code 2)
    └── LogMismatch      `.graded` does not go with the corpus: it is shorter than what the corpus folded, or its rest is gone
"""

from __future__ import annotations

from collections.abc import Sequence

from treadle_schemas.errors import TreadleError

__all__ = [
    "JoinBehind",
    "LogMismatch",
    "PolicyExists",
    "PolicyMissing",
    "RegradeBehind",
    "SnapshotError",
    "TargetTaken",
]


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


class PolicyExists(SnapshotError):
    """A stored policy of that name is there already."""

    exit_code = 2

    def __init__(self, workspace: str, name: str) -> None:
        super().__init__(
            f"workspace {workspace} has a policy {name!r} already; `treadle policy show {workspace} {name}` prints it, --replace "
            "changes it from its next version on"
        )
        self.name = name


class PolicyMissing(SnapshotError):
    """No policy of that name is stored."""

    exit_code = 2

    def __init__(
        self, workspace: str, name: str, near: str | None, known: Sequence[str], *, built_in: bool = False
    ) -> None:
        if built_in:
            problem = f"policy {name!r} is built in; store one of this name with --manual to have it run by hand only"
        else:
            problem = f"there is no policy {name!r}; " + (
                f"did you mean {near!r}?" if near else f"there are {', '.join(known)}"
            )
        super().__init__(f"workspace {workspace}: {problem}")
        self.name = name


class TargetTaken(SnapshotError):
    """Another stored policy writes the corpus there."""

    exit_code = 2

    def __init__(self, workspace: str, name: str, other: str, target: str) -> None:
        super().__init__(
            f"workspace {workspace}: {target} is the corpus of policy {other!r}; give {name!r} another --to"
        )
        self.target = target
