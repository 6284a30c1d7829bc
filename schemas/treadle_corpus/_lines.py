"""The content hash of a version after the one before: only what comes after the first change is hashed again.

    content_hash = sha256(line of the first member, line of the second, ...), members in the order of their ids

SHA-256 goes on from a state, so states are kept along the way. Ids that grow with time put what is new at the end, and then a version costs
what is new in it; a change in the middle costs everything behind it, at some 2 GB/s where the lines are at hand.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from treadle_corpus._rows import Key

__all__ = ["Lines", "merged"]

_STRIDE: Final = 256
"""Lines between two states that are kept: 100 bytes each."""
_CACHE_BYTES: Final = 128 * 1024 * 1024
_BLOCK: Final = 1000


class Lines:
    """Lines of members. Everything here is a memory of what `fetch` gave, and may be forgotten at any time."""

    def __init__(self, fetch: Callable[[Sequence[Key]], Iterable[bytes]]) -> None:
        """`fetch` gives the lines of keys, in order."""
        self._fetch = fetch
        self._members: list[Key] = []
        self._states: list[Any] = []
        """States before line 0, _STRIDE, 2 * _STRIDE, ..."""
        self._cache: dict[Key, bytes] = {}
        self._cached = 0

    def digest(self, members: list[Key], changed: Iterable[Key]) -> str:
        """content_hash over the lines of sorted `members`; `changed` came, went or have another line since the call before."""
        first: Key | None = None
        for key in changed:
            self._cached -= len(self._cache.pop(key, b""))
            first = key if first is None or key < first else first
        place = len(self._members) if first is None else bisect_left(self._members, first)
        kept = min(place // _STRIDE, len(self._states) - 1)
        self._states = self._states[: kept + 1]
        self._members = members
        total = self._states.pop() if self._states else hashlib.sha256()
        count = len(self._states) * _STRIDE
        for line in self._lines(members[count:] if count else members):
            if count % _STRIDE == 0:
                self._states.append(total.copy())
            total.update(line)
            count += 1
        if count % _STRIDE == 0:
            self._states.append(total.copy())
        return str(total.hexdigest())

    def _lines(self, keys: Sequence[Key]) -> Iterator[bytes]:
        cache = self._cache
        for start in range(0, len(keys), _BLOCK):
            block = keys[start : start + _BLOCK]
            missing = [key for key in block if key not in cache]
            if not missing:
                yield from map(cache.__getitem__, block)
                continue
            found = dict(zip(missing, self._fetch(missing), strict=True))
            for key in block:
                line = cache.get(key)
                yield found[key] if line is None else line
            for key, line in found.items():
                if self._cached + len(line) <= _CACHE_BYTES:
                    cache[key] = line
                    self._cached += len(line)


def merged(members: list[Key], came: Iterable[Key], went: Iterable[Key]) -> list[Key]:
    """Sorted members after some came and some went."""
    gone = set(went)
    kept = [key for key in members if key not in gone] if gone else list(members)
    kept.extend(came)
    kept.sort()  # two sorted runs, or nearly so: linear
    return kept
