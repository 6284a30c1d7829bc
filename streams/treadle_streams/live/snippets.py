"""The place of a text where most words of a query are."""

from __future__ import annotations

import re
from typing import Final

from treadle_streams.live.text import stem, words

__all__ = ["SNIPPET_CHARS", "snippet"]

SNIPPET_CHARS: Final = 240
_SPACE: Final = re.compile(r"\s+")
_WORD: Final = re.compile(r"[^\W_]+")
"""As the text index cuts texts into words."""


def snippet(text: str, query: str) -> str:
    """About SNIPPET_CHARS characters of `text` on one line, those with the most different words of `query`; else its beginning."""
    asked = set(words(query))
    # word by word with a cache: asking the analyzer for the places of all words takes milliseconds
    found = [(m.start(), m.end(), word) for m in _WORD.finditer(text) if (word := stem(m[0])) in asked]
    best, start = 0, 0
    low = 0
    inside: dict[str, int] = {}
    for begin, end, word in found:
        inside[word] = inside.get(word, 0) + 1
        while end - found[low][0] > SNIPPET_CHARS and found[low][0] < begin:
            gone = found[low][2]
            inside[gone] -= 1
            if not inside[gone]:
                del inside[gone]
            low += 1
        if len(inside) > best:
            best, start = len(inside), found[low][0]
    # some words before the first one say what it is about
    start = max(0, start - SNIPPET_CHARS // 6)
    if start:
        space = text.find(" ", start, start + 20)
        start = space + 1 if space >= 0 else start
    end = min(len(text), start + SNIPPET_CHARS)
    shown = _SPACE.sub(" ", text[start:end]).strip()
    return f"{'… ' if start else ''}{shown}{' …' if end < len(text) else ''}"
