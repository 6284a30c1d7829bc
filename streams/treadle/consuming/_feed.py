"""From the records of one topic to values with their places, for the iterators: read committed, nothing skipped in silence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from treadle_schemas.codec import INTERACTION, PART, Event, decode
from treadle_schemas.errors import ContractError, FieldError, PartErased, PartMissing
from treadle_schemas.events import read_interaction, read_outcome
from treadle_schemas.ids import check_slot
from treadle_schemas.records import GradedRow
from treadle_schemas.topics import group, topic

from treadle._part_memory import PartMemory
from treadle.consuming._kinds import BESIDE, PUBLIC_INPUTS, REVISED, TYPES, Revisions, Start
from treadle.consuming._latest import LastOffsets
from treadle.errors import TopicMissing

if TYPE_CHECKING:
    from treadle.log import GroupReader, Record, TailReader

__all__ = ["Feed", "Given", "group_of"]

_LOG: Final = logging.getLogger("treadle")


class Given(NamedTuple):
    """A value (None: nothing to give here), or the error of its record, and where its partition goes on after it."""

    value: Any
    error: ContractError | None
    partition: int
    next_offset: int


def group_of(workspace: str, name: str) -> str:
    """The consumer group of a named consumer. Raises FieldError for a name that is none."""
    try:
        return group(workspace, f"consume-{check_slot(name)}")
    except FieldError as err:
        raise FieldError("name", err.problem.replace("slot name", "consumer's name")) from None


class Feed:
    """One topic's values. Polled from one thread at a time."""

    def __init__(
        self, servers: str, workspace: str, kind: str, start: Start, name: str | None, revisions: Revisions
    ) -> None:
        from treadle.log import Admin, GroupReader, TailReader, begin_group

        if revisions == "latest" and kind not in REVISED:
            raise ValueError(f"{kind} has no revisions; only {' and '.join(REVISED)} are read as latest")
        self.topic = topic(workspace, kind)
        group_id = None if name is None else group_of(workspace, name)
        admin = Admin(servers)
        count = admin.partitions().get(self.topic)
        if count is None:
            raise TopicMissing(
                f"{self.topic} does not exist on {servers}. `treadle workspace list` shows the workspaces"
            )
        partitions = [(self.topic, number) for number in range(count)]
        if start == "end":
            found = admin.stable_offsets(partitions)
        else:
            found = admin.start_offsets(partitions)
            if not isinstance(start, str):
                found |= {(self.topic, number): offset for number, offset in start.items()}
        self._servers = servers
        self._wanted, self._struct = TYPES[kind]
        self._parts = PartMemory()
        self._group: GroupReader | None = None
        self._reader: TailReader
        if group_id is not None:
            found = begin_group(servers, group_id, found)
        begin = {number: offset for (_, number), offset in found.items()}
        self._last = LastOffsets(servers, self.topic, begin, self._wanted) if revisions == "latest" else None
        if group_id is None:
            self._reader = TailReader(servers, found)
        else:
            self._reader = self._group = GroupReader(servers, group_id, self.topic, found)
        self.refused = 0

    @property
    def ready(self) -> bool:
        """Whether it is known which partitions are read here, and Kafka has answered for each of them."""
        return self._reader.ready

    @property
    def moved(self) -> int:
        """Rises when partitions come or go."""
        return 0 if self._group is None else self._group.moved

    @property
    def positions(self) -> dict[int, int]:
        """Of each partition that is read here, the offset after all that `poll` gave or passed, markers of transactions included."""
        return {number: offset for (_, number), offset in self._reader.positions.items()}

    def poll(self, timeout_s: float) -> list[Given]:
        """What comes next, at the latest after `timeout_s`. Ends with the first record that cannot be read."""
        out: list[Given] = []
        for record in self._reader.poll(timeout_s):
            given = self._given(record)
            out.append(given)
            if given.error is not None:
                break  # nothing behind it is ever given
        return out

    def commit(self, positions: dict[int, int]) -> None:
        """Make these the positions of the name. Raises ValueError for a consumer without a name, LogError."""
        if self._group is None:
            raise ValueError("only a consumer with a name keeps positions: consume(..., name=), or store `positions`")
        self._group.commit({(self.topic, number): offset for number, offset in positions.items()})

    def close(self) -> None:
        """Let go of the connection, and of the partitions."""
        self._reader.close()

    def _given(self, record: Record) -> Given:
        where = f"{record.topic}[{record.partition}]@{record.offset}"
        value: Any = None
        error: ContractError | None = None
        beside = BESIDE.get(self._wanted, ())
        try:
            event = decode(record.value, record.headers)
            if event.type == self._wanted:
                if self._last is None or not self._is_outdated(event, record):
                    value = self._value(event, record)
            elif event.type not in beside:
                raise FieldError("headers.ce_type", f"{event.type} does not belong here")
            elif event.type == PART:
                self._parts.take(event.data, len(record.value or b""))
        except (ContractError, msgspec.ValidationError) as err:
            if self._wanted in PUBLIC_INPUTS:
                self.refused += 1
                kind = "interaction" if self._wanted == INTERACTION else "outcome"
                _LOG.warning("%s is no %s, the join makes it a dead letter: %s", where, kind, err)
            else:
                error = ContractError(f"{where}: {err}")
        return Given(value, error, record.partition, record.offset + 1)

    def _is_outdated(self, event: Event, record: Record) -> bool:
        assert self._last is not None
        ids = event.data.get("episode_id"), event.data.get("interaction_id")
        return self._last.outdated(str(ids[0]), str(ids[1]), record.offset)

    def _value(self, event: Event, record: Record) -> Any:
        def again() -> Iterator[tuple[dict[str, Any], int]]:
            return self._parts_before(record)

        if self._wanted == INTERACTION:
            seen = read_interaction(event.data)
            try:
                found = self._parts.together(seen.episode, event.data, again)
            except (PartMissing, PartErased):
                return seen
            return seen if found is event.data else read_interaction(found)
        if self._wanted in PUBLIC_INPUTS:
            return read_outcome(event.data)
        value = msgspec.convert(event.data, self._struct)
        return self._parts.whole(value, again) if isinstance(value, GradedRow) else value

    def _parts_before(self, row: Record) -> Iterator[tuple[dict[str, Any], int]]:
        """The part records of a row's episode before it, read from the start of its partition."""
        from treadle.log import read

        for record in read(self._servers, row.topic, 0, until={row.partition: row.offset}):
            if record.key == row.key:
                event = decode(record.value, record.headers)
                if event.type == PART:
                    yield event.data, len(record.value or b"")
