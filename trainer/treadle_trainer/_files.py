"""Files that survive a crash: written whole or not at all, and on disk before anyone is told."""

from __future__ import annotations

import fcntl
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from treadle.disk import fsync_folder
from treadle.release_files import sha256_file

__all__ = ["crc32_file", "fsync_file", "fsync_folder", "locked", "sha256_file", "write_atomically"]


def write_atomically(path: Path, data: bytes, *, staged: Path | None = None) -> None:
    """Replace `path` by `data`: written beside it (or in the folder `staged`), synced, renamed, the folder synced.

    A reader sees the old file or the new one.
    """
    fd, name = tempfile.mkstemp(prefix=f".staging-{path.name}-", dir=staged or path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def crc32_file(path: Path) -> int:
    """CRC-32 of a file, of which a piece is in memory at a time."""
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            total = zlib.crc32(chunk, total)
    return total


def fsync_file(path: Path) -> None:
    """Make what was written to `path` durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on `path` (made if missing); it ends with the process. Yields False where `wait` is off and it is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)
