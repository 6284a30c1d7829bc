"""The judge: how good a summary is, as a number from 0 to 1 and a reason. A stand-in for a model that judges."""

from __future__ import annotations

MAX_WORDS = 12


def score(note: str, summary: str) -> tuple[float, str]:
    """Half for being short, half for keeping every number of the note."""
    words = summary.split()
    numbers = {word.strip(".,") for word in note.split() if any(c.isdigit() for c in word)}
    kept = {word.strip(".,") for word in words} & numbers
    short = len(words) <= MAX_WORDS
    complete = len(kept) / len(numbers) if numbers else 1.0
    reason = f"{len(words)} words; {len(kept)} of {len(numbers)} numbers kept"
    return round((0.5 if short else 0.0) + 0.5 * complete, 3), reason
