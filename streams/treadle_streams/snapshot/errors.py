"""The errors of snapshots, beside those of corpora, filters and the log.

TreadleError (treadle_schemas.errors)
└── SnapshotError
    ├── JoinBehind       the join did not get past the present ends in time; names the partition (retriable, exit code 5)
    ├── RegradeBehind    kept rows were not graded by changed settings in time; names the partition (retriable, exit code 5)
    ├── PolicyExists     a stored policy of that name is there already (exit code 2)
    ├── PolicyMissing    no policy of that name is stored; names the nearest one (exit code 2)
    ├── TargetTaken      another stored policy writes the corpus there (exit code 2)
    ├── LogMismatch      `.graded` does not go with the corpus: it is shorter than what the corpus folded, or its rest is gone
    └── ReplayError      a version cannot be made again from the log
        ├── LogGone                records of `.graded` below the version's offsets are gone; names topic, partition and offsets
        ├── WorkspaceReplaced      the workspace was created anew: its log is another one
        ├── PolicyNotReproducible  the policy cannot decide today as it did then
        └── VersionDiffers         the log gives another version; names what differs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from treadle_corpus import Diff
from treadle_schemas.errors import TreadleError

__all__ = [
    "JoinBehind",
    "LogGone",
    "LogMismatch",
    "PolicyExists",
    "PolicyMissing",
    "PolicyNotReproducible",
    "RegradeBehind",
    "ReplayError",
    "SnapshotError",
    "TargetTaken",
    "VersionDiffers",
    "WorkspaceReplaced",
]

_NAMED = 5
"""Rows that a message names."""


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


class ReplayError(SnapshotError):
    """A version cannot be made again from the log. `facts` are for programs."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts

    def to_json(self) -> dict[str, Any]:
        """For `--json`: the class, the message, and what it names."""
        return {"error": type(self).__name__, "message": str(self), **self.facts}


class LogGone(ReplayError):
    """Records of `.graded` that a version is made of are gone. `missing` are the first and the last of their offsets."""

    def __init__(
        self, path: Path, version: int, topic: str, partition: int, missing: tuple[int, int], why: str
    ) -> None:
        first, last = missing
        super().__init__(
            f"{path}@v{version} is made of {topic}[{partition}] below offset {last + 1}, and of that offsets {first} to {last} are "
            f"gone: {why}. So the log cannot prove it, or make it again; `treadle corpus verify` alone still checks what lies on disk",
            version=version,
            topic=topic,
            partition=partition,
            missing=[first, last],
        )
        self.topic = topic
        self.partition = partition
        self.missing = missing


class WorkspaceReplaced(ReplayError):
    """The workspace was created anew: offsets mean other records in its log."""

    def __init__(self, path: Path, workspace: str, made_for: str, present: str) -> None:
        super().__init__(
            f"{path} holds rows of the workspace {workspace!r} that was created at {made_for or '?'}; the present one was created at "
            f"{present or '?'} and has another log. What the corpus came from is gone with the workspace of then",
            workspace=workspace,
            created_at=made_for,
            present=present,
        )


class PolicyNotReproducible(ReplayError):
    """The policy of a version cannot decide today as it did when the version was made."""

    def __init__(self, path: Path, version: int, policy: object, why: str) -> None:
        super().__init__(
            f"{path}@v{version}: its policy ({policy}) does not decide today as it did when the version was made: {why}. Give the metrics "
            "of the workspace the types that they had then, or use the treadle that made the version",
            version=version,
            why=why,
        )


class VersionDiffers(ReplayError):
    """The log gives another version than the one that lies there. `differences`: field of the manifest -> (the version's, the log's)."""

    def __init__(self, path: Path, version: int, differences: Mapping[str, tuple[Any, Any]], rows: Diff | None) -> None:
        said = "; ".join(
            f"{name} is {told} in the version and {made} by the log" for name, (told, made) in differences.items()
        )
        named: list[str] = []
        if rows is not None:
            named += [f"only the log has {e}/{i}" for e, i in rows.added[:_NAMED]]
            named += [f"only the version has {e}/{i}" for e, i in rows.removed[:_NAMED]]
            named += [
                f"{c.episode_id}/{c.interaction_id} differs in {', '.join(c.changed)}" for c in rows.updated[:_NAMED]
            ]
        super().__init__(
            f"{path}@v{version} is not what the log gives: {said}" + (f". Rows: {'; '.join(named)}" if named else ""),
            version=version,
            differences={name: {"version": told, "log": made} for name, (told, made) in differences.items()},
            rows={
                "only_in_log": [] if rows is None else [list(key) for key in rows.added],
                "only_in_version": [] if rows is None else [list(key) for key in rows.removed],
                "differing": [] if rows is None else [[c.episode_id, c.interaction_id] for c in rows.updated],
            },
        )
        self.differences = dict(differences)
