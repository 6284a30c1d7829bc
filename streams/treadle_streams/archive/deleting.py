"""Deleting from Kafka what is archived: only below what everybody has read, and only after it was read back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from treadle.log import Admin, Partition
from treadle_schemas.topics import group, prefix, topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.archive.errors import StillNeeded
from treadle_streams.archive.ranges import Archive

__all__ = ["Need", "delete_archived", "group_needs"]

INPUTS: Final = ("interactions", "outcomes", "references")


class Need(NamedTuple):
    """Somebody needs a partition from an offset on."""

    kind: str
    partition: int
    offset: int
    who: str


def group_needs(admin: Admin, settings: WorkspaceSettings, kinds: Iterable[str]) -> list[Need]:
    """What the consumer groups of a workspace need: the join each of its inputs, the others what they have begun to read."""
    join = group(settings.workspace, "join")
    found: list[Need] = []
    groups = sorted({*admin.groups(prefix(settings.workspace)), join})
    for kind in kinds:
        places = [(topic(settings.workspace, kind), partition) for partition in range(settings.partitions)]
        for name in groups:
            for (_, partition), offset in admin.committed(name, places).items():
                if offset > 0 or (name == join and kind in INPUTS):
                    who = "the join (`treadle worker`)" if name == join else f"consumer group {name}"
                    found.append(Need(kind, partition, offset, who))
    return found


def delete_archived(
    admin: Admin,
    settings: WorkspaceSettings,
    target: Archive,
    ends: Mapping[str, Mapping[int, int]],
    needs: Iterable[Need],
) -> dict[Partition, tuple[int, int]]:
    """Delete a workspace's records below `ends` (by kind and partition) from Kafka, as far as `target` has them without a gap.

    1. inputs younger than twice the time that the join keeps state stay: `treadle restore` rebuilds lost state from them
    2. nobody needs what is to go
    3. every range of it is read back from the archive and compared
    4. delete

    Returns (start before, start after) of each partition that lost records. Raises StillNeeded, ArchiveDamaged, LogError; nothing was
    deleted then.
    """
    oldest_ms = int((time.time() - 2 * settings.retention_s) * 1000)
    wanted: dict[Partition, int] = {}
    starts: dict[Partition, int] = {}
    for kind, of_kind in ends.items():
        places = [(topic(settings.workspace, kind), partition) for partition in of_kind]
        begin = admin.start_offsets(places)
        kept = admin.offsets_at(places, oldest_ms) if kind in INPUTS else {}
        for place in places:
            end = target.covered(kind, place[1], begin[place])
            end = min(end, of_kind[place[1]], kept.get(place, end))  # 1
            if end > begin[place]:
                wanted[place], starts[place] = end, begin[place]
    for need in needs:  # 2
        place = (topic(settings.workspace, need.kind), need.partition)
        if need.offset < wanted.get(place, 0):
            raise StillNeeded(place[0], need.partition, wanted[place], need.offset, need.who)
    for (name, partition), end in wanted.items():  # 3
        for found in target.ranges(name.removeprefix(prefix(settings.workspace)), partition):
            if found.first < end and found.next > starts[name, partition]:
                for _ in target.records(found):
                    pass
    admin.delete_before(wanted)  # 4
    return {place: (starts[place], end) for place, end in wanted.items()}
