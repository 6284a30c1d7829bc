"""What a process remembers of the parts that it sent."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = ["SentParts", "Tail"]

MAX_SENT: Final = 100_000
"""Parts that a process remembers to have sent: about 15 MB."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the newest transcript of an episode ended: `count` messages up to `head`, of `size` bytes; `digest` is of their JSON."""

    count: int
    head: str
    size: int
    digest: bytes


@dataclass(slots=True)
class _Episode:
    hashes: set[str]
    tail: Tail | None = None


class SentParts:
    """Which parts of which episodes this process has sent. Bounded: what it forgot is sent again, which is harmless.

    It also remembers where each episode's transcript ended, so that of a growing one only what is new is hashed.
    """

    def __init__(self, limit: int = MAX_SENT) -> None:
        """Remembers at most about `limit` parts; the episodes that were used longest ago go first."""
        self._limit = limit
        self._count = 0
        self._episodes: OrderedDict[str, _Episode] = OrderedDict()
        self._lock = threading.Lock()
        self._forgotten = 0

    def tail(self, episode_id: str) -> tuple[Tail | None, int]:
        """Where the episode ended, and a mark for `add`."""
        with self._lock:
            episode = self._episodes.get(episode_id)
            return None if episode is None else episode.tail, self._forgotten

    def missing(self, episode_id: str, hashes: Iterable[str]) -> set[str]:
        """Those of `hashes` that were not sent in that episode."""
        with self._lock:
            episode = self._episodes.get(episode_id)
            return set(hashes) if episode is None else {h for h in hashes if h not in episode.hashes}

    def add(self, episode_id: str, hashes: Iterable[str], tail: Tail | None, mark: int) -> None:
        """Remember parts as sent; not where something was forgotten since `mark`, which they may build on."""
        with self._lock:
            if mark != self._forgotten:
                return
            episode = self._episodes.setdefault(episode_id, _Episode(set()))
            self._episodes.move_to_end(episode_id)
            before = len(episode.hashes)
            episode.hashes.update(hashes)
            episode.tail = tail or episode.tail
            self._count += len(episode.hashes) - before
            while self._count > self._limit and self._episodes:
                _, forgotten = self._episodes.popitem(last=False)
                self._count -= len(forgotten.hashes)

    def forget(self, episode_id: str) -> None:
        """The parts of an episode did not get out after all: send them again with the next interaction."""
        with self._lock:
            self._forgotten += 1
            episode = self._episodes.pop(episode_id, None)
            self._count -= 0 if episode is None else len(episode.hashes)
