"""The errors of the streams side that are not the broker's or the join's (those packages have trees of their own).

TreadleError (treadle_schemas.errors)
└── StreamsError
    ├── WorkspaceError
    │   ├── WorkspaceMissing    no such workspace on this Kafka; knows the nearest name
    │   ├── WorkspaceExists     it is there already, or another process created it just now
    │   ├── WorkspaceDamaged    its topics or its settings record are not what treadle made
    │   └── WorkspaceInUse      it cannot be deleted while consumers are running
    └── ImportInterrupted       an import could not go on; it can be repeated as it is
"""

from __future__ import annotations

from treadle_schemas.errors import TreadleError

__all__ = [
    "ImportInterrupted",
    "StreamsError",
    "WorkspaceDamaged",
    "WorkspaceError",
    "WorkspaceExists",
    "WorkspaceInUse",
    "WorkspaceMissing",
]


class StreamsError(TreadleError):
    """Base of the streams side's errors."""


class WorkspaceError(StreamsError):
    """Something about a workspace. `workspace` is its name."""

    def __init__(self, workspace: str, message: str) -> None:
        super().__init__(f"workspace {workspace}: {message}")
        self.workspace = workspace


class WorkspaceMissing(WorkspaceError):
    """No such workspace on this Kafka. `suggestion` is the nearest known name, if any."""

    def __init__(self, workspace: str, servers: str, suggestion: str | None = None) -> None:
        hint = f" Did you mean {suggestion}?" if suggestion else ""
        super().__init__(
            workspace, f"does not exist on {servers}.{hint} Create it with `treadle workspace create {workspace}`"
        )
        self.suggestion = suggestion


class WorkspaceExists(WorkspaceError):
    """It is there already, or another process created it just now."""


class WorkspaceDamaged(WorkspaceError):
    """Its topics or its settings record are not what treadle made."""


class WorkspaceInUse(WorkspaceError):
    """It cannot be deleted while consumers are running."""

    retriable = True


class ImportInterrupted(StreamsError):
    """An import could not go on. Nothing needs undoing: repeat it as it is, what arrived already changes nothing."""

    retriable = True
