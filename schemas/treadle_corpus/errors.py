"""Every error this package raises.

TreadleError (treadle_schemas.errors)
├── NotYetSupported (treadle_schemas.errors)   a target such as s3:// that this version cannot write
└── CorpusError
    ├── TargetError          a target or reference that is no path, no known scheme, or no version
    ├── CorpusMissing        nothing lies at the path
    ├── VersionMissing       the corpus is there, that version is not; names those that are
    ├── TagMissing           the corpus is there, that tag is not; names those that are
    ├── TagTaken             the tag names another version already
    ├── CorpusLocked         another process writes this corpus (retriable)
    ├── CorpusInUse          a version that is to be removed or replaced is being read, tagged or the newest (retriable)
    ├── CorpusFull           no room on the disk; what was written stays whole (retriable)
    ├── CorpusUnwritable     the system refuses to write there
    ├── CorpusDamaged        the folder is no corpus, or its files are not what was written
    ├── CorpusOutdated       the corpus has the format of an older treadle
    └── PolicyMismatch       the corpus was made by another policy or for another workspace
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from treadle_schemas.errors import TreadleError

__all__ = [
    "CorpusDamaged",
    "CorpusError",
    "CorpusFull",
    "CorpusInUse",
    "CorpusLocked",
    "CorpusMissing",
    "CorpusOutdated",
    "CorpusUnwritable",
    "PolicyMismatch",
    "TagMissing",
    "TagTaken",
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


class TagMissing(CorpusError):
    """The corpus is there, the tag is not. `tags` are those that are."""

    def __init__(self, path: Path, name: str, tags: Sequence[str]) -> None:
        there = f"there are {', '.join(tags)}" if tags else "it has none"
        super().__init__(f"{path} has no tag {name!r}: {there}. `treadle corpus tag {path}@vN NAME` sets one")
        self.path = path
        self.name = name
        self.tags = list(tags)


class TagTaken(CorpusError):
    """The tag names another version already."""

    def __init__(self, path: Path, name: str, version: int) -> None:
        super().__init__(f"{path}: the tag {name!r} names v{version} already; --force moves it")
        self.path = path
        self.name = name
        self.version = version


class CorpusLocked(CorpusError):
    """Another process writes this corpus."""

    retriable = True

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(
            f"{path} is being written by {holder}. A corpus has one writer: wait for it, stop it, or write to another path"
        )
        self.path = path


class CorpusInUse(CorpusError):
    """A version that is to be removed or replaced is needed."""

    retriable = True

    def __init__(self, path: Path, version: int, user: str, *, what: str = "removed") -> None:
        super().__init__(f"{path}@v{version} cannot be {what}: {user}. Nothing was {what}")
        self.path = path
        self.version = version
        self.user = user


class CorpusFull(CorpusError):
    """No room on the disk. All that was committed before is whole."""

    retriable = True

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(
            f"{path}: {problem}. Nothing is lost: make room and run again, it goes on from the last commit"
        )
        self.path = path
        self.problem = problem


class CorpusUnwritable(CorpusError):
    """The system refuses to write there. All that was committed before is whole."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: cannot be written ({problem}). Nothing is lost: run again once the cause is gone")
        self.path = path
        self.problem = problem


class CorpusDamaged(CorpusError):
    """The folder is no corpus, or its files are not what was written."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(
            f"{path}: {problem}. Nothing was changed. Restore the folder from a copy, or snapshot again to another path: "
            "`.graded` keeps every row"
        )
        self.path = path
        self.problem = problem


class CorpusOutdated(CorpusError):
    """The corpus has the format of an older treadle."""

    def __init__(self, path: Path, version: int, reads: int) -> None:
        super().__init__(
            f"{path} has format version {version}, and this treadle reads {reads}. Nothing was changed. `.graded` keeps every row: "
            "`treadle snapshot WORKSPACE --to ANOTHER_PATH` makes the corpus again; the treadle that wrote this one still reads it"
        )
        self.path = path
        self.version = version


class PolicyMismatch(CorpusError):
    """The corpus was made by another policy or for another workspace."""

    exit_code = 2
