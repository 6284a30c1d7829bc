"""Which regular expressions of users are safe to run on every message.

Python's `re` backtracks: (a+)+b takes exponential time on some text. Refused are patterns in which that, or a high polynomial, can happen.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, Final

from treadle_schemas.errors import SettingError, shown

MAX_REGEX_CHARS: Final = 512
MAX_UNBOUNDED: Final = 2
"""Most open-ended quantifiers of a pattern. Text is searched in windows, so that two of them stay affordable."""
LARGE_REPEAT: Final = 256
"""A quantifier with a larger maximum counts as open-ended."""


def check_pattern(regex: str, what: str) -> None:
    """Raises SettingError naming `what` for a pattern that is none, that matches nothing at all, or that may take very long."""
    if not 1 <= len(regex) <= MAX_REGEX_CHARS:
        raise SettingError(f"{what}: a regular expression has 1 to {MAX_REGEX_CHARS} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compiled = re.compile(regex)
            tree = re._parser.parse(regex)  # type: ignore[attr-defined]
    except (re.error, RecursionError, OverflowError, Warning) as err:
        raise SettingError(f"{what}: {shown(regex)} is no regular expression: {err}") from None
    if compiled.match(""):
        raise SettingError(f"{what}: {shown(regex)} matches the empty text")
    open_ended = _walk(tree, False, what)
    if open_ended > MAX_UNBOUNDED:
        raise SettingError(
            f"{what}: {open_ended} open-ended quantifiers; at most {MAX_UNBOUNDED}. Write {{1,64}} for +"
        )


def _walk(node: Any, repeated: bool, what: str) -> int:
    """How many open-ended quantifiers are below `node`. Refuses one inside another, choices inside one, and back references."""
    count = 0
    for op, argument in node:
        name = str(op)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            _, high, inner = argument
            several = int(high) > 1
            if several and repeated:
                raise SettingError(f"{what}: a quantifier inside a quantifier can take for ever; write it flat")
            is_open = int(high) > LARGE_REPEAT
            count += is_open + _walk(inner, repeated or several, what)
        elif name == "SUBPATTERN":
            count += _walk(argument[-1], repeated, what)
        elif name == "BRANCH":
            if repeated:
                raise SettingError(f"{what}: a choice inside a quantifier can take for ever; write it flat")
            count += max((_walk(branch, repeated, what) for branch in argument[1]), default=0)
        elif name in ("ASSERT", "ASSERT_NOT"):
            count += _walk(argument[1], repeated, what)
        elif name == "ATOMIC_GROUP":
            count += _walk(argument, repeated, what)
        elif name in ("GROUPREF", "GROUPREF_EXISTS", "GROUPREF_IGNORE"):
            raise SettingError(f"{what}: references to groups are not allowed")
    return count
