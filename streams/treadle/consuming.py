"""`consume`: a workspace's graded rows, progress or releases as typed values, for programs of your own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar, overload

import msgspec
from treadle_schemas.codec import CLOCK, GRADED, PART, PROGRESS, RELEASE, decode
from treadle_schemas.errors import ContractError, FieldError
from treadle_schemas.records import GradedRow, Progress, ReleaseEvent
from treadle_schemas.topics import topic

from treadle._part_memory import PartMemory
from treadle.errors import TopicMissing
from treadle.settings import Settings

if TYPE_CHECKING:
    from treadle.log import Record

__all__ = ["Consumed", "consume"]

T = TypeVar("T")
Kind = Literal["graded", "progress", "releases"]
Start = Literal["beginning", "end"] | Mapping[int, int]

_TYPES: Final[dict[str, tuple[str, type[Any]]]] = {
    "graded": (GRADED, GradedRow),
    "progress": (PROGRESS, Progress),
    "releases": (RELEASE, ReleaseEvent),
}
_POLL_S: Final = 0.5


class Consumed(Generic[T]):
    """An iterator of values, in the order of each partition. It keeps no place for you: store `positions` and start there again.

    Iteration ends after `idle_s` without a record (None: never). It reads committed records, waits out a lost connection, and raises
    ContractError, with topic, partition and offset, at a record that this version cannot read: nothing is skipped in silence.
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
                if event.type == PART and self._wanted == GRADED:
                    self._parts.take(event.data, len(record.value or b""))
                elif event.type not in (self._wanted, CLOCK):
                    raise FieldError("headers.ce_type", f"{event.type} does not belong here")
                value: Any = msgspec.convert(event.data, self._struct) if event.type == self._wanted else None
                if isinstance(value, GradedRow):
                    value = self._parts.whole(value, lambda record=record: self._parts_before(record))  # type: ignore[misc]
            except (ContractError, msgspec.ValidationError) as err:
                raise ContractError(f"{where}: {err}") from err
            self._positions[record.partition] = record.offset + 1
            if value is not None:
                yield value

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
    Long contexts of graded rows are put back from their parts: rows share messages, do not change them. Where the parts came before `start`
    the partition is searched for them from its beginning.
    Raises TopicMissing, LogUnreachable, and ValueError for another kind.
    """
    if kind not in _TYPES:
        raise ValueError(f"no kind {kind!r}; expected one of {', '.join(_TYPES)}")
    settings = Settings.load()
    name = topic(workspace or settings.workspace or "", kind)
    return Consumed(bootstrap_servers or settings.bootstrap_servers, name, kind, start, idle_s)
