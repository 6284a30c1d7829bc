"""One segment file of a spool: written by one process, read and acknowledged by one thread.

`NAME.seg` holds frames, `NAME.ack` the offset up to which every frame is in Kafka (u64 and its crc32). Whoever holds the `flock` of the
segment owns both; the kernel drops it when the owner dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from treadle.spool._format import MAGIC, Found, Frame, scan

__all__ = ["CHUNK_BYTES", "SUFFIX", "Pending", "Segment", "ack_path"]

SUFFIX: Final = ".seg"
CHUNK_BYTES: Final = 1024 * 1024
"""How much is read at a time; a longer frame is read whole."""
_ACK: Final = struct.Struct("<QI")
_MAX_PIECES: Final = 1000  # writev takes 1,024


class Pending:
    """A record that was handed to Kafka: where its frame ends, whether it is counted, what became of it."""

    __slots__ = ("counted", "done", "end", "failed")

    def __init__(self, end: int, counted: bool) -> None:
        self.end = end
        self.counted = counted
        self.done = False
        self.failed: str | None = None


class Segment:
    """An open, locked segment. `size` is the end of the last whole frame, `read` how far it was handed to Kafka, `acked` how far it
    arrived, `synced` how far it is known to be on the disk. One thread appends, another one reads."""

    def __init__(self, path: Path, fd: int, size: int, settle: Callable[[str | None], None] | None) -> None:
        self.path = path
        self.fd = fd
        self.size = size
        self.settle = settle
        """Whom to tell of each counted event; None for a file of a process that is gone."""
        self.read = self.acked = self.synced = 0
        self.full = False
        self.damaged_bytes = 0
        self.torn_bytes = 0
        """Length of a last frame that the writer was killed in: its event was never reported as recorded."""
        self.pending: deque[Pending] = deque()
        self.unsent: list[Frame] = []
        """Frames that were read, but found the producer's queue full."""
        self.failing = False
        """Whether something was not accepted: nothing more is handed over until the rest is answered and `rewind` was called."""
        self.retry_at = 0.0
        self.retries = 0
        self._ack_fd = -1
        self._acked_on_disk = 0

    @classmethod
    def create(cls, path: Path, settle: Callable[[str | None], None]) -> Segment:
        """A new, empty one. It gets its name only when it is locked, so that nobody takes it for a dead writer's."""
        raw = path.with_suffix(".new")
        fd = os.open(raw, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(raw, path)
        except OSError:
            os.close(fd)
            raise
        return cls(path, fd, 0, settle)

    @classmethod
    def adopt(cls, path: Path) -> Segment | None:
        """The segment of a writer that is gone, or None while it lives (or when another process was faster)."""
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        found = os.fstat(fd)
        if found.st_nlink == 0 or not path.exists():
            os.close(fd)
            return None
        segment = cls(path, fd, found.st_size, None)
        segment.full = True
        segment.read = segment.acked = segment._acked_on_disk = _read_ack(path, found.st_size)
        segment.synced = found.st_size
        return segment

    def append(self, pieces: Sequence[bytes], size: int) -> None:
        """Append whole frames, all of them or none. Raises OSError."""
        fd = self.fd
        if len(pieces) > _MAX_PIECES:
            pieces = (b"".join(pieces),)
        try:
            written = os.writev(fd, pieces)
        except OSError:
            os.ftruncate(fd, self.size)
            raise
        if written != size:
            # a full disk takes what fits: torn bytes would hide what is appended behind them
            os.ftruncate(fd, self.size)
            raise OSError(28, f"only {written} of {size} bytes fitted")  # ENOSPC
        self.size += size

    def next_frames(self) -> Found:
        """Some whole frames from `read` on; moves `read` behind them. Positions are those of the file."""
        base, end = self.read, self.size
        want = CHUNK_BYTES
        while True:
            data = os.pread(self.fd, min(want, end - base), base)
            if not data:  # the file is shorter than it was: someone cut it
                self.damaged_bytes += end - base
                self.read = end
                return Found([], end, end - base, 0)
            found = scan(data, last=base + len(data) >= end)
            if found.frames or found.pos or not found.needed:
                break
            want = max(2 * want, found.needed)
        self.read = base + found.pos
        tail_at = found.frames[-1].end if found.frames else 0
        if self.read >= end and 0 < found.damaged_bytes == len(data) - tail_at and MAGIC.startswith(data[tail_at:][:4]):
            self.torn_bytes = found.damaged_bytes
        else:
            self.damaged_bytes += found.damaged_bytes
        frames = [f._replace(start=base + f.start, end=base + f.end) for f in found.frames]
        return Found(frames, self.read, found.damaged_bytes, 0)

    def advance(self) -> int:
        """Move `acked` over everything that arrived, in order, and write it down; how many counted events that were."""
        counted = 0
        pending = self.pending
        while pending and pending[0].done and pending[0].failed is None:
            entry = pending.popleft()
            self.acked = entry.end
            counted += entry.counted
        if not pending and not self.unsent:
            self.acked = self.read  # damage behind the last frame
        if self.acked != self._acked_on_disk:
            self._write_ack()
        return counted

    @property
    def rewindable(self) -> bool:
        """Whether something failed and nothing is on its way any more."""
        return self.failing and all(entry.done for entry in self.pending)

    def rewind(self) -> None:
        """Hand everything behind `acked` to Kafka once more."""
        self.pending = deque()
        self.unsent = []
        self.failing = False
        self.read = self.acked

    @property
    def finished(self) -> bool:
        """Whether nothing will be appended and everything arrived."""
        return self.full and not self.pending and not self.unsent and self.acked >= self.size

    def sync(self) -> None:
        """Wait until everything appended so far survives a power cut."""
        size = self.size
        if self.synced < size:
            os.fdatasync(self.fd)
            self.synced = max(self.synced, size)

    def remove(self, quarantine: Path) -> None:
        """Let go of the finished file: delete it. A damaged one moves to `quarantine`, of a torn one only the torn frame."""
        if self.damaged_bytes or self.torn_bytes:
            quarantine.mkdir(exist_ok=True)
        if self.damaged_bytes:
            if self.path.exists():
                self.path.rename(quarantine / self.path.name)
        else:
            if self.torn_bytes:
                torn = os.pread(self.fd, self.torn_bytes, self.size - self.torn_bytes)
                (quarantine / f"{self.path.stem}.torn").write_bytes(torn)
            self.path.unlink(missing_ok=True)
        ack_path(self.path).unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the files, which frees the lock: another process may adopt what is left."""
        for fd in (self.fd, self._ack_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._ack_fd = -1

    def _write_ack(self) -> None:
        if self._ack_fd < 0:
            self._ack_fd = os.open(ack_path(self.path), os.O_CREAT | os.O_WRONLY, 0o600)
        raw = struct.pack("<Q", self.acked)
        os.pwrite(self._ack_fd, _ACK.pack(self.acked, zlib.crc32(raw)), 0)
        self._acked_on_disk = self.acked


def ack_path(path: Path) -> Path:
    """Where the offset of a segment stands."""
    return path.with_suffix(".ack")


def _read_ack(path: Path, size: int) -> int:
    try:
        raw = ack_path(path).read_bytes()
    except OSError:
        return 0
    if len(raw) != _ACK.size:
        return 0
    offset, crc = _ACK.unpack(raw)
    # a damaged offset costs duplicates, which fall away by their ids; a wrong one would cost events
    return int(offset) if crc == zlib.crc32(raw[:8]) and offset <= size else 0
