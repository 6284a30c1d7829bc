"""Every error this package raises.

TreadleError (treadle_schemas.errors)
├── NotYetSupported (treadle_schemas.errors)   a target, or what was asked of one, that this version cannot do
└── CorpusError
    ├── TargetError          a target or reference that is no path, no known scheme, or no version
    ├── CorpusMissing        nothing lies at the path
    ├── VersionMissing       the corpus is there, that version is not; names those that are
    ├── VersionChanged       an erasure made the corpus again while the version was being fetched (retriable)
    ├── TagMissing           the corpus is there, that tag is not; names those that are
    ├── TagTaken             the tag names another version already
    ├── CorpusLocked         another process writes this corpus (retriable)
    ├── CorpusInUse          a version that is to be removed or replaced is being read, tagged or the newest (retriable)
    ├── CorpusFull           no room on the disk; what was written stays whole (retriable)
    ├── CorpusUnwritable     the system refuses to write there
    ├── CorpusDamaged        the folder is no corpus, or its files are not what was written
    ├── CorpusOutdated       the corpus has the format of an older treadle
    ├── CorpusNewer          the corpus has the format of a newer treadle
    ├── PolicyMismatch       the corpus was made by another policy or for another workspace
    └── StoreError           an object store, s3:// and the like
        ├── StoreUnreachable     no answer, or one that says to come back later (retriable)
        ├── StoreRefused         no credentials, or no right
        ├── BucketMissing        there is no such bucket
        ├── StoreUnfit           the store has not what one writer needs: puts that fail where an object is
        └── ObjectDamaged        an object is gone, cut or changed
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from treadle_schemas.errors import TreadleError

__all__ = [
    "BucketMissing",
    "CorpusDamaged",
    "CorpusError",
    "CorpusFull",
    "CorpusInUse",
    "CorpusLocked",
    "CorpusMissing",
    "CorpusNewer",
    "CorpusOutdated",
    "CorpusUnwritable",
    "ObjectDamaged",
    "PolicyMismatch",
    "StoreError",
    "StoreRefused",
    "StoreUnfit",
    "StoreUnreachable",
    "TagMissing",
    "TagTaken",
    "TargetError",
    "VersionChanged",
    "VersionMissing",
]


class CorpusError(TreadleError):
    """Base of the corpus errors."""


class TargetError(CorpusError):
    """A target or reference that is no path, no known scheme, or names no version."""

    exit_code = 2


class CorpusMissing(CorpusError):
    """Nothing lies at the path."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(f"{path}: no corpus is there. `treadle snapshot WORKSPACE --to {path}` makes one")
        self.path = path


class VersionMissing(CorpusError):
    """The corpus is there, the version is not. `versions` are those that are."""

    def __init__(self, path: Path | str, version: int | None, versions: Sequence[int]) -> None:
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


class VersionChanged(CorpusError):
    """An erasure made the corpus again while a version was being fetched from an object store."""

    retriable = True

    def __init__(self, path: Path | str, version: int) -> None:
        super().__init__(
            f"{path}@v{version} was made again by an erasure, without some episodes, before what it needs was fetched: open it again"
        )
        self.path = path
        self.version = version


class TagMissing(CorpusError):
    """The corpus is there, the tag is not. `tags` are those that are."""

    def __init__(self, path: Path | str, name: str, tags: Sequence[str]) -> None:
        there = f"there are {', '.join(tags)}" if tags else "it has none"
        super().__init__(f"{path} has no tag {name!r}: {there}. `treadle corpus tag {path}@vN NAME` sets one")
        self.path = path
        self.name = name
        self.tags = list(tags)


class TagTaken(CorpusError):
    """The tag names another version already."""

    def __init__(self, path: Path | str, name: str, version: int) -> None:
        super().__init__(f"{path}: the tag {name!r} names v{version} already; --force moves it")
        self.path = path
        self.name = name
        self.version = version


class CorpusLocked(CorpusError):
    """Another process writes this corpus."""

    retriable = True

    def __init__(self, path: Path | str, holder: str) -> None:
        super().__init__(
            f"{path} is being written by {holder}. A corpus has one writer: wait for it, stop it, or write to another path"
        )
        self.path = path


class CorpusInUse(CorpusError):
    """A version that is to be removed or replaced is needed."""

    retriable = True

    def __init__(self, path: Path | str, version: int, user: str, *, what: str = "removed") -> None:
        super().__init__(f"{path}@v{version} cannot be {what}: {user}. Nothing was {what}")
        self.path = path
        self.version = version
        self.user = user


class CorpusFull(CorpusError):
    """No room on the disk. All that was committed before is whole."""

    retriable = True

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(
            f"{path}: {problem}. Nothing is lost: make room and run again, it goes on from the last commit"
        )
        self.path = path
        self.problem = problem


class CorpusUnwritable(CorpusError):
    """The system refuses to write there. All that was committed before is whole."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(f"{path}: cannot be written ({problem}). Nothing is lost: run again once the cause is gone")
        self.path = path
        self.problem = problem


class CorpusDamaged(CorpusError):
    """The folder is no corpus, or its files are not what was written."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(
            f"{path}: {problem}. Nothing was changed. Restore the folder from a copy, or snapshot again to another path: "
            "`.graded` keeps every row"
        )
        self.path = path
        self.problem = problem


class CorpusOutdated(CorpusError):
    """The corpus has the format of an older treadle."""

    def __init__(self, path: Path | str, version: int, reads: int) -> None:
        super().__init__(
            f"{path} has format version {version}, and this treadle reads {reads}. Nothing was changed. `.graded` keeps every row: "
            "`treadle snapshot WORKSPACE --to ANOTHER_PATH` makes the corpus again; the treadle that wrote this one still reads it"
        )
        self.path = path
        self.version = version


class CorpusNewer(CorpusError):
    """The corpus has the format of a newer treadle."""

    def __init__(self, path: Path | str, version: object, reads: int) -> None:
        super().__init__(
            f"{path} has format version {version!r}, and this treadle reads {reads}. Nothing was changed: "
            "use the treadle that wrote it, or a newer one"
        )
        self.path = path
        self.version = version


class PolicyMismatch(CorpusError):
    """The corpus was made by another policy or for another workspace."""

    exit_code = 2


class StoreError(CorpusError):
    """What an object store says. `url` is the object or folder; no error holds credentials."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(f"{url}: {problem}")
        self.url = url
        self.problem = problem


class StoreUnreachable(StoreError):
    """No answer, or one that says to come back later."""

    retriable = True

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(
            url,
            f"the object store does not answer ({problem}). Nothing is lost: run again when it does; AWS_ENDPOINT_URL says where it is",
        )


class StoreRefused(StoreError):
    """No credentials, or no right."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(
            url,
            f"the object store refuses ({problem}). Credentials come from the usual places: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE, or the role of the machine; they need to list, read, write and delete objects there",
        )


class BucketMissing(StoreError):
    """There is no such bucket."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "there is no such bucket; make it first, treadle makes none")


class StoreUnfit(StoreError):
    """The store has not what one writer needs."""

    def __init__(self, url: str) -> None:
        super().__init__(
            url,
            "the object store overwrote an object that a put with If-None-Match was to leave alone, so it cannot keep two writers apart. "
            "Nothing was written; use a store with conditional puts, or a folder",
        )


class ObjectDamaged(StoreError):
    """An object is gone, cut or changed."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(
            url,
            f"{problem}. Nothing was changed; restore the object, or snapshot again to another prefix: `.graded` has every row",
        )
