"""The bytes of a spool segment: frames, what a frame carries, and how reading goes on behind damage.

    frame   = magic 4, length of body u32, crc32 of (length, tag, body) u32, tag u8, body
    body    = length of topic u16, of key u16, of headers u32, topic, key, headers, value
    headers = any number of: length of name u8, of value u32, name, value

All numbers are little-endian. The magic begins with a byte that no UTF-8 text holds, and whatever an event says is UTF-8, so that content
never looks like the begin of a frame. Pure: no files here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Final, NamedTuple

from treadle_schemas.codec import Headers

__all__ = [
    "COMPANION",
    "EVENT",
    "FRAME_BYTES",
    "MAGIC",
    "MAX_BODY_BYTES",
    "Found",
    "Frame",
    "Record",
    "encode_body",
    "encode_headers",
    "frame",
    "frame_around",
    "read_body",
    "scan",
]

MAGIC: Final = b"\xf5tdl"
EVENT: Final = 1
"""Tag of an event that the recorder counts."""
COMPANION: Final = 2
"""Tag of a record that goes with the event behind it (a part of a long context) and is not counted."""
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
"""No frame is longer: a longer length is damage. An event has at most 8 MiB."""

_HEAD: Final = struct.Struct("<4sIIB")
_CHECKED: Final = struct.Struct("<IB")
_LENGTHS: Final = struct.Struct("<HHI")
_HEADER: Final = struct.Struct("<BI")
FRAME_BYTES: Final = _HEAD.size
"""Length of a frame without its body."""


class Record(NamedTuple):
    """What a body carries: one record as Kafka takes it."""

    topic: str
    key: bytes
    headers: Headers
    value: bytes


class Frame(NamedTuple):
    """A whole frame: where it lies, its tag, its body."""

    start: int
    end: int
    tag: int
    body: bytes


class Found(NamedTuple):
    """What `scan` found: whole frames in order, `pos` behind the last thing looked at, how many bytes on the way belong to no frame,
    and how many bytes from `pos` on must be there before reading can go on (0: nothing is missing)."""

    frames: list[Frame]
    pos: int
    damaged_bytes: int
    needed: int


def encode_headers(headers: Iterable[tuple[str, bytes]]) -> bytes:
    """Headers as a body holds them. Such bytes can be joined."""
    parts: list[bytes] = []
    for name, value in headers:
        raw = name.encode()
        parts += (_HEADER.pack(len(raw), len(value)), raw, value)
    return b"".join(parts)


def encode_body(topic: bytes, key: bytes, headers: bytes, value: bytes) -> bytes:
    """The body of one record."""
    return b"".join((_LENGTHS.pack(len(topic), len(key), len(headers)), topic, key, headers, value))


def read_body(body: bytes) -> Record:
    """Raises ValueError (or struct.error, which is no damage but another version's frame) when lengths do not fit."""
    topic_bytes, key_bytes, headers_bytes = _LENGTHS.unpack_from(body)
    key_at = _LENGTHS.size + topic_bytes
    headers_at = key_at + key_bytes
    value_at = headers_at + headers_bytes
    if value_at > len(body):
        raise ValueError(f"a body of {len(body)} bytes claims {value_at}")
    headers: Headers = []
    at = headers_at
    while at < value_at:
        name_bytes, size = _HEADER.unpack_from(body, at)
        at += _HEADER.size
        if at + name_bytes + size > value_at:
            raise ValueError("a header is longer than the headers")
        headers.append((body[at : at + name_bytes].decode(), body[at + name_bytes : at + name_bytes + size]))
        at += name_bytes + size
    return Record(body[_LENGTHS.size : key_at].decode(), body[key_at:headers_at], headers, body[value_at:])


def frame_around(tag: int, topic: bytes, key: bytes, headers: bytes, value: bytes) -> tuple[bytes, bytes]:
    """The frame of one record in two pieces, so that a long value is never copied."""
    front = b"".join((_LENGTHS.pack(len(topic), len(key), len(headers)), topic, key, headers))
    length = len(front) + len(value)
    crc = zlib.crc32(value, zlib.crc32(front, zlib.crc32(_CHECKED.pack(length, tag))))
    return _HEAD.pack(MAGIC, length, crc, tag) + front, value


def frame(tag: int, body: bytes) -> bytes:
    """A whole frame around a body."""
    crc = zlib.crc32(body, zlib.crc32(_CHECKED.pack(len(body), tag)))
    return _HEAD.pack(MAGIC, len(body), crc, tag) + body


def scan(data: bytes, pos: int = 0, *, last: bool = True) -> Found:
    """The whole frames of `data` from `pos` on.

    Bytes that begin no valid frame are skipped up to the next magic with a matching checksum. `last` says that nothing follows `data`:
    then a frame that does not end within it is damaged too; otherwise `needed` says how much more to read.
    """
    frames: list[Frame] = []
    damaged = 0
    size = len(data)
    view = memoryview(data)
    while pos < size:
        if not data.startswith(MAGIC, pos):
            found = data.find(MAGIC, pos)
            # a magic may be cut by the end of the data
            to = found if found >= 0 else size if last else max(pos, size - len(MAGIC) + 1)
            damaged += to - pos
            pos = to
            if found < 0:
                return Found(frames, pos, damaged, 0 if last else FRAME_BYTES)
        body_at = pos + FRAME_BYTES
        if body_at > size:
            if not last:
                return Found(frames, pos, damaged, FRAME_BYTES)
            damaged, pos = damaged + 1, pos + 1
            continue
        _, length, crc, tag = _HEAD.unpack_from(data, pos)
        end = body_at + length
        if length > MAX_BODY_BYTES or (end > size and last):
            damaged, pos = damaged + 1, pos + 1
            continue
        if end > size:
            return Found(frames, pos, damaged, FRAME_BYTES + length)
        if zlib.crc32(view[body_at:end], zlib.crc32(_CHECKED.pack(length, tag))) != crc:
            damaged, pos = damaged + 1, pos + 1
            continue
        frames.append(Frame(pos, end, tag, bytes(view[body_at:end])))
        pos = end
    return Found(frames, pos, damaged, 0)
