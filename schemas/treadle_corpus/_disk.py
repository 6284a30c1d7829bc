"""What must be on disk before the next thing may be: the only module that writes, syncs, renames or removes files of a corpus.

Every durable step of a writer is one call of `append`, `sync`, `create`, `place` or `remove` here (Deeplake's own files excepted, which
count only once `place` has named them), so a test can stop a writer between any two of them.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from treadle_corpus.errors import CorpusFull, CorpusUnwritable

__all__ = ["Appended", "create", "files_below", "make_room", "place", "remove", "sync", "writing"]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says of a failed write into CorpusFull or CorpusUnwritable, naming `path`."""
    try:
        yield
    except OSError as err:
        kind = CorpusFull if err.errno in _FULL else CorpusUnwritable
        raise kind(path, err.strerror or str(err)) from err


class Appended:
    """A file that grows at its end. What a failed write left is cut off again, so the file always ends with a whole `append`."""

    def __init__(self, path: Path, size: int) -> None:
        """Open or make the file and cut it to `size` bytes. Raises CorpusFull, CorpusUnwritable."""
        self.path = path
        self.size = size
        with writing(path):
            self._named = path.exists()
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if os.fstat(self._file).st_size != size:
                os.ftruncate(self._file, size)

    def append(self, data: bytes) -> None:
        """Write at the end. Raises CorpusFull, CorpusUnwritable; nothing of `data` is in the file then."""
        try:
            with writing(self.path):
                at = self.size
                left = memoryview(data)
                while left:
                    written = os.pwrite(self._file, left, at)
                    at, left = at + written, left[written:]
        except BaseException:
            os.ftruncate(self._file, self.size)
            raise
        self.size += len(data)

    def sync(self) -> None:
        """Its bytes, and its name, are on disk when this returns. Raises CorpusFull, CorpusUnwritable."""
        with writing(self.path):
            os.fdatasync(self._file)
        if not self._named:
            sync(self.path.parent)
            self._named = True

    def read(self, size: int, at: int) -> bytes:
        """Bytes of the file."""
        return os.pread(self._file, size, at)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def sync(path: Path) -> None:
    """A file, or the names in a folder, are on disk when this returns. Raises CorpusFull, CorpusUnwritable."""
    with writing(path):
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def create(path: Path, data: bytes) -> None:
    """Make or replace a file as a whole: after a crash it is there with all of `data`, or as before.

    Raises CorpusFull, CorpusUnwritable.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        with writing(path), fresh.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise
    place(fresh, path)


def place(fresh: Path, path: Path) -> None:
    """Give a file or folder, synced before, its name. Raises CorpusFull, CorpusUnwritable."""
    with writing(path):
        fresh.rename(path)
    sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there. Raises CorpusUnwritable."""
    with writing(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def make_room(folder: Path, size: int) -> None:
    """Raises CorpusFull where the disk has no room for `size` bytes below a new folder: Deeplake would not notice."""
    folder.mkdir()
    probe = folder / "room"
    try:
        with writing(folder), probe.open("wb") as out:
            os.posix_fallocate(out.fileno(), 0, max(size, 1))
    finally:
        probe.unlink(missing_ok=True)
        folder.rmdir()


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder."""
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent, name)
