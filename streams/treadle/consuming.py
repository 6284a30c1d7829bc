"""`consume`: a workspace's interactions, graded rows, progress or releases as typed values, for programs of your own."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar, overload

import msgspec
from treadle_schemas.codec import (
    CLOCK,
    EPISODE_END,
    GRADED,
    IMPORT_MARKER,
    INTERACTION,
    PART,
    PROGRESS,
    REGRADED,
    RELEASE,
    Event,
    decode,
)
from treadle_schemas.errors import ContractError, FieldError, PartErased, PartMissing
from treadle_schemas.events import Interaction, read_interaction
from treadle_schemas.records import GradedRow, Progress, ReleaseEvent
from treadle_schemas.topics import topic

from treadle._part_memory import PartMemory
from treadle.errors import TopicMissing
from treadle.settings import Settings

if TYPE_CHECKING:
    from treadle.log import Record

__all__ = ["Consumed", "consume"]

T = TypeVar("T")
Kind = Literal["interactions", "graded", "progress", "releases"]
Start = Literal["beginning", "end"] | Mapping[int, int]

_LOG: Final = logging.getLogger("treadle")
_TYPES: Final[dict[str, tuple[str, type[Any]]]] = {
    "interactions": (INTERACTION, Interaction),
    "graded": (GRADED, GradedRow),
    "progress": (PROGRESS, Progress),
    "releases": (RELEASE, ReleaseEvent),
}
_BESIDE: Final = {
    INTERACTION: (PART, EPISODE_END, IMPORT_MARKER),
    GRADED: (PART, REGRADED),
    PROGRESS: (CLOCK, REGRADED),
    RELEASE: (),
}
"""What else lies on a topic, by the type of what is wanted from it."""
_POLL_S: Final = 0.5


class Consumed(Generic[T]):
    """An iterator of values, in the order of each partition. It keeps no place for you: store `positions` and start there again.

    Iteration ends after `idle_s` without a record (None: never). It reads committed records, waits out a lost connection, and raises
    ContractError, with topic, partition and offset, at a record that this version cannot read: nothing is skipped in silence.

    Of interactions, which anybody may write, an unreadable one is logged and counted in `refused`: the join makes it a dead letter. The
    same interaction may come twice.
    """

    def __init__(self, servers: str, name: str, kind: str, start: Start, idle_s: float | None) -> None:
        from treadle.log import Admin, TailReader

        admin = Admin(servers)
        count = admin.partitions().get(name)
        if count is None:
            raise TopicMissing(f"{name} does not exist on {servers}. `treadle workspace list` shows the workspaces")
        partitions = [(name, number) for number in range(count)]
        if start == "end":
            found = admin.stable_offsets(partitions)
        else:
            found = admin.start_offsets(partitions)
            if not isinstance(start, str):
                found |= {(name, number): offset for number, offset in start.items()}
        self._wanted, self._struct = _TYPES[kind]
        self._idle_s = idle_s
        self._batch: Iterator[T] = iter(())
        self._positions = {number: offset for (_, number), offset in found.items()}
        self._reader = TailReader(servers, found)
        self._servers = servers
        self._parts = PartMemory()
        self.refused = 0
        """Records among the interactions that were none."""

    @property
    def positions(self) -> dict[int, int]:
        """By partition the offset after the last value given: `consume(..., start=positions)` goes on there."""
        return dict(self._positions)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        quiet_since = time.monotonic()
        while True:
            for value in self._batch:
                return value
            if self._idle_s is not None and time.monotonic() - quiet_since > self._idle_s:
                raise StopIteration
            self._batch = self._values(_POLL_S if self._idle_s is None else min(_POLL_S, self._idle_s))

    def close(self) -> None:
        """Let go of the connection."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _values(self, timeout_s: float) -> Iterator[T]:
        for record in self._reader.poll(timeout_s):
            where = f"{record.topic}[{record.partition}]@{record.offset}"
            try:
                event = decode(record.value, record.headers)
                if event.type == PART and PART in _BESIDE[self._wanted]:
                    self._parts.take(event.data, len(record.value or b""))
                elif event.type != self._wanted and event.type not in _BESIDE[self._wanted]:
                    raise FieldError("headers.ce_type", f"{event.type} does not belong here")
                value: Any = self._value(event, record) if event.type == self._wanted else None
            except (ContractError, msgspec.ValidationError) as err:
                if self._wanted != INTERACTION:
                    raise ContractError(f"{where}: {err}") from err
                self.refused += 1
                _LOG.warning("%s is no interaction, the join makes it a dead letter: %s", where, err)
                value = None
            self._positions[record.partition] = record.offset + 1
            if value is not None:
                yield value

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


@overload
def consume(
    workspace: str | None,
    kind: Literal["interactions"],
    *,
    start: Start = ...,
    idle_s: float | None = ...,
    bootstrap_servers: str | None = ...,
) -> Consumed[Interaction]: ...
@overload
def consume(
    workspace: str | None,
    kind: Literal["graded"],
    *,
    start: Start = ...,
    idle_s: float | None = ...,
    bootstrap_servers: str | None = ...,
) -> Consumed[GradedRow]: ...
@overload
def consume(
    workspace: str | None,
    kind: Literal["progress"],
    *,
    start: Start = ...,
    idle_s: float | None = ...,
    bootstrap_servers: str | None = ...,
) -> Consumed[Progress]: ...
@overload
def consume(
    workspace: str | None,
    kind: Literal["releases"],
    *,
    start: Start = ...,
    idle_s: float | None = ...,
    bootstrap_servers: str | None = ...,
) -> Consumed[ReleaseEvent]: ...
def consume(
    workspace: str | None,
    kind: Kind,
    *,
    start: Start = "beginning",
    idle_s: float | None = None,
    bootstrap_servers: str | None = None,
) -> Consumed[Any]:
    """The values of one topic of a workspace, first what is there, then each new one as it comes.

    `start` is "beginning", "end" or offsets by partition; `idle_s` ends the iteration after so many quiet seconds. Use it with `with`.
    Long contexts are put back from their parts: values share messages, do not change them. Where the parts came before `start` the
    partition is searched for them from its beginning. An interaction whose parts are not there (yet) keeps its `transcript` and `claims`.
    Raises TopicMissing, LogUnreachable, and ValueError for another kind.
    """
    if kind not in _TYPES:
        raise ValueError(f"no kind {kind!r}; expected one of {', '.join(_TYPES)}")
    settings = Settings.load()
    name = topic(workspace or settings.workspace or "", kind)
    return Consumed(bootstrap_servers or settings.bootstrap_servers, name, kind, start, idle_s)
