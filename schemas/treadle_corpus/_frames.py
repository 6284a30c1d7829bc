"""Files of frames: what is appended is found again whole, or not at all.

frame = length of payload (4 bytes, little endian), CRC-32 of payload (4 bytes), payload
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from typing import Final

__all__ = ["HEADER_BYTES", "frame", "frames", "whole"]

_HEADER: Final = struct.Struct("<II")
HEADER_BYTES: Final = _HEADER.size


def frame(payload: bytes) -> bytes:
    """A payload as it is stored."""
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def whole(data: bytes) -> bytes | None:
    """The payload of one frame, or None where it is not what was written."""
    found = next(frames(data), None)
    return None if found is None or found[1] != len(data) else data[HEADER_BYTES:]


def frames(data: bytes | memoryview | mmap.mmap, start: int = 0) -> Iterator[tuple[int, int]]:
    """(begin, end) of each frame from `start` on, up to the end or the first one that is cut or changed."""
    view = memoryview(data)
    while start + HEADER_BYTES <= len(view):
        length, crc = _HEADER.unpack_from(view, start)
        end = start + HEADER_BYTES + length
        if end > len(view) or zlib.crc32(view[start + HEADER_BYTES : end]) != crc:
            return
        yield start, end
        start = end
