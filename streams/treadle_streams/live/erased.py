"""What was erased from a live index, so that reading the log again brings nobody back: digests, in a file that outlives the index.

    {"subjects": [DIGEST, ...], "episodes": [DIGEST, ...]}

The episodes in which an erased subject occurred are erased whole: what others said there may be about it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from treadle_streams.live.ids import digest

__all__ = ["Erased"]


class _File(msgspec.Struct):
    subjects: list[str] = []
    episodes: list[str] = []


class Erased:
    """The erased subjects and episodes of one index folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "erased.json"
        self._known = _File()
        self._stamp: tuple[int, int] | None = None
        self._subjects: frozenset[str] = frozenset()
        self._episodes: frozenset[str] = frozenset()
        self.refresh()

    @property
    def count(self) -> int:
        """How many subjects and episodes there are; it only grows."""
        return len(self._known.subjects) + len(self._known.episodes)

    def refresh(self) -> bool:
        """Read the file again where it was changed; whether it was."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return False
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp == self._stamp:
            return False
        self._known = msgspec.json.decode(self._path.read_bytes(), type=_File)
        self._stamp = stamp
        self._subjects, self._episodes = frozenset(self._known.subjects), frozenset(self._known.episodes)
        return True

    def covers(self, episode: str, subject: str | None) -> bool:
        """Whether something of this episode and subject must not be taken in."""
        if self._episodes and digest("episode", episode) in self._episodes:
            return True
        return subject is not None and self.covers_subject(subject)

    def covers_subject(self, subject: str) -> bool:
        """Whether a subject was erased."""
        return bool(self._subjects) and digest("subject", subject) in self._subjects

    def add(self, subjects: Iterable[str] = (), episodes: Iterable[str] = ()) -> int:
        """Add names; durable when this returns. The `count` then."""
        with self._locked():
            self._stamp = None
            self.refresh()
            known = _File(
                list(dict.fromkeys([*self._known.subjects, *(digest("subject", s) for s in subjects)])),
                list(dict.fromkeys([*self._known.episodes, *(digest("episode", e) for e in episodes)])),
            )
            if known != self._known:
                fresh = self._path.with_suffix(".new")
                with fresh.open("wb") as file:
                    file.write(msgspec.json.encode(known))
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(self._path)
                self.refresh()
            return self.count

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / "erased.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
