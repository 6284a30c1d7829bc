"""Bodies: the bulk of rows and parts, each written once, numbered in order of arrival, compressed, never changed.

    PATH/bodies/tail-N.log   the newest ones, from number N on: frames of (name, packed body)
    PATH/bodies/N/           a segment: a Deeplake dataset of bodies from number N on
    PATH/bodies/N.json       the seal of that segment: how many bodies, and size and SHA-256 of each file

New bodies go to the tail. A tail that has grown is made a segment in one go:

1. write the dataset to N.new, read it back and compare, sync its files
2. give it its name
3. write the seal: from here on the segment is what is read
4. remove the tail

Until 3 the tail has everything; a segment without a seal is thrown away. So Deeplake, which syncs nothing, keeps no checksums, says OK
on a full disk and dies of empty files, never holds the only copy of anything, and reads only files whose sizes are those of the seal.
Numbers say nothing of files, so versions stay what they are while tails become segments under them.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import struct
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from treadle_corpus import _disk
from treadle_corpus._frames import HEADER_BYTES, frame, frames
from treadle_corpus.errors import CorpusDamaged

if TYPE_CHECKING:
    from treadle_corpus._store import Segment

__all__ = ["Bodies", "BodyWriter", "Packed", "check_segments", "pack", "unpack"]

SEGMENT_BODIES: Final = 4096
"""A tail of as many bodies becomes a segment: reading a row from a dataset costs 3 us, opening one 3 ms."""
SEGMENT_BYTES: Final = 32 * 1024 * 1024
"""Or of as many bytes, so that it can be held in memory once."""
_OPEN_SEGMENTS: Final = 32
_LENGTHS: Final = struct.Struct("<II")
_SEAL: Final = re.compile(r"([0-9]{12})\.json")
_TAIL: Final = re.compile(r"tail-([0-9]{12})\.log")


class Packed(NamedTuple):
    """A body: the bulk of a row, and head and tail of its line, empty where parts belong in them."""

    head: bytes
    tail: bytes
    bulk: bytes


class Entry(NamedTuple):
    """A body as the tail holds it: the stored key of its row or part, and the packed body."""

    name: bytes
    packed: bytes


class Seal(msgspec.Struct, frozen=True):
    """What a segment holds."""

    first: int
    bodies: int
    files: dict[str, tuple[int, str]]
    """Size and SHA-256 of each file."""


def pack(body: Packed) -> bytes:
    """Compressed, with a checksum. Head and bulk say nearly the same, so together they take little more room than one."""
    lengths = _LENGTHS.pack(len(body.head), len(body.tail))
    return bytes(_zstd().compress(lengths + body.head + body.tail + body.bulk))


def unpack(packed: bytes) -> Packed:
    """Raises ValueError for what is not whole."""
    import zstandard

    try:
        data = _zstd().decompress(packed)
    except zstandard.ZstdError as err:
        raise ValueError(f"has another checksum than when it was written ({err})") from None
    head, tail = _LENGTHS.unpack_from(data)
    bulk = _LENGTHS.size + head + tail
    return Packed(data[_LENGTHS.size : _LENGTHS.size + head], data[bulk - tail : bulk], data[bulk:])


class _Zstd(threading.local):
    """Contexts of zstandard, which are not to be shared by threads."""

    def __init__(self) -> None:
        import zstandard

        self.compress = zstandard.ZstdCompressor(level=1, write_checksum=True).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


@cache
def _zstd() -> _Zstd:
    return _Zstd()


class Bodies:
    """All bodies of a corpus, to read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = path / "bodies"
        self._seals: dict[int, Seal] = {}
        self._firsts: list[int] = []
        self._open: OrderedDict[int, Segment] = OrderedDict()
        self._tail: _Tail | None = None

    def read(self, numbers: Sequence[int]) -> list[Packed]:
        """Bodies by number, in the order asked for. Raises CorpusDamaged."""
        found: dict[int, bytes] = {}
        by_segment: dict[int, list[int]] = {}
        for number in numbers:
            by_segment.setdefault(self._segment_of(number), []).append(number)
        for first, asked in by_segment.items():
            if first < 0:
                tail = self._tail_with(max(asked))
                if tail is None or min(asked) < tail.first:  # some of it became a segment meanwhile
                    self.refresh()
                    return self.read(numbers)
                found.update((number, tail.packed(number)) for number in asked)
            else:
                rows = self._segment(first).bodies([number - first for number in asked])
                found.update(zip(asked, rows, strict=True))
        return [self._unpacked(number, found[number]) for number in numbers]

    def bulks(self, numbers: Sequence[int]) -> list[bytes]:
        """The bulks alone. Raises CorpusDamaged."""
        return [body.bulk for body in self.read(numbers)]

    def _unpacked(self, number: int, packed: bytes) -> Packed:
        try:
            return unpack(packed)
        except (ValueError, struct.error) as err:
            raise CorpusDamaged(self.path, f"body {number} {err}") from err

    def _segment_of(self, number: int) -> int:
        """The first number of the segment that has it; -1 where that is the tail."""
        for _ in range(2):
            place = bisect_right(self._firsts, number) - 1
            if place >= 0 and number < self._firsts[place] + self._seals[self._firsts[place]].bodies:
                return self._firsts[place]
            if self._tail is not None and self._tail.first <= number < self._tail.end:
                return -1
            self.refresh()
        return -1

    def refresh(self) -> None:
        """Look again which segments there are. Raises CorpusDamaged."""
        for name in _names(self._folder):
            match = _SEAL.fullmatch(name)
            if match and int(match[1]) not in self._seals:
                self._seals[int(match[1])] = _read_seal(self.path, self._folder / name)
        self._firsts = sorted(self._seals)

    def _segment(self, first: int) -> Segment:
        if first in self._open:
            self._open.move_to_end(first)
            return self._open[first]
        from treadle_corpus._store import Segment

        check_sizes(self.path, self._seals[first])
        opened = Segment(_segment_folder(self._folder, first), self._seals[first].bodies)
        self._open[first] = opened
        if len(self._open) > _OPEN_SEGMENTS:
            self._open.popitem(last=False)
        return opened

    def _tail_with(self, number: int) -> _Tail | None:
        if self._tail is None or not self._tail.first <= number < self._tail.end:
            self._tail = _newest_tail(self.path, self._folder, number)
        return self._tail


class _Tail:
    """The tail file as it was when it was opened. It can be read on after it was removed."""

    def __init__(self, path: Path, file: Path, first: int) -> None:
        self._path = path
        self.file = file
        self.first = first
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            self._data: mmap.mmap | bytes = mmap.mmap(opened.fileno(), size, prot=mmap.PROT_READ) if size else b""
        self._places = list(frames(self._data))

    @property
    def end(self) -> int:
        return self.first + len(self._places)

    @property
    def size(self) -> int:
        """Bytes of the whole frames."""
        return self._places[-1][1] if self._places else 0

    def entry(self, number: int) -> Entry:
        begin, end = self._places[number - self.first]
        return decode_entry(bytes(self._data[begin + HEADER_BYTES : end]))

    def packed(self, number: int) -> bytes:
        return self.entry(number).packed


_ENTRY: Final = msgspec.msgpack.Decoder(tuple[bytes, bytes])
_PLAIN: Final = msgspec.msgpack.Encoder()


def decode_entry(payload: bytes) -> Entry:
    """Raises msgspec.DecodeError."""
    return Entry(*_ENTRY.decode(payload))


def _newest_tail(path: Path, folder: Path, number: int) -> _Tail | None:
    """The tail with that body; None where a segment has it by now. Raises CorpusDamaged."""
    for name in _names(folder):
        match = _TAIL.fullmatch(name)
        if match is None or int(match[1]) > number:
            continue
        try:
            tail = _Tail(path, folder / name, int(match[1]))
        except FileNotFoundError:
            continue
        if number < tail.end:
            return tail
    for name in _names(folder):
        match = _SEAL.fullmatch(name)
        if match:
            seal = _read_seal(path, folder / name)
            if seal.first <= number < seal.first + seal.bodies:
                return None
    raise CorpusDamaged(path, f"body {number} is in no file of bodies/")


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def _segment_folder(folder: Path, first: int) -> Path:
    return folder / f"{first:012d}"


def _read_seal(path: Path, file: Path) -> Seal:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Seal)
    except (OSError, msgspec.DecodeError) as err:
        raise CorpusDamaged(path, f"the seal bodies/{file.name} cannot be read ({err})") from None


def check_sizes(path: Path, seal: Seal) -> None:
    """Is each sealed file there, in its size? Raises CorpusDamaged naming the first that is not."""
    folder = _segment_folder(path / "bodies", seal.first)
    for name, (size, _) in seal.files.items():
        where = f"bodies/{folder.name}/{name}"
        try:
            found = os.stat(folder / name).st_size
        except OSError:
            raise CorpusDamaged(path, f"the file {where} is gone") from None
        if found != size:
            raise CorpusDamaged(path, f"the file {where} has {found} bytes, and {size} were written")


def check_segments(path: Path, bodies: int) -> None:
    """Is each file of the segments with the first `bodies` bodies what was written? Reads all of them. Raises CorpusDamaged."""
    for name in _names(path / "bodies"):
        if not _SEAL.fullmatch(name):
            continue
        seal = _read_seal(path, path / "bodies" / name)
        if seal.first >= bodies:
            continue
        check_sizes(path, seal)
        folder = _segment_folder(path / "bodies", seal.first)
        for file, (_, sha256) in seal.files.items():
            if _sha256(folder / file) != sha256:
                raise CorpusDamaged(path, f"the file bodies/{folder.name}/{file} is not what was written")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class BodyWriter(Bodies):
    """All bodies of a corpus, to read and to add to."""

    def __init__(self, path: Path, bodies: int, whole_from: int) -> None:
        """Go on after the first `bodies` bodies. Whatever was added after them is cut off, and interrupted sealings are undone.

        Raises CorpusDamaged where one of them is not there, or one from `whole_from` on is not whole.
        """
        super().__init__(path)
        self._folder.mkdir(exist_ok=True)
        self.refresh()
        sealed = max((s.first + s.bodies for s in self._seals.values()), default=0)
        self._check_run(bodies)
        for name in _names(self._folder):
            file = self._folder / name
            tail = _TAIL.fullmatch(name)
            unsealed = file.is_dir() and not (name.isdecimal() and int(name) in self._seals)
            if unsealed or name.endswith(".new") or (tail and int(tail[1]) < sealed):
                _disk.remove(file)
        self.end = bodies
        self._first = sealed
        self._unsynced = False
        self._begin_tail(whole_from)

    def _check_run(self, bodies: int) -> None:
        end = 0
        for first in self._firsts:
            if first != end:
                raise CorpusDamaged(self.path, f"bodies {end} to {first - 1} are in no segment")
            end = first + self._seals[first].bodies
            if first < bodies:
                check_sizes(self.path, self._seals[first])

    def _begin_tail(self, whole_from: int) -> None:
        file = self._folder / f"tail-{self._first:012d}.log"
        size = 0
        if self.end < self._first:
            # a torn head went back to its version while what it had folded was sealed: the rest of that segment is never used
            self.end = self._first
        if file.exists():
            found = _Tail(self.path, file, self._first)
            if found.end < self.end:
                raise CorpusDamaged(self.path, f"body {found.end} is not whole in bodies/{file.name}")
            if self.end > self._first:
                size = found._places[self.end - self._first - 1][1]
            for number in range(max(whole_from, self._first), self.end):
                self._unpacked(number, found.packed(number))
        elif self.end > self._first:
            raise CorpusDamaged(self.path, f"the file bodies/{file.name} is gone")
        self._tail = None
        self._file = _disk.Appended(file, size)
        self._places = list(frames(file.read_bytes())) if size else []

    def close(self) -> None:
        """Close the tail."""
        self._file.close()

    def add(self, entries: Iterable[Entry]) -> int:
        """Add bodies; the number of the first. Nothing is on disk for sure before `sync`. Raises CorpusFull, CorpusUnwritable."""
        first, at = self.end, self._file.size
        places, data = [], []
        for entry in entries:
            framed = frame(_PLAIN.encode(tuple(entry)))
            places.append((at, at + len(framed)))
            at += len(framed)
            data.append(framed)
        if data:
            self._file.append(b"".join(data))
            self._places += places
            self.end += len(places)
            self._unsynced = True
        return first

    def sync(self) -> None:
        """All bodies are on disk when this returns. Raises CorpusFull, CorpusUnwritable."""
        if self._unsynced:
            self._file.sync()
            self._unsynced = False

    def read(self, numbers: Sequence[int]) -> list[Packed]:
        """Bodies by number, in the order asked for. Raises CorpusDamaged."""
        sealed = [number for number in numbers if number < self._first]
        found = dict(zip(sealed, super().read(sealed), strict=True)) if sealed else {}
        return [
            found[number] if number < self._first else self._unpacked(number, self._entry(number).packed)
            for number in numbers
        ]

    def _entry(self, number: int) -> Entry:
        begin, end = self._places[number - self._first]
        try:
            return decode_entry(self._file.read(end - begin, begin)[HEADER_BYTES:])
        except msgspec.DecodeError as err:
            raise CorpusDamaged(self.path, f"body {number} in {self._file.path.name} is not what was written") from err

    @property
    def ripe(self) -> bool:
        """Has the tail grown enough to become a segment?"""
        return len(self._places) >= SEGMENT_BODIES or self._file.size >= SEGMENT_BYTES

    def seal_tail(self, write: Callable[[Path, Sequence[bytes], Sequence[bytes]], None]) -> None:
        """Make the tail a segment. Raises CorpusFull, CorpusUnwritable; the tail then goes on.

        `write` writes names and bodies as a dataset and has compared what can be read of it. The numbers are those of the module's text.
        """
        if not self._places:
            return
        first = self._first
        folder = _segment_folder(self._folder, first)
        fresh = folder.with_suffix(".new")
        for left in (fresh, folder):  # of a sealing that failed
            _disk.remove(left)
        entries = [self._entry(number) for number in range(first, self.end)]
        try:
            write(fresh, [e.name for e in entries], [e.packed for e in entries])  # 1
            files = {}
            for file in sorted(_disk.files_below(fresh)):
                if file.name != "next_base" and file.suffix != ".lock":  # Deeplake rewrites these when it likes
                    files[str(file.relative_to(fresh))] = (file.stat().st_size, _sha256(file))
                _disk.sync(file)
            for parent, _, _ in os.walk(fresh):
                _disk.sync(Path(parent))
        except BaseException:
            _disk.remove(fresh)
            raise
        _disk.place(fresh, folder)  # 2
        seal = Seal(first, len(entries), files)
        _disk.create(self._folder / f"{folder.name}.json", json.dumps(msgspec.to_builtins(seal)).encode())  # 3
        self._seals[first] = seal
        self._firsts.append(first)
        old = self._file
        self._first = self.end
        self._places = []
        self._unsynced = False
        self._file = _disk.Appended(self._folder / f"tail-{self._first:012d}.log", 0)
        old.close()
        _disk.remove(old.path)  # 4
