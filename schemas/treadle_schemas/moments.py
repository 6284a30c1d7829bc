"""Event times: RFC 3339 strings kept verbatim in events, compared as integer microseconds since the epoch (UTC)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from treadle_schemas.errors import FieldError, shown

__all__ = ["from_micros", "now", "parse_duration_s", "to_micros"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# datetime.fromisoformat takes more (week dates, basic form), and what it takes differs between Python versions
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,30})?([Zz]|[+-]\d\d:\d\d)?", re.ASCII)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def to_micros(text: str, field: str) -> int:
    """Microseconds since the epoch of an RFC 3339 time; finer digits are cut off. A time without zone is refused: it means nothing
    elsewhere. Raises FieldError naming `field`."""
    try:
        return _micros_of(text)  # an event's times are asked for several times over
    except ValueError:
        raise _refusal(text, field) from None


@lru_cache(maxsize=4096)
def _micros_of(text: str) -> int:
    match = _RFC_3339.fullmatch(text)
    if match is None or match[1] is None:
        raise ValueError
    return (datetime.fromisoformat(text.upper()) - _EPOCH) // timedelta(microseconds=1)


def _refusal(text: str, field: str) -> FieldError:
    match = _RFC_3339.fullmatch(text)
    if match is None:
        return FieldError(field, f"{shown(text)} is not an RFC 3339 time such as 2026-01-31T09:30:00Z")
    if match[1] is None:
        return FieldError(field, f"{shown(text)} has no time zone; add Z or an offset")
    try:
        datetime.fromisoformat(text.upper())
    except ValueError as err:
        return FieldError(field, f"{shown(text)} is no time that exists: {err}")
    raise AssertionError(text)


def from_micros(micros: int) -> str:
    """The RFC 3339 form in UTC with microseconds and Z."""
    return (_EPOCH + timedelta(microseconds=micros)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def now() -> str:
    """The present time in RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_duration_s(text: str, field: str) -> float:
    """Seconds of `90`, `1.5s`, `250ms`, `10m`, `2h`, `7d`. Raises FieldError naming `field`."""
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise FieldError(field, f"{shown(text)} is not a duration such as 30s, 10m, 2h or 7d")
    return float(match[1]) * _UNIT_S[match[2] or "s"]
