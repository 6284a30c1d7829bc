"""A response body as it came over the wire: decompressed, and cut into server-sent events."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from treadle_schemas.canonical import loads
from treadle_schemas.errors import ContractError

__all__ = ["Unreadable", "decoded", "events"]


class Unreadable(ValueError):
    """The body has an encoding that nothing here can read."""


def decoded(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """The chunks without their content-encoding, one for one (an empty one where a piece decodes to nothing yet).

    Raises Unreadable for an encoding that is not known or not installed, and for bytes that are not what it says.
    """
    steps = [_decoder(name.strip().lower()) for name in reversed(encoding.split(",")) if name.strip()]
    try:
        for chunk in chunks:
            for step in steps:
                chunk = step(chunk)
            yield chunk
    except Exception as err:  # each decoder has an error of its own
        raise Unreadable(f"the body is not {encoding}: {err}") from None


def events(chunks: Iterable[bytes]) -> Iterator[tuple[int, str | None, Any]]:
    """The events of a stream: the index of the chunk that completed it, its name, and its data; None stands for [DONE].

    Data that is not JSON is left out: nothing that a model said.
    """
    buffer = b""
    for index, chunk in enumerate(chunks):
        if not chunk:
            continue
        buffer = (buffer + chunk).replace(b"\r\n", b"\n")
        if buffer.endswith(b"\r"):  # perhaps half of \r\n
            continue
        *complete, buffer = buffer.split(b"\n\n")
        for block in complete:
            yield from _event(index, block)
    if buffer.strip():
        yield from _event(-1, buffer)


def _event(index: int, block: bytes) -> Iterator[tuple[int, str | None, Any]]:
    name: str | None = None
    data: list[bytes] = []
    for line in block.split(b"\n"):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"event:"):
            name = line[6:].strip().decode(errors="replace")
    text = b"\n".join(data)
    if not text:
        return
    if text.strip() == b"[DONE]":
        yield index, name, None
        return
    try:
        value = loads(text)
    except ContractError:
        return
    yield index, name, value


def _decoder(name: str) -> Callable[[bytes], bytes]:
    if name == "identity":
        return bytes
    if name in ("gzip", "x-gzip"):
        return zlib.decompressobj(47).decompress
    if name == "deflate":
        return _Deflate()
    # the HTTP client announces these two only where their package is installed
    try:
        if name == "br":
            try:
                brotli = importlib.import_module("brotli")
            except ImportError:
                brotli = importlib.import_module("brotlicffi")
            decompressor = brotli.Decompressor()
            process: Callable[[bytes], bytes] = getattr(decompressor, "process", None) or decompressor.decompress
            return process
        if name == "zstd":
            stream: Callable[[bytes], bytes] = (
                importlib.import_module("zstandard").ZstdDecompressor().decompressobj().decompress
            )
            return stream
    except ImportError:
        pass
    raise Unreadable(f"content-encoding {name} cannot be read here")


class _Deflate:
    """With a zlib header, as the standard says, or without, as some servers send it."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj()
        self._fresh = True

    def __call__(self, chunk: bytes) -> bytes:
        try:
            return self._inner.decompress(chunk)
        except zlib.error:
            if not self._fresh:
                raise
            self._inner = zlib.decompressobj(-zlib.MAX_WBITS)
            return self._inner.decompress(chunk)
        finally:
            self._fresh = False
