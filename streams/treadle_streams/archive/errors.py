"""The errors of archives.

TreadleError (treadle_schemas.errors)
└── ArchiveError
    ├── ArchiveMissing      nothing of the workspace is archived there, or the workspace names no archive (exit code 2)
    ├── ArchiveDamaged      a file is gone, or is not what its manifest says; names it
    ├── ArchiveGap          offsets are neither archived nor in the log; names topic, partition and offsets
    ├── ArchiveUnwritable   the system refuses to write there (retriable)
    ├── ArchiveBusy         another process archives there (retriable)
    └── StillNeeded         records to be deleted are needed; names who needs them, and from where on
"""

from __future__ import annotations

from collections.abc import Sequence

from treadle_schemas.errors import TreadleError

__all__ = [
    "ArchiveBusy",
    "ArchiveDamaged",
    "ArchiveError",
    "ArchiveGap",
    "ArchiveMissing",
    "ArchiveUnwritable",
    "StillNeeded",
]


class ArchiveError(TreadleError):
    """Base of the archive errors."""


class ArchiveMissing(ArchiveError):
    """Nothing of the workspace is archived there, or the workspace names no archive."""

    exit_code = 2


class ArchiveDamaged(ArchiveError):
    """A file of an archive is gone, or is not what its manifest says."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}. Nothing was changed. Restore the file from a copy of the archive")
        self.place = place
        self.problem = problem


class ArchiveGap(ArchiveError):
    """Offsets are neither archived nor in the log. `missing` are the first and the last of them."""

    def __init__(self, topic: str, partition: int, missing: tuple[int, int], looked: Sequence[str], why: str) -> None:
        first, last = missing
        where = (
            f"in {', '.join(looked)}" if looked else "anywhere: the workspace names no archive (--archive names one)"
        )
        super().__init__(
            f"{topic}[{partition}]: offsets {first} to {last} are not archived {where}, and {why}. What is made of them cannot be read"
        )
        self.topic = topic
        self.partition = partition
        self.missing = missing


class ArchiveUnwritable(ArchiveError):
    """The system refuses to write there."""

    retriable = True

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(
            f"{place}: cannot be written ({problem}). What is archived already is whole: mend it and run again"
        )
        self.place = place


class ArchiveBusy(ArchiveError):
    """Another process archives there."""

    retriable = True

    def __init__(self, place: str, holder: str) -> None:
        super().__init__(f"{place}: process {holder or '?'} archives there just now; wait for it")
        self.place = place


class StillNeeded(ArchiveError):
    """Records that are to be deleted are needed by somebody."""

    def __init__(self, topic: str, partition: int, until: int, needed_from: int, who: str) -> None:
        super().__init__(
            f"{topic}[{partition}]: records below offset {until} cannot be deleted: {who} needs them from offset {needed_from} on. "
            "Nothing was deleted; everything is archived. Let it catch up, or keep more: --before, --keep"
        )
        self.topic = topic
        self.partition = partition
        self.needed_from = needed_from
        self.who = who
