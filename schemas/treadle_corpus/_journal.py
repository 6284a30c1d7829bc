"""The journal: everything that changed, in order, as frames of a file that only grows. The state of a corpus is the fold of them.

    PATH/index/N.log   begins with the whole state, then the changes of each commit

A commit is one frame: rows, parts and control together, or nothing. A version is a length of the journal and the SHA-256 of its bytes up to
there, so it cannot change, whatever comes after it. When changes of known rows take three times the room of the rows themselves, the next
journal begins with the state of then: what a reader of any version reads is at most some four times the state, however many versions
there are, and what is written again is at most a third of the changes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from treadle_corpus import _disk
from treadle_corpus._control import Control
from treadle_corpus._frames import HEADER_BYTES, frame, frames
from treadle_corpus._parts import PartMeta
from treadle_corpus._rows import RowMeta
from treadle_corpus.errors import CorpusDamaged
from treadle_corpus.manifest import Manifest

__all__ = ["Frame", "Journal", "bytes_of_rows", "decoded", "journals", "prune", "read_journal"]

_FILE: Final = re.compile(r"([0-9]{6})\.log")


class Frame(msgspec.Struct, array_like=True, kw_only=True, frozen=True):
    """One commit."""

    kind: Literal["rows", "base", "fold", "decide", "version"]
    """`rows` and `base` are the state that a journal begins with, `base` ends it."""
    control: Control
    bodies: int
    """Bodies there are after it."""
    new: list[tuple[bytes, bytes, RowMeta]] = []
    """Rows seen for the first time, with episode and interaction id in UTF-8; their places follow those of the rows before."""
    changed: list[tuple[int, int, list[Any]]] = []
    """Of rows that are known: place, a bit for each field of RowMeta that changed, and the values of these."""
    parts: list[tuple[bytes, str, int, PartMeta]] = []
    """Parts with episode, hash and body."""
    manifest: Manifest | None = None
    """Of the version that this commit finishes."""


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Frame)


class Journal:
    """The journal that a writer goes on with."""

    def __init__(self, path: Path, number: int, file: _disk.Appended, total: Any, rows: float) -> None:
        """`rows` are the bytes that say something new, not of a known row: see `bytes_of_rows`."""
        self._path = path
        self.number = number
        self._file = file
        self._total = total
        self._rows = rows

    @classmethod
    def create(cls, path: Path, number: int, base: Iterable[Frame]) -> Journal:
        """Begin a journal with a state. After a crash it is there as a whole, or not at all. Raises CorpusFull, CorpusUnwritable."""
        data = b"".join(frame(_encode(f)) for f in base)
        file = journal_file(path, number)
        _disk.create(file, data)
        return cls(path, number, _disk.Appended(file, len(data)), hashlib.sha256(data), len(data))

    @classmethod
    def go_on(cls, path: Path, number: int, data: bytes, rows: float) -> Journal:
        """Go on after `data`, the bytes to keep; what the file has beyond them is cut off. Raises CorpusUnwritable."""
        return cls(path, number, _disk.Appended(journal_file(path, number), len(data)), hashlib.sha256(data), rows)

    @property
    def size(self) -> int:
        """Bytes of all commits."""
        return self._file.size

    @property
    def outgrown(self) -> bool:
        """Have the changes outgrown the rows?"""
        return self._file.size - self._rows > max(ROTATE_FACTOR * self._rows, ROTATE_BYTES)

    def digest(self) -> str:
        """SHA-256 of all bytes, lower-case hex."""
        return str(self._total.hexdigest())

    def append(self, commit: Frame) -> None:
        """Commit. On disk for sure only after `sync`. Raises CorpusFull, CorpusUnwritable; nothing is committed then."""
        data = frame(_encode(commit))
        self._file.append(data)
        self._total.update(data)
        self._rows += bytes_of_rows(commit, len(data))

    def sync(self) -> None:
        """All commits are on disk when this returns. Raises CorpusFull, CorpusUnwritable."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


ROTATE_BYTES: Final = 1024 * 1024
"""Changes of less are not worth a new journal: folding them takes some 50 ms."""


ROTATE_FACTOR: Final = 3


def bytes_of_rows(commit: Frame, size: int) -> float:
    """How many of the bytes of a commit would be in a state that a journal begins with: those of rows and parts that are new."""
    new = len(commit.new) + len(commit.parts)
    return size if commit.kind in ("rows", "base") else size * new / max(1, new + len(commit.changed))


def journal_file(path: Path, number: int) -> Path:
    """Where a journal lies."""
    return path / "index" / f"{number:06d}.log"


def journals(path: Path) -> list[int]:
    """Journals there are, ascending."""
    try:
        names = os.listdir(path / "index")
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))


def prune(path: Path, needed: Collection[int], among: Collection[int] | None = None) -> None:
    """Remove the journals that no version needs, all or those `among` them. Raises CorpusUnwritable."""
    for number in journals(path) if among is None else among:
        if number not in needed:
            _disk.remove(journal_file(path, number))


def read_journal(path: Path, number: int, size: int | None = None) -> bytes:
    """The first `size` bytes of a journal, or all. Raises CorpusDamaged."""
    file = journal_file(path, number)
    where = f"index/{file.name}"
    try:
        with file.open("rb") as opened:
            data = opened.read(-1 if size is None else size)
    except OSError as err:
        raise CorpusDamaged(path, f"the file {where} cannot be read ({err.strerror})") from err
    if size is not None and len(data) < size:
        raise CorpusDamaged(path, f"the file {where} has {len(data)} bytes, and {size} were written")
    return data


def decoded(path: Path, data: bytes) -> Iterator[tuple[int, Frame]]:
    """(end, commit) of each whole frame. Raises CorpusDamaged where one cannot be understood."""
    for begin, end in frames(data):
        try:
            yield end, _DECODER.decode(_decompressed(data[begin + HEADER_BYTES : end]))
        except (msgspec.DecodeError, ValueError) as err:
            raise CorpusDamaged(path, f"a commit of the journal cannot be read ({err})") from err


def _encode(commit: Frame) -> bytes:
    from zstandard import ZstdCompressor

    return bytes(ZstdCompressor(level=3).compress(_ENCODER.encode(commit)))


def _decompressed(payload: bytes) -> bytes:
    from zstandard import ZstdDecompressor, ZstdError

    try:
        return bytes(ZstdDecompressor().decompress(payload))
    except ZstdError as err:
        raise ValueError(str(err)) from None
