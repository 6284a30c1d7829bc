"""Streams that pass through: the host gets every chunk as it came, the interaction what they amount to."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from treadle._answers import Chunks

if TYPE_CHECKING:
    from treadle.interactions import InteractionScope

__all__ = ["TRUNCATED", "AsyncStream", "Listener", "Stream"]

T = TypeVar("T")
_LOG = logging.getLogger("treadle")

TRUNCATED: Final = "truncated: the stream was left before its end"
"""The error of an interaction whose stream the host did not read to its end."""


class Listener:
    """Hears one stream, and tells its interaction once what it amounts to. Raises nothing that is not the recorder's to raise."""

    def __init__(self, scope: InteractionScope) -> None:
        self._scope = scope
        self._chunks: Chunks | None = Chunks()
        self._begun = False
        self.over = False

    def hear(self, chunk: Any) -> None:
        """One chunk went by."""
        if self._chunks is None:
            return
        try:
            if self._chunks.feed(chunk) and not self._begun:
                self._begun = True
                self._scope.stream_began()
        except Exception as err:  # whatever a chunk is, the host gets it
            self._chunks = None
            self._scope.trouble(err)

    def end(self, problem: BaseException | str | None) -> None:
        """The stream is over: None at its end, otherwise why it ended before."""
        if self.over:
            return
        self.over = True
        reply = None
        if self._chunks is not None:
            try:
                if problem is None:
                    self._chunks.end()
                reply = self._chunks.reply()
            except Exception as err:
                self._scope.trouble(err)
        if reply is not None:
            if not reply.complete:
                problem = problem or TRUNCATED
            elif problem == TRUNCATED:
                problem = None  # a host may well stop at the last event
            if problem is not None:
                reply.error = None  # what a broken stream lacks is no error of the server
        self._scope.stream_ended(self, reply, problem)

    def dropped(self) -> None:
        """Nobody holds the stream any more. This may be the garbage collector speaking, in the midst of anything."""
        if self.over:
            return
        if not self._scope.exited:
            self._end_quietly()  # the end of the `with` block records
            return
        try:
            # not here: this thread may hold a lock that recording needs
            threading.Thread(target=self._end_quietly, name="treadle-dropped-stream", daemon=True).start()
        except RuntimeError:  # the interpreter ends
            self._end_quietly()

    def _end_quietly(self) -> None:
        try:
            self.end(TRUNCATED)
        except Exception:  # under pytest it raises; here nobody could catch it
            _LOG.warning("a dropped stream could not be recorded", exc_info=True)


class _Proxy(Generic[T]):
    def __init__(self, source: Any, listener: Listener) -> None:
        self._source = source
        self._listener = listener

    def __getattr__(self, name: str) -> Any:
        # what else a client's stream has: response, get_final_message()
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)

    def __del__(self) -> None:
        listener = self.__dict__.get("_listener")
        if listener is not None:
            listener.dropped()


class Stream(_Proxy[T], Iterator[T]):
    """A stream that the host iterates in place of the client's."""

    def __init__(self, source: Iterable[T], listener: Listener) -> None:
        super().__init__(source, listener)
        self._iterator: Iterator[T] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        try:
            if self._iterator is None:
                self._iterator = iter(self._source)
            chunk = next(self._iterator)
        except StopIteration:
            self._listener.end(None)
            raise
        except BaseException as err:
            self._listener.end(err)
            raise
        self._listener.hear(chunk)
        return chunk

    def close(self) -> None:
        """Close the client's stream too."""
        try:
            for holder in (self._source, self._iterator):
                close = getattr(holder, "close", None)
                if close is not None:
                    close()
                    break
        finally:
            self._listener.end(TRUNCATED)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncStream(_Proxy[T], AsyncIterator[T]):
    """A stream that the host iterates with `async for` in place of the client's."""

    def __init__(self, source: AsyncIterable[T], listener: Listener) -> None:
        super().__init__(source, listener)
        self._iterator: AsyncIterator[T] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            if self._iterator is None:
                self._iterator = aiter(self._source)
            chunk = await anext(self._iterator)
        except StopAsyncIteration:
            self._listener.end(None)
            raise
        except BaseException as err:
            self._listener.end(err)
            raise
        self._listener.hear(chunk)
        return chunk

    async def aclose(self) -> None:
        """Close the client's stream too."""
        try:
            for holder in (self._source, self._iterator):
                close = getattr(holder, "aclose", None) or getattr(holder, "close", None)
                if close is not None:
                    await close()
                    break
        finally:
            self._listener.end(TRUNCATED)

    async def close(self) -> None:
        """As `aclose`, by the name that OpenAI's and Anthropic's streams have for it."""
        await self.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
