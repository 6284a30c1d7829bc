"""The iterators: `Consumed` for `for`, `AsyncConsumed` for `async for`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from treadle.consuming._feed import Feed, Given

__all__ = ["AsyncConsumed", "Consumed"]

T = TypeVar("T")

_POLL_S: Final = 0.5


class _Waiting:
    """What was read and not yet given, and the positions of what was."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.entries: deque[Given] = deque()
        self.positions = feed.positions
        self._moved = feed.moved
        self._committed: dict[int, int] = {}

    def fill(self, timeout_s: float) -> None:
        """Read on. To be called when nothing waits any more."""
        self.entries.extend(self.feed.poll(timeout_s))
        if self._moved != self.feed.moved:
            # partitions came or went; none of those that went has anything waiting, since reading on is what moves them
            self._moved = self.feed.moved
            now = self.feed.positions
            begun = {number: min(offset, now[number]) for number, offset in self.positions.items() if number in now}
            self.positions = {**self._begin(now), **begun}
            self._committed = {}
        if not self.entries:
            self.positions |= self.feed.positions

    def take(self) -> Any:
        """The next value that waits, or None. Raises ContractError at a record that cannot be read, again and again: it stays there."""
        while self.entries:
            given = self.entries[0]
            if given.error is not None:
                raise given.error
            self.entries.popleft()
            self.positions[given.partition] = given.next_offset
            if given.value is not None:
                return given.value
        self.positions |= self.feed.positions
        return None

    def commit(self, positions: dict[int, int]) -> None:
        """Commit what moved since the last commit."""
        moved = {number: at for number, at in positions.items() if self._committed.get(number) != at}
        self.feed.commit(moved)
        self._committed |= moved

    def _begin(self, now: dict[int, int]) -> dict[int, int]:
        """Where the partitions of this process begin: before the first of their values that waits."""
        first: dict[int, int] = {}
        for given in reversed(self.entries):
            first[given.partition] = given.next_offset - 1
        return {**now, **first}


class Consumed(Generic[T]):
    """An iterator of values, in the order of each partition.

    Iteration ends after `idle_s` without a record (None: never), counted from Kafka's first answer for each partition. It reads committed
    records, waits out a lost connection, and raises ContractError, with topic, partition and offset, at a record that this version cannot
    read: nothing is skipped in silence.

    Of interactions and outcomes, which anybody may write, an unreadable one is logged and counted in `refused`: the join makes it a dead
    letter. The same interaction may come twice. To be used from one thread at a time.
    """

    def __init__(self, feed: Feed, idle_s: float | None) -> None:
        self._feed = feed
        self._waiting = _Waiting(feed)
        self._idle_s = idle_s

    @property
    def positions(self) -> dict[int, int]:
        """By partition the offset after the last value given: `consume(..., start=positions)` goes on there."""
        return dict(self._waiting.positions)

    @property
    def refused(self) -> int:
        """Records among the interactions or outcomes that were none."""
        return self._feed.refused

    def commit(self) -> None:
        """With a name: everything given so far is done with, and is not given to that name again.

        Raises LogError where the partitions are another process's by now, which gets those values again; ValueError without a name.
        """
        self._waiting.commit(self._waiting.positions)

    def batch(self, timeout_s: float = 1.0, limit: int = 1000) -> list[T]:
        """All that is there now, up to `limit` values; waits up to `timeout_s` for the first one, and is empty without it."""
        deadline = time.monotonic() + timeout_s
        out: list[T] = []
        while not out:
            if not self._waiting.entries:
                self._waiting.fill(max(0.0, deadline - time.monotonic()))
            # an unreadable record is raised when it is the first
            while len(out) < limit and not (out and self._at_error()):
                value = self._waiting.take()
                if value is None:
                    break
                out.append(value)
            if time.monotonic() >= deadline:
                break
        return out

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        quiet_since = time.monotonic()
        while True:
            value: T | None = self._waiting.take()
            if value is not None:
                return value
            if not self._feed.ready:
                quiet_since = time.monotonic()
            if self._idle_s is not None and time.monotonic() - quiet_since > self._idle_s:
                raise StopIteration
            self._waiting.fill(_POLL_S if self._idle_s is None else min(_POLL_S, self._idle_s))

    def close(self) -> None:
        """Let go of the connection; what was not committed comes again."""
        self._feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _at_error(self) -> bool:
        entries = self._waiting.entries
        return bool(entries) and entries[0].error is not None


class AsyncConsumed(Generic[T]):
    """`Consumed` for `async for`: Kafka is asked in a thread, values are given in the event loop.

    The connection is made at the first use. A cancelled wait loses nothing: what it was waiting for is given to the next one.
    """

    def __init__(self, open_: Callable[[], Consumed[T]]) -> None:
        self._open = open_
        self._inner: Consumed[T] | None = None
        self._reading: asyncio.Future[Iterator[T] | None] | None = None
        self._given: dict[int, int] = {}
        """The positions of what was given in the event loop: a cancelled wait may have read further."""

    @property
    def positions(self) -> dict[int, int]:
        """As Consumed.positions; empty before the first use."""
        return dict(self._given)

    @property
    def refused(self) -> int:
        """As Consumed.refused."""
        return 0 if self._inner is None else self._inner.refused

    async def commit(self) -> None:
        """As Consumed.commit."""
        inner = await self._opened()
        await asyncio.to_thread(inner._waiting.commit, self.positions)

    async def batch(self, timeout_s: float = 1.0, limit: int = 1000) -> list[T]:
        """As Consumed.batch."""
        found = await self._in_thread(lambda inner: iter(inner.batch(timeout_s, limit)))
        return [] if found is None else list(found)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        found = await self._in_thread(_next)
        if found is None:
            raise StopAsyncIteration
        return next(found)

    async def close(self) -> None:
        """As Consumed.close; waits for a reading that is under way."""
        if self._reading is not None:
            await asyncio.wait([self._reading])
        if self._inner is not None:
            await asyncio.to_thread(self._inner.close)

    async def __aenter__(self) -> Self:
        await self._opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _opened(self) -> Consumed[T]:
        if self._inner is None:
            self._inner = await asyncio.to_thread(self._open)
            self._given = self._inner.positions
        return self._inner

    async def _in_thread(self, ask: Callable[[Consumed[T]], Iterator[T] | None]) -> Iterator[T] | None:
        inner = await self._opened()
        if self._reading is None and inner._waiting.entries:
            found = ask(inner)  # it is here already: no thread for it
        else:
            if self._reading is None:
                self._reading = asyncio.ensure_future(asyncio.to_thread(ask, inner))
            # shielded: a thread cannot be stopped, and what it brings must not be lost
            try:
                found = await asyncio.shield(self._reading)
            finally:
                if self._reading.done():
                    self._reading = None
        self._given = inner.positions
        return found


def _next(inner: Consumed[T]) -> Iterator[T] | None:
    for value in inner:
        return iter((value,))
    return None
