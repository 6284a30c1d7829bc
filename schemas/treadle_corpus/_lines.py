"""The content hash of a version after the one before: only what comes after the first change is hashed again.

    content_hash = sha256(line of the first member, line of the second, ...), members in the order of their ids

SHA-256 goes on from a state, so states are kept along the way. Ids that grow with time put what is new at the end, and then a version costs
what is new in it; a change in the middle costs everything behind it, at some 2 GB/s where the lines are at hand.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

from treadle_corpus._rows import Key

__all__ = ["Lines", "merged"]

_STRIDE: Final = 256
"""Lines between two states that are kept: 100 bytes each."""
_CACHE_BYTES: Final = 128 * 1024 * 1024
_OFFERED_BYTES: Final = 32 * 1024 * 1024


class Lines:
    """Lines of members. Everything here is a memory of what `fetch` gave, and may be forgotten at any time."""

    def __init__(self, fetch: Callable[[Sequence[Key]], Iterable[bytes]]) -> None:
        """`fetch` gives the lines of keys, in order."""
        self._fetch = fetch
        self._members: list[Key] = []
        self._held: list[bytes | None] = []
        """The line of each member, where it is remembered."""
        self._bytes = 0
        self._states: list[Any] = []
        """States before line 0, _STRIDE, 2 * _STRIDE, ..."""
        self._offered: dict[Key, bytes] = {}
        self._offered_bytes = 0

    def offer(self, key: Key, line: bytes | None) -> None:
        """The line that a key has from now on, if it is at hand: the next `digest` need not fetch it."""
        self._offered_bytes -= len(self._offered.pop(key, b""))
        if line is not None and self._offered_bytes + len(line) <= _OFFERED_BYTES:
            self._offered[key] = line
            self._offered_bytes += len(line)

    def digest(self, members: list[Key], changed: Iterable[Key]) -> str:
        """content_hash over the lines of sorted `members`; `changed` came, went or have another line since the call before."""
        touched = sorted(changed)
        place = bisect_left(self._members, touched[0]) if touched else len(self._members)
        self._align(members, touched)
        kept = min(place // _STRIDE, len(self._states) - 1)
        self._states = self._states[: kept + 1]
        total = self._states.pop() if self._states else hashlib.sha256()
        for start in range(len(self._states) * _STRIDE, len(members) + 1, _STRIDE):
            self._states.append(total.copy())
            update = total.update
            for line in self._block(start):
                update(line)
        self._offered, self._offered_bytes = {}, 0
        return str(total.hexdigest())

    def _align(self, members: list[Key], touched: list[Key]) -> None:
        """Remember lines for `members`, but those of the keys in `touched`."""
        for key in touched:
            place = bisect_left(self._members, key)
            if place < len(self._members) and self._members[place] == key:
                self._bytes -= len(self._held[place] or b"")
                self._held[place] = None
        before = len(self._members)
        if members[:before] == self._members:
            self._held += [None] * (len(members) - before)
        else:
            held = dict(zip(self._members, self._held, strict=True))
            self._held = [held.get(key) for key in members]
        self._members = members

    def _block(self, start: int) -> list[bytes]:
        """The lines of _STRIDE members."""
        block = self._held[start : start + _STRIDE]
        missing = [place for place, line in enumerate(block, start) if line is None]
        if missing:
            asked = [self._members[place] for place in missing]
            found = {key: line for key in asked if (line := self._offered.get(key)) is not None}
            fetched = [key for key in asked if key not in found]
            found.update(zip(fetched, self._fetch(fetched), strict=True) if fetched else ())
            for place, key in zip(missing, asked, strict=True):
                line = block[place - start] = found[key]
                if self._bytes + len(line) <= _CACHE_BYTES:
                    self._held[place] = line
                    self._bytes += len(line)
        return cast("list[bytes]", block)


def merged(members: list[Key], came: Iterable[Key], went: Iterable[Key]) -> list[Key]:
    """Sorted members after some came and some went."""
    gone = set(went)
    kept = [key for key in members if key not in gone] if gone else list(members)
    kept.extend(came)
    kept.sort()  # two sorted runs, or nearly so: linear
    return kept
