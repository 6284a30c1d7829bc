"""Archives of a workspace's log: closed ranges of offsets as files, read as one with what is still on Kafka."""

from treadle_streams.archive.deleting import Need, delete_archived, group_needs
from treadle_streams.archive.errors import (
    ArchiveBusy,
    ArchiveDamaged,
    ArchiveError,
    ArchiveGap,
    ArchiveMissing,
    ArchiveUnwritable,
    StillNeeded,
)
from treadle_streams.archive.history import History
from treadle_streams.archive.ranges import KINDS, Archive, Range
from treadle_streams.archive.writing import archive, closed_ends

__all__ = [
    "KINDS",
    "Archive",
    "ArchiveBusy",
    "ArchiveDamaged",
    "ArchiveError",
    "ArchiveGap",
    "ArchiveMissing",
    "ArchiveUnwritable",
    "History",
    "Need",
    "Range",
    "StillNeeded",
    "archive",
    "closed_ends",
    "delete_archived",
    "group_needs",
]
