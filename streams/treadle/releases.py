"""`Releases`: which release an agent should load, now and from now on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec
from treadle_schemas.codec import RELEASE, decode
from treadle_schemas.errors import SettingError
from treadle_schemas.ids import check_slot, check_workspace
from treadle_schemas.records import ReleaseEvent
from treadle_schemas.topics import topic

from treadle.settings import Settings

if TYPE_CHECKING:
    from treadle.log import Record, TailReader

__all__ = ["Releases"]

POLL_S: Final = 0.5
_MOVES: Final = ("promoted", "rolled_back")


class Releases:
    """Follows `.releases` of one workspace and slot: the events that moved the champion. Reads committed records only.

    The topic tells, the registry decides: events are ordered by the registry's own sequence, and a repeated or late one moves nothing.
    Calls raise LogUnreachable or TopicMissing; a lost connection during `poll` or `watch` is waited out.
    """

    def __init__(
        self,
        workspace: str | None = None,
        slot: str = "main",
        *,
        bootstrap_servers: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        loaded = settings or Settings.load()
        name = workspace or loaded.workspace
        if not name:
            raise SettingError("no workspace: Releases('NAME'), or set TREADLE_WORKSPACE")
        self.workspace = check_workspace(name)
        self.slot = check_slot(slot)
        self._servers = bootstrap_servers or loaded.bootstrap_servers
        self._topic = topic(self.workspace, "releases")
        self._reader: TailReader | None = None
        self._champion: ReleaseEvent | None = None

    def current(self, timeout_s: float = 10.0) -> ReleaseEvent | None:
        """The event that made the present champion (`event.champion` is its id), or None before the first promotion.

        Reads to the end that the topic has now, waiting at most `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        reader = self._reading()
        end = self._end()
        while reader.positions[(self._topic, 0)] < end:
            self._take(reader.poll(POLL_S))
            if time.monotonic() > deadline:
                from treadle.errors import LogUnreachable

                raise LogUnreachable(f"{self._topic}: not read to its end {end} in {timeout_s:g} s")
        return self._champion

    def poll(self, timeout_s: float = 0.0) -> ReleaseEvent | None:
        """The newest event that moved the champion since the last call of `poll` or `current`, or None. Cheap: call it between tasks."""
        before = self._champion
        self._take(self._reading().poll(timeout_s))
        return self._champion if self._champion is not before else None

    def watch(self, timeout_s: float | None = None) -> Iterator[ReleaseEvent]:
        """The event of the present champion, if there is one, then each later move as it happens.

        Where moves follow each other quickly, only the newest of a batch is given. Ends after `timeout_s` without a move (None: never).
        """
        now = self.current()
        if now is not None:
            yield now
        quiet_since = time.monotonic()
        while timeout_s is None or time.monotonic() - quiet_since < timeout_s:
            moved = self.poll(POLL_S if timeout_s is None else min(POLL_S, timeout_s))
            if moved is not None:
                yield moved
                quiet_since = time.monotonic()

    def close(self) -> None:
        """Let go of the connection."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _reading(self) -> TailReader:
        if self._reader is None:
            from treadle.log import TailReader

            self._end()  # raises TopicMissing, where a reader would wait for the topic to appear
            self._reader = TailReader(self._servers, {(self._topic, 0): 0})
            self._champion = None
        return self._reader

    def _end(self) -> int:
        from treadle.log import Admin

        # the high watermark: what was promoted a moment ago may wait for its transaction's marker
        return Admin(self._servers).end_offsets([(self._topic, 0)])[(self._topic, 0)]

    def _take(self, records: list[Record]) -> None:
        for record in records:
            event = decode(record.value, record.headers)
            if event.type != RELEASE:
                continue
            moved = msgspec.convert(event.data, ReleaseEvent)
            newer = self._champion is None or moved.sequence > self._champion.sequence
            if moved.slot == self.slot and moved.event in _MOVES and newer:
                self._champion = moved
