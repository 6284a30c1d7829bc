"""Every error this package raises.

TreadleError (treadle_schemas.errors)
├── NotYetSupported (treadle_schemas.errors)   a target such as s3:// that this version cannot write
└── CorpusError
    ├── TargetError          a target or reference that is no path, no known scheme, or no version
    ├── CorpusMissing        nothing lies at the path
    ├── VersionMissing       the corpus is there, that version is not; names those that are
    ├── CorpusLocked         another process writes this corpus (retriable)
    ├── CorpusDamaged        the folder is no corpus, or its files are not what was written
    └── PolicyMismatch       the corpus was made by another policy or for another workspace

A failed Deeplake commit raises nothing: the dataset handle is poisoned from there on, so the process ends (see `_store`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from treadle_schemas.errors import TreadleError

__all__ = [
    "CorpusDamaged",
    "CorpusError",
    "CorpusLocked",
    "CorpusMissing",
    "PolicyMismatch",
    "TargetError",
    "VersionMissing",
]


class CorpusError(TreadleError):
    """Base of the corpus errors."""


class TargetError(CorpusError):
    """A target or reference that is no path, no known scheme, or names no version."""

    exit_code = 2


class CorpusMissing(CorpusError):
    """Nothing lies at the path."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: no corpus is there. `treadle snapshot WORKSPACE --to {path}` makes one")
        self.path = path


class VersionMissing(CorpusError):
    """The corpus is there, the version is not. `versions` are those that are."""

    def __init__(self, path: Path, version: int | None, versions: Sequence[int]) -> None:
        if not versions:
            there = "it has no version yet; a snapshot run finishes the first one"
        elif len(versions) <= 8:
            there = "there are " + ", ".join(f"v{n}" for n in versions)
        else:
            there = f"there are v{versions[0]} to v{versions[-1]}"
        asked = f"version v{version}" if version is not None else "a version"
        super().__init__(f"{path} has not {asked}: {there}")
        self.path = path
        self.version = version
        self.versions = list(versions)


class CorpusLocked(CorpusError):
    """Another process writes this corpus."""

    retriable = True

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(
            f"{path} is being written by {holder}. A corpus has one writer: wait for it, stop it, or write to another path"
        )
        self.path = path


class CorpusDamaged(CorpusError):
    """The folder is no corpus, or its files are not what was written."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(
            f"{path}: {problem}. Nothing was changed. Restore the folder from a copy, or snapshot again to another path: "
            "`.graded` keeps every row"
        )
        self.path = path
        self.problem = problem


class PolicyMismatch(CorpusError):
    """The corpus was made by another policy or for another workspace."""

    exit_code = 2
