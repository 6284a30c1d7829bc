"""The verdict in what a model wrote as a judge: a JSON object among other words. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

__all__ = ["find_verdict"]

_DECODER: Final = json.JSONDecoder()
_TRIES: Final = 2_000
"""Braces at which no object begins, before the rest is taken for prose: a text of braces alone must not take minutes."""


def find_verdict(text: str) -> dict[str, Any] | None:
    """The first JSON object of a text that has a `value`. None without one."""
    at = text.find("{")
    for _ in range(_TRIES):
        if at < 0:
            return None
        try:
            found, _end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and "value" in found:
            return found
        at = text.find("{", at + 1)
    return None
