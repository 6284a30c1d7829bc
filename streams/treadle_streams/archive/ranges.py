"""Ranges of a workspace's log in an archive: which there are, and what is in them.

    TARGET/WORKSPACE/CREATED/KIND/PARTITION/FIRST-NEXT-HASH.parquet    the records of a range
    TARGET/WORKSPACE/CREATED/KIND/PARTITION/FIRST.json                 its manifest, put last: before it there is no range

CREATED tells a workspace from a later one of the same name, whose offsets mean other records. FIRST and NEXT are offsets: the range is what
was committed from FIRST on below NEXT. Offsets of transaction markers and of aborted records are in no file: no reader of the log sees
them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from treadle.log import Record
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.archive._store import Store, store_at
from treadle_streams.archive._table import decode_table, encode_table
from treadle_streams.archive.errors import ArchiveDamaged

__all__ = ["ERASED_HEADER", "KINDS", "Archive", "Erased", "Range", "creations", "is_erased"]

ERASED_HEADER: Final = "treadle-erased"
"""The only header of a record whose key, value and headers were erased."""

KINDS: Final = ("interactions", "outcomes", "references", "graded", "dead-letter")
"""What is archived: what was recorded, what the join was told, what it says of settled rows and of what it refused. `.progress` is not,
since `.graded` says how each row ended; `.snapshots`, `.releases` and `.settings` are small, and stay.
"""
_MANIFEST: Final = re.compile(r"(?:.*/)?[0-9]{20}\.json")
FORMAT: Final = "treadle-archive"
FORMAT_VERSION: Final = 1


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """What an erasure took out of a range. Where it was, offset and time are left."""

    erased_at: str
    reason: str
    records: int
    sha256_before: str


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of a range."""

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    workspace: str
    created_at: str
    """Of the workspace."""
    topic: str
    kind: str
    partition: int
    first: int
    next: int
    """The first offset after the range."""
    records: int
    first_record: int | None
    """Offset of the first record; null where there is none."""
    last_record: int | None
    first_ms: int | None
    """Timestamp of the first record."""
    last_ms: int | None
    """The newest timestamp."""
    file: str
    """Name of the file, beside the manifest."""
    size: int
    sha256: str
    archived_at: str
    erased: tuple[Erased, ...] = ()


class Archive:
    """What is archived of one creation of a workspace at a target."""

    def __init__(self, target: str, settings: WorkspaceSettings) -> None:
        """Nothing is looked at yet. Raises TargetError."""
        self.store: Store = store_at(target)
        self.workspace = settings.workspace
        self.created_at = settings.created_at
        self.top = f"{self.workspace}/{re.sub('[^0-9A-Za-z.-]', '-', self.created_at) or 'first'}"
        self._known: dict[tuple[str, int], list[Range]] | None = None

    def ranges(self, kind: str, partition: int) -> list[Range]:
        """Ranges of a partition by their first offset. Raises ArchiveDamaged."""
        return self._all().get((kind, partition), [])

    def every(self) -> Iterator[Range]:
        """All ranges, by kind, partition and first offset. Raises ArchiveDamaged."""
        for kind in KINDS:
            for (known, _), found in sorted(self._all().items()):
                if known == kind:
                    yield from found

    def covered(self, kind: str, partition: int, start: int) -> int:
        """How far a partition is archived from `start` on without a gap: the first offset that is not."""
        for found in self.ranges(kind, partition):
            if found.first > start:
                break
            start = max(start, found.next)
        return start

    def records(self, found: Range) -> Iterator[Record]:
        """The records of a range; those that were erased are there without key and value, see `ERASED_HEADER`. Raises ArchiveDamaged."""
        name = self.name_of(found)
        data = self.store.read(name)
        if data is None:
            raise ArchiveDamaged(self.store.at(name), "the file is gone")
        if hashlib.sha256(data).hexdigest() != found.sha256:
            raise ArchiveDamaged(self.store.at(name), "the file is not what was written: its SHA-256 is another one")
        count, last = 0, found.first - 1
        try:
            for record in decode_table(data, found.topic, found.partition):
                if not last < record.offset < found.next:
                    raise ArchiveDamaged(self.store.at(name), f"offset {record.offset} comes after {last}")
                count, last = count + 1, record.offset
                yield record
        except ValueError as err:
            raise ArchiveDamaged(self.store.at(name), f"the file cannot be read ({err})") from err
        if count != found.records:
            raise ArchiveDamaged(
                self.store.at(name), f"the file has {count} records, its manifest says {found.records}"
            )

    def put(
        self,
        kind: str,
        partition: int,
        bounds: tuple[int, int],
        records: Sequence[Record],
        *,
        archived_at: str,
        erased: tuple[Erased, ...] = (),
    ) -> Range:
        """Put a range: the file, which is read back and compared, then its manifest. Raises ArchiveUnwritable, ArchiveDamaged."""
        first, after = bounds
        about = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "workspace": self.workspace,
            "created_at": self.created_at,
            "topic": topic(self.workspace, kind),
            "partition": partition,
            "first": first,
            "next": after,
        }
        data = encode_table(records, msgspec.json.encode(about))
        sha256 = hashlib.sha256(data).hexdigest()
        made = Range(
            workspace=self.workspace,
            created_at=self.created_at,
            topic=topic(self.workspace, kind),
            kind=kind,
            partition=partition,
            first=first,
            next=after,
            records=len(records),
            first_record=records[0].offset if records else None,
            last_record=records[-1].offset if records else None,
            first_ms=records[0].timestamp_ms if records else None,
            last_ms=max((r.timestamp_ms for r in records), default=None),
            file=f"{first:020d}-{after:020d}-{sha256[:12]}.parquet",
            size=len(data),
            sha256=sha256,
            archived_at=archived_at,
            erased=erased,
        )
        folder = self._folder(kind, partition)
        self.store.put(f"{folder}/{made.file}", data)
        if sum(1 for _ in self.records(made)) != len(records):
            raise ArchiveDamaged(self.store.at(f"{folder}/{made.file}"), "what was written is not what is read back")
        self.store.put(f"{folder}/{first:020d}.json", msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
        if self._known is not None:
            ranges = self._known.setdefault((kind, partition), [])
            # the name of a manifest is its first offset
            ranges[:] = sorted(
                [*(one for one in ranges if one.first != first), made], key=lambda one: (one.first, one.next)
            )
        return made

    def name_of(self, found: Range) -> str:
        """The name of the file of a range."""
        return f"{self._folder(found.kind, found.partition)}/{found.file}"

    def strays(self) -> list[str]:
        """Files that no manifest names: an interrupted run left them."""
        named = {self.name_of(found) for found in self.every()}
        return [name for name in self.store.names(self.top) if _is_stray(name) and name not in named]

    def _folder(self, kind: str, partition: int) -> str:
        return f"{self.top}/{kind}/{partition:04d}"

    def _all(self) -> dict[tuple[str, int], list[Range]]:
        if self._known is None:
            self._known = {}
            for name in self.store.names(self.top):
                if _MANIFEST.fullmatch(name):
                    found = self._manifest(name)
                    self._known.setdefault((found.kind, found.partition), []).append(found)
            for every in self._known.values():
                every.sort(key=lambda one: (one.first, one.next))
        return self._known

    def _manifest(self, name: str) -> Range:
        try:
            found = msgspec.json.decode(self.store.read(name) or b"", type=Range)
        except msgspec.DecodeError as err:
            raise ArchiveDamaged(self.store.at(name), f"the manifest cannot be read ({err})") from err
        if (found.format, found.format_version) != (FORMAT, FORMAT_VERSION):
            raise ArchiveDamaged(
                self.store.at(name),
                f"has format {found.format} {found.format_version}, and this treadle reads {FORMAT} {FORMAT_VERSION}",
            )
        return found


def is_erased(record: Record) -> bool:
    """Was the record emptied by an erasure?"""
    return record.value is None and any(name == ERASED_HEADER for name, _ in record.headers)


def creations(target: str, workspace: str) -> list[Archive]:
    """What is archived at a target of every workspace of that name, by creation. Raises TargetError, ArchiveDamaged."""
    store = store_at(target)
    found: dict[str, Archive] = {}
    for name in store.names(workspace):
        top = "/".join(name.split("/")[:2])
        if top not in found and _MANIFEST.fullmatch(name):
            try:
                created_at = msgspec.json.decode(store.read(name) or b"", type=Range).created_at
            except msgspec.DecodeError as err:
                raise ArchiveDamaged(store.at(name), f"the manifest cannot be read ({err})") from err
            found[top] = Archive(target, WorkspaceSettings(workspace=workspace, created_at=created_at))
    return list(found.values())


def _is_stray(name: str) -> bool:
    return name.endswith((".parquet", ".new"))
