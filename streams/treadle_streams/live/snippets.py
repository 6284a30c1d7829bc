"""The place of a text where most words of a query are."""

from __future__ import annotations

import re
from typing import Final

from treadle_streams.live.text import stemmed, words

__all__ = ["SNIPPET_CHARS", "snippet"]

SNIPPET_CHARS: Final = 240
_SPACE: Final = re.compile(r"\s+")


def snippet(text: str, query: str) -> str:
    """About SNIPPET_CHARS characters of `text` on one line, those with the most different words of `query`; else its beginning."""
    asked = set(words(query))
    found = [(start, end, word) for start, end, word in stemmed(text) if word in asked]
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
