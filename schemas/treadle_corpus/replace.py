"""A corpus that is made again takes the place of another one, or a new place, as a whole.

PARENT/.NAME.rebuild   where it is made; what a killed process left there is removed by the next one
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from treadle_schemas.errors import NotYetSupported

from treadle_corpus import _disk, _files, _versions
from treadle_corpus.errors import CorpusInUse, CorpusLocked, CorpusMissing, TargetError
from treadle_corpus.exports import exports, note_export
from treadle_corpus.objects.place import name_of, place_at

__all__ = ["Replacement", "is_wanted", "lock_for"]

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_WANTED: Final = "wanted"
"""A file in a corpus: somebody waits for its lock, as long as the file is touched."""
_ASK_S: Final = 0.1
_WANTED_S: Final = 5.0


class Replacement:
    """The right to put another corpus at a path. A context manager; leaving it without `place` leaves all as it was."""

    def __init__(self, path: Path, *, new: bool, wait_s: float = 0.0) -> None:
        """`new`: nothing may lie at `path`, and nothing is replaced. Otherwise nobody else writes there until the end; a writer that looks
        whether it is asked to let go has `wait_s` to do so.

        Raises NotYetSupported in an object store, TargetError where something does, CorpusMissing where nothing does, CorpusLocked,
        CorpusUnwritable.
        """
        if place_at(path) is not None:
            raise NotYetSupported(
                f"{name_of(path)}: a corpus in an object store is not made again in place; make it again elsewhere with "
                "`treadle corpus rebuild URL --to FOLDER`, or snapshot to another prefix"
            )
        self.path = path.resolve()
        self.fresh = self.path.with_name(f".{self.path.name}.rebuild")
        """Where to make the corpus."""
        self._new = new
        self._locks = ExitStack()
        if not new:
            _undone(self.path)
        if new and self.path.exists():
            raise TargetError(f"{path}: something is there already; name a path where nothing is")
        if not new and not self.path.exists():
            raise CorpusMissing(path)
        try:
            if not new:
                self._locks.callback(lock_for(self.path, wait_s).release)
            _files.Lock(self.fresh).release()  # nobody else makes one there
            _disk.remove(self.fresh)
        except BaseException:
            self._locks.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._locks:
            _disk.remove(self.fresh)

    def place(self) -> None:
        """Put what was made, whole and closed, at the path. The tags of before stay where their versions are there again.

        1. nobody reads the versions of before: a reader finds the files of its rows by path
        2. tags, and what is known of exports
        3. exchange the folders, in one step where the system can
        4. remove the one of before

        Raises CorpusInUse naming who reads, CorpusUnwritable; nothing was changed then.
        """
        if not self._new:
            self._lock_versions()  # 1
            there = set(_versions.versions(self.fresh))
            for name, version in _versions.read_tags(self.path).items():  # 2
                if version in there:
                    _versions.set_tag(self.fresh, name, version)
            for export in exports(self.path):
                note_export(self.fresh, export)
            with _disk.writing(self.path):
                _exchange(self.fresh, self.path)  # 3
            _disk.sync(self.path.parent)
            _disk.remove(self.fresh)  # 4
        else:
            _disk.place(self.fresh, self.path)

    def _lock_versions(self) -> None:
        for number in _versions.versions(self.path):
            with _disk.writing(self.path):
                opened = os.open(self.path / "versions" / f"v{number}.json", os.O_RDWR | os.O_CLOEXEC)
            self._locks.callback(os.close, opened)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _versions.holder(opened)
                raise CorpusInUse(
                    self.path, number, f"{holder} is reading it; wait for it, or stop it", what="replaced"
                ) from None


def is_wanted(path: Path) -> bool:
    """Does somebody wait for the right to write the corpus at `path`?"""
    try:
        return time.time() - (path / _WANTED).stat().st_mtime < _WANTED_S
    except OSError:
        return False


def lock_for(path: Path, wait_s: float) -> _files.Lock:
    """The right to write, asked for until it is given. Raises CorpusLocked after `wait_s`, CorpusUnwritable."""
    deadline = time.monotonic() + wait_s
    asked = False
    try:
        while True:
            try:
                return _files.Lock(path)
            except CorpusLocked:
                if time.monotonic() >= deadline:
                    raise
            with _disk.writing(path):
                (path / _WANTED).touch()
            asked = True
            time.sleep(_ASK_S)
    finally:
        if asked:
            _disk.remove(path / _WANTED)


def _undone(path: Path) -> None:
    """Give the corpus its name back where an exchange of two steps was cut between them."""
    before = _before(path)
    if before.exists():
        if path.exists():
            _disk.remove(before)  # the last step was cut
        else:
            _disk.place(before, path)


def _before(path: Path) -> Path:
    return path.with_name(f".{path.name}.before")


def _exchange(one: Path, two: Path) -> None:
    """Each gets the other's name. Where the system cannot do it in one step, a crash between two leaves `two` as NAME.before."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        names = os.fsencode(one), os.fsencode(two)
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise OSError(code, os.strerror(code))
    before = _before(two)
    two.rename(before)
    one.rename(two)
    before.rename(one)
