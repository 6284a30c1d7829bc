"""Where an archive lies: a folder, or a folder of an object store. Whole files to read, put, list and remove, each put as a whole."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from treadle.disk import fsync_folder

from treadle_streams.archive.errors import ArchiveBusy, ArchiveUnwritable

__all__ = ["Folder", "Store", "store_at"]


class Store(Protocol):
    """Files by name, relative to the store. What `put` wrote is there as a whole, and durable, when it returns."""

    url: str

    def at(self, name: str) -> str:
        """The path or URL of a file."""
        ...

    def read(self, name: str) -> bytes | None:
        """A file; None where there is none."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Put a file, over one that is there."""
        ...

    def names(self, folder: str = "") -> list[str]:
        """The names of all files below a folder, sorted."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def put_at(self, name: str) -> float | None:
        """When a file was put, in seconds since the epoch; None where there is none."""
        ...


class Folder:
    """A folder of this machine. Raises ArchiveUnwritable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = str(path)

    def at(self, name: str) -> str:
        """The path of a file."""
        return str(self.path / name)

    def read(self, name: str) -> bytes | None:
        """A file; None where there is none."""
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as err:
            raise ArchiveUnwritable(self.at(name), err.strerror or str(err)) from err

    def put(self, name: str, data: bytes) -> None:
        """1. a file beside it, synced; 2. its name; 3. the folders, so that the name is durable."""
        file = self.path / name
        fresh = file.with_name(f"{file.name}.new")
        try:
            made = [folder for folder in (file.parent, *file.parent.parents) if not folder.exists()]
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with fresh.open("wb") as out:
                    out.write(data)
                    out.flush()
                    os.fsync(out.fileno())
                fresh.replace(file)
            except BaseException:
                with suppress(OSError):
                    fresh.unlink()
                raise
            for folder in {file.parent, *(folder.parent for folder in made)}:
                fsync_folder(folder)
        except OSError as err:
            raise ArchiveUnwritable(str(file), err.strerror or str(err)) from err

    def names(self, folder: str = "") -> list[str]:
        """The names of all files below a folder, sorted."""
        top = self.path / folder
        return sorted(str(file.relative_to(self.path)) for file in top.rglob("*") if file.is_file())

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            (self.path / name).unlink(missing_ok=True)
            if (self.path / name).parent.is_dir():
                fsync_folder((self.path / name).parent)
        except OSError as err:
            raise ArchiveUnwritable(self.at(name), err.strerror or str(err)) from err

    def put_at(self, name: str) -> float | None:
        """When a file was put, in seconds since the epoch; None where there is none."""
        try:
            return (self.path / name).stat().st_mtime
        except FileNotFoundError:
            return None

    @contextmanager
    def alone(self, folder: str) -> Iterator[None]:
        """Nobody else archives below `folder` meanwhile. Raises ArchiveBusy naming the process."""
        lock = self.path / folder / "lock"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            opened = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as err:
            raise ArchiveUnwritable(str(lock), err.strerror or str(err)) from err
        try:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArchiveBusy(str(lock.parent), os.read(opened, 64).decode(errors="replace").strip()) from None
            os.ftruncate(opened, 0)
            os.pwrite(opened, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(opened)


def store_at(target: str) -> Store:
    """The store that a target names: a path, file:///path, or a URL of an object store. Raises TargetError."""
    scheme, found, rest = target.partition("://")
    if found and scheme.lower() != "file":
        from treadle_corpus.objects import ObjectStore

        return ObjectStore(target)
    return Folder(Path(rest if found else target).expanduser().absolute())
