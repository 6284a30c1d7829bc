"""Archive and live log read as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from treadle.log import Admin, Record, open_record, read
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.archive.errors import ArchiveGap
from treadle_streams.archive.ranges import Archive, is_erased

__all__ = ["History"]


class History:
    """The log of a workspace from its beginning: what was archived, then what is still on Kafka."""

    def __init__(self, servers: str, settings: WorkspaceSettings, archives: Sequence[str] = ()) -> None:
        """`archives` are looked at beside those that the workspace names. Nothing is looked at yet. Raises TargetError."""
        self._servers = servers
        self._settings = settings
        self.targets = list(dict.fromkeys([*archives, *settings.archives]))
        self._archives = [Archive(target, settings) for target in self.targets]

    def missing(self, kind: str, wanted: Mapping[int, int], starts: Mapping[int, int]) -> tuple[int, int, int] | None:
        """The first partition of which something is neither archived nor live, from the offset that is `wanted` of it up to where the log
        `starts`: with the first and the last offset of the gap. None where all is there.
        """
        for partition, start in sorted(wanted.items()):
            begin = starts.get(partition, 0)
            at = start
            while at < begin:
                after = max((one.covered(kind, partition, at) for one in self._archives), default=at)
                if after == at:
                    later = [
                        r.first for one in self._archives for r in one.ranges(kind, partition) if at < r.first < begin
                    ]
                    return partition, at, min([*later, begin]) - 1
                at = after
        return None

    def read(
        self,
        kind: str,
        *,
        start: Mapping[int, int] | None = None,
        until: Mapping[int, int] | None = None,
        raw: bool = False,
        gaps: bool = False,
    ) -> Iterator[Record]:
        """Every committed record of a topic from `start` (default: 0) up to but without `until` (default: the present stable ends), in the
        order of offsets within a partition. Sealed values come as by `treadle.log.read`,
        also with `raw`. With `gaps` what is nowhere is passed over.

        Raises ArchiveGap where offsets are nowhere, ArchiveDamaged, LogError.
        """
        name = topic(self._settings.workspace, kind)
        admin = Admin(self._servers)
        count = admin.partitions().get(name, self._settings.partitions)
        places = [(name, partition) for partition in range(count)]
        ends = dict(until) if until is not None else {p: o for (_, p), o in admin.stable_offsets(places).items()}
        begin = {p: (start or {}).get(p, 0) for p in ends}
        starts = {p: o for (_, p), o in admin.start_offsets([(name, p) for p in ends]).items()}
        wanted = {p: offset for p, offset in begin.items() if offset < min(starts[p], ends[p])}
        bounds = {p: min(starts[p], ends[p]) for p in wanted}
        gap = self.missing(kind, wanted, bounds)
        if gap is not None and not gaps:
            partition, first, last = gap
            raise ArchiveGap(
                name, partition, (first, last), self.targets, f"the log begins at offset {starts[partition]}"
            )
        for partition in sorted(wanted):
            for record in self._archived(kind, partition, wanted[partition], bounds[partition]):
                opened = record if raw else open_record(record)
                if opened is not None:
                    yield opened
        live = {p: max(offset, starts[p]) for p, offset in begin.items()}
        yield from read(self._servers, name, count, start=live, until=ends, raw=raw)

    def _archived(self, kind: str, partition: int, start: int, end: int) -> Iterator[Record]:
        ranges = [(found, one) for one in self._archives for found in one.ranges(kind, partition)]
        for found, holder in sorted(ranges, key=lambda each: (each[0].first, -each[0].next)):
            if found.next <= start or found.first >= end:
                continue  # read before, from another archive or range
            for record in holder.records(found):
                if start <= record.offset < end and not is_erased(record):
                    yield record
            start = found.next
