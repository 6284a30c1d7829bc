"""The spool of one workspace on this machine: a folder of segments, bounded in size, shared by processes through file locks."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from treadle.disk import fsync_folder
from treadle.errors import SpoolFull, SpoolUnwritable
from treadle.spool._segment import SUFFIX, Segment

__all__ = ["BLOCK_S", "QUARANTINE", "SEGMENT_BYTES", "Spool"]

_LOG = logging.getLogger("treadle")
SEGMENT_BYTES: Final = 64 * 1024 * 1024
BLOCK_S: Final = 1.0
"""How long `block` may hold up a call when the spool is full. Nothing else in a call waits, but for `durable="fsync"`."""
QUARANTINE: Final = "quarantine"
"""Folder, inside the spool's, of what could not be sent: segments that were damaged (`.seg`), last frames that a kill tore (`.torn`: nobody
was told that they were recorded), records that Kafka will never take (`.rejected`). Never deleted, and not counted into the bound."""
_REOPEN_S: Final = 10.0
_MEASURE_S: Final = 0.25


class Spool:
    """One process's part of a spool folder. `append` may be called from any thread; everything else by one."""

    def __init__(
        self,
        folder: Path,
        settle: Callable[[str | None], None],
        *,
        limit_bytes: int,
        when_full: Literal["block", "refuse"],
    ) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.when_full = when_full
        self.segments: list[Segment] = []
        """Adopted ones and our own, in the order in which they are drained. Replaced as a whole, so that readers need no lock."""
        self._settle = settle
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._current: Segment | None = None
        self._number = 0
        self._others_bytes = 0
        self._measured_at = -_MEASURE_S
        self._reopen_at = 0.0
        # a small bound needs small segments: only whole ones are freed
        self._segment_bytes = max(1, min(SEGMENT_BYTES, limit_bytes // 8))

    @property
    def writable(self) -> bool:
        """Whether it is worth trying: an unwritable folder is looked at again after a while."""
        return self._current is not None or time.monotonic() >= self._reopen_at

    def append(self, pieces: Sequence[bytes], *, wait: bool) -> Segment:
        """Append whole frames, all or none; they are in the file (not yet on the disk's platter) when this returns.

        `wait` allows a full spool to hold up the caller for BLOCK_S, if its policy says so. Raises SpoolFull, SpoolUnwritable.
        """
        size = sum(map(len, pieces))
        deadline = 0.0
        while True:
            problem = ""
            with self._lock:
                if self._room(size):
                    segment = self._segment_for(size)
                    try:
                        segment.append(pieces, size)
                    except OSError as err:
                        problem = f"{self.folder}: {err.strerror or err}"
                    else:
                        return segment
            problem = problem or f"{self.folder} holds {self.used_bytes} of {self.limit_bytes} bytes"
            moment = time.monotonic()
            deadline = deadline or moment + (BLOCK_S if wait and self.when_full == "block" else 0.0)
            if moment >= deadline:
                raise SpoolFull(f"the spool is full, {problem}. Is Kafka away? Make room, or raise TREADLE_SPOOL_BYTES")
            time.sleep(0.005)

    @property
    def used_bytes(self) -> int:
        """Size of all segments in the folder, own and other processes'."""
        total = self._others_bytes
        for segment in self.segments:
            total += segment.size
        return total

    def sync_to(self, segment: Segment, size: int) -> None:
        """Wait until `segment` is on the disk up to `size`. Threads that wait at once share one sync."""
        while segment.synced < size:
            with self._sync_lock:
                if segment.synced < size and segment.fd >= 0:
                    segment.sync()
                elif segment.fd < 0:
                    return

    def sync(self) -> None:
        """Put on the disk what Kafka does not have yet."""
        for segment in self.segments:
            if segment.synced < segment.size and segment.acked < segment.size:
                segment.sync()

    def adopt(self) -> int:
        """Take over the segments of writers that are gone; how many. Also measures the folder and notices lost files."""
        own = {segment.path.name for segment in self.segments}
        found = []
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            if path.name not in own:
                segment = Segment.adopt(path)
                if segment is not None:
                    found.append(segment)
        if found:
            with self._lock:
                self.segments = found + self.segments
        self._measure()
        current = self._current
        if current is not None and os.fstat(current.fd).st_nlink == 0:
            _LOG.warning(
                "%s was deleted while it was written; the events in it survive as long as this process", current.path
            )
            with self._lock:
                current.full = True
                self._current = None
        return len(found)

    def rotate_if_acked(self) -> None:
        """Begin a new segment when everything in a rather full one arrived, so that the old one can go."""
        with self._lock:
            current = self._current
            if current is not None and current.acked == current.size and current.size > self._segment_bytes // 2:
                current.full = True
                self._current = None

    def release(self, segment: Segment) -> None:
        """Delete a finished segment, or keep it in quarantine when it was damaged."""
        with self._lock:
            self.segments = [other for other in self.segments if other is not segment]
        if segment.damaged_bytes:
            _LOG.warning(
                "%s: %d damaged bytes, everything else arrived; kept in %s",
                segment.path,
                segment.damaged_bytes,
                self.folder / QUARANTINE,
            )
        segment.remove(self.folder / QUARANTINE)

    def keep_rejected(self, body: bytes) -> None:
        """Put aside a record that Kafka will never take."""
        folder = self.folder / QUARANTINE
        folder.mkdir(exist_ok=True)
        (folder / f"{self._next_name()}.rejected").write_bytes(body)

    def close(self) -> None:
        """Delete what arrived, and leave the rest to whoever comes next."""
        with self._lock:
            segments, self.segments, self._current = self.segments, [], None
        for segment in segments:
            if segment.fd < 0:
                continue
            if segment.acked >= segment.size:
                segment.remove(self.folder / QUARANTINE)
            else:
                segment.close()

    def abandon(self) -> None:
        """In a forked child: the files are the parent's. Closing them here keeps the parent's locks."""
        for segment in self.segments:
            segment.close()
        self.segments = []

    def _room(self, size: int) -> bool:
        if self.used_bytes + size <= self.limit_bytes:
            return True
        if time.monotonic() >= self._measured_at + _MEASURE_S:
            self._measure()
        return self.used_bytes + size <= self.limit_bytes

    def _segment_for(self, size: int) -> Segment:
        current = self._current
        if current is not None and (not current.size or current.size + size <= self._segment_bytes):
            return current
        if current is not None:
            current.full = True
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            segment = Segment.create(self.folder / f"{self._next_name()}{SUFFIX}", self._settle)
            fsync_folder(self.folder)
        except OSError as err:
            self._current = None
            self._reopen_at = time.monotonic() + _REOPEN_S
            raise SpoolUnwritable(
                f"the spool folder {self.folder} cannot be written: {err.strerror or err}. Set TREADLE_SPOOL to one that can"
            ) from err
        self._current = segment
        self.segments = [*self.segments, segment]
        return segment

    def _next_name(self) -> str:
        self._number += 1
        # sorts by time; random, since processes of two containers may have the same id
        return f"{time.time_ns():020}-{os.getpid()}-{self._number}-{secrets.token_hex(4)}"

    def _measure(self) -> None:
        self._measured_at = time.monotonic()
        own = {segment.path.name for segment in self.segments}
        total = 0
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if entry.name.endswith(SUFFIX) and entry.name not in own:
                        try:
                            total += entry.stat().st_size
                        except FileNotFoundError:
                            continue
        except OSError:
            return
        self._others_bytes = total
