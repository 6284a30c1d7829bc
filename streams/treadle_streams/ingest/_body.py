"""Bodies, bounded: in size before and after decompression, in time, and all of them together in memory."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.requests import ClientDisconnect, Request

from treadle_streams.ingest._settings import IngestSettings
from treadle_streams.ingest.errors import Malformed, NotNow, TooLarge, TooSlow, UnsupportedType

__all__ = ["Bodies"]

STEP_BYTES: Final = 256 * 1024
"""Decompressed at a time: a bomb is noticed after so much more than the limit."""
_WBITS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class Bodies:
    """Reads the bodies of all requests of one receiver, in its event loop."""

    def __init__(self, settings: IngestSettings) -> None:
        self._limit = settings.body_bytes
        self._most_held = settings.held_bytes
        self._wait_s = settings.body_s
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The decompressed body. Its bytes count as held until the block ends.

        Raises TooLarge, TooSlow, UnsupportedType, Malformed for what does not decompress, and NotNow when all bodies
        together are too many.
        """
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "", *_WBITS):
            raise UnsupportedType(
                f"content encoding {encoding[:40]!r} is not read here", hint="use gzip, deflate or none"
            )
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limit:
            raise self._too_large()
        taken: list[int] = []
        try:
            body = await self._arrived(request, _WBITS.get(encoding), taken)
            yield body
        finally:
            self._held -= sum(taken)

    async def _arrived(self, request: Request, wbits: int | None, taken: list[int]) -> bytes:
        try:
            async with asyncio.timeout(self._wait_s):
                return await self._collect(request, wbits, taken)
        except TimeoutError:
            raise TooSlow(f"the body did not come within {self._wait_s:g} s") from None
        except ClientDisconnect:
            raise Malformed("the client went away before its body was complete") from None

    async def _collect(self, request: Request, wbits: int | None, taken: list[int]) -> bytes:
        inflate = None if wbits is None else _Inflate(wbits)
        pieces: list[bytes] = []
        raw = size = 0
        async for chunk in request.stream():
            raw += len(chunk)
            if raw > self._limit:
                raise self._too_large()
            for piece in (chunk,) if inflate is None else inflate.feed(chunk):
                size += len(piece)
                if size > self._limit:
                    raise self._too_large()
                self._take(len(piece), taken)
                pieces.append(piece)
        if inflate is not None:
            inflate.finish()
        return b"".join(pieces)

    def _take(self, size: int, taken: list[int]) -> None:
        if self._held + size > self._most_held:
            raise NotNow("the receiver has too many requests at once", code="busy", retry_after_s=1)
        self._held += size
        taken.append(size)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body has more than {self._limit} bytes", hint="send it in several requests")


class _Inflate:
    """Decompresses in steps; a gzip body may have several members."""

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._decoder = zlib.decompressobj(wbits)
        self._fed = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The output of some more input. Raises Malformed."""
        while data:
            if self._decoder.eof:
                self._decoder = zlib.decompressobj(self._wbits)
            self._fed = True
            out = b"\0" * STEP_BYTES
            # a full step may have left output behind although all input is consumed
            while len(out) == STEP_BYTES or (data and not self._decoder.eof):
                try:
                    out = self._decoder.decompress(data, STEP_BYTES)
                except zlib.error:
                    raise Malformed("the body does not decompress", hint="is the content encoding right?") from None
                data = self._decoder.unconsumed_tail
                yield out
            data = self._decoder.unused_data

    def finish(self) -> None:
        """The input is over. Raises Malformed where the output is not."""
        if self._fed and not self._decoder.eof:
            raise Malformed("the compressed body ends too early")
