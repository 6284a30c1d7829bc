"""What a redactor remembers: which placeholder stands for which value in an episode, and which texts were clean.

Nothing private is kept: values are keyed by a hash with a key of this process, texts by Python's own keyed hash and their length.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import OrderedDict
from typing import Final

MAX_EPISODES: Final = 256
MAX_TEXTS: Final = 4096
"""Texts remembered an episode (with findings) and in all (clean ones)."""

TextKey = tuple[int, int]


def text_key(text: str) -> TextKey:
    """The key of a text: Python's keyed 64-bit hash, which a string keeps, and its length."""
    return hash(text), len(text)


class Episode:
    """Placeholders are numbered in the order in which values first appear in the episode, each kind for itself."""

    __slots__ = ("_counters", "_numbers", "texts")

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._counters: dict[str, itertools.count[int]] = {}
        self.texts: dict[TextKey, tuple[str, dict[str, int]]] = {}
        """By key of the original text: the redacted text and how often each kind was in it."""

    def number(self, kind: str, digest: bytes) -> int:
        """The number of a value. Two threads that meet a new one at once may leave a number unused, never use one twice."""
        known = self._numbers.get(digest)
        if known is None:
            counter = self._counters.get(kind) or self._counters.setdefault(kind, itertools.count(1))
            known = self._numbers.setdefault(digest, next(counter))
        return known


class Memory:
    """The episodes a process redacted lately, and clean texts."""

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._episodes: OrderedDict[str, Episode] = OrderedDict()
        self.clean: dict[TextKey, None] = {}

    def episode(self, name: str) -> Episode:
        """The memory of an episode; the one unused for longest is forgotten."""
        episode = self._episodes.get(name)
        if episode is None:
            episode = self._episodes.setdefault(name, Episode())
            while len(self._episodes) > MAX_EPISODES:
                try:
                    self._episodes.popitem(last=False)
                except KeyError:  # another thread was faster
                    break
        else:
            try:
                self._episodes.move_to_end(name)
            except KeyError:
                pass
        return episode

    def remember_clean(self, key: TextKey) -> None:
        """Nothing was found in that text."""
        if len(self.clean) >= MAX_TEXTS:
            self.clean = {}
        self.clean[key] = None

    def digest(self, kind: str, value: str) -> bytes:
        """What stands for a value in memory."""
        return hashlib.blake2b(
            f"{kind}\0{value}".encode(errors="surrogatepass"), digest_size=16, key=self._key
        ).digest()
