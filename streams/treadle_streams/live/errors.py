"""The errors of the live index.

TreadleError (treadle_schemas.errors)
└── LiveError
    ├── IndexMissing     no indexer of this home ever followed the workspace
    ├── IndexInUse       another indexer writes it
    ├── IndexDamaged     its files are not what treadle wrote; it can be made anew from the log
    ├── IndexFull        no room on the disk, or the system does not let it be written (a retry can help)
    ├── ErasureWaiting   an indexer is running that has not carried out an erasure in time (a retry can help)
    └── EmbedderError    it cannot be loaded, or does not give one vector of the same length for each text
"""

from __future__ import annotations

from pathlib import Path

from treadle_schemas.errors import TreadleError

__all__ = ["EmbedderError", "ErasureWaiting", "IndexDamaged", "IndexFull", "IndexInUse", "IndexMissing", "LiveError"]


class LiveError(TreadleError):
    """Base of the live index's errors."""


class IndexMissing(LiveError):
    """No indexer of this home ever followed the workspace."""

    def __init__(self, workspace: str, folder: Path) -> None:
        super().__init__(
            f"workspace {workspace} has no live index on this machine ({folder}). "
            f"Start one with `treadle indexer --workspace {workspace}`"
        )
        self.workspace = workspace


class IndexInUse(LiveError):
    """Another indexer writes it. `pid` is that process, where it is known."""

    def __init__(self, folder: Path, pid: int | None) -> None:
        who = "another process" if pid is None else f"process {pid}"
        super().__init__(
            f"{who} writes the live index {folder}; it has one writer. Stop that one, or let it do the work"
        )
        self.pid = pid


class IndexDamaged(LiveError):
    """Its files are not what treadle wrote."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(f"live index {folder}: {problem}. Make it anew from the log with `treadle indexer --rebuild`")


class IndexFull(LiveError):
    """No room on the disk, or the system does not let its files be written. What was committed before is whole."""

    retriable = True

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(
            f"live index {folder} cannot be written: {problem}. Nothing is lost: free some space, or set TREADLE_HOME to a folder on "
            "another disk, and start the indexer again; it goes on from its last commit"
        )
        self.folder = folder
        self.problem = problem


class ErasureWaiting(LiveError):
    """What is to be erased is written down, and vanishes from answers, but the files are not rewritten yet."""

    retriable = True


class EmbedderError(LiveError):
    """It cannot be loaded, or does not give one vector of the same length for each text."""

    exit_code = 2
