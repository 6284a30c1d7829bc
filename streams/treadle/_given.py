"""What callers hand over, as the plain values that an event is made of."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from treadle_schemas.errors import FieldError
from treadle_schemas.events import OutcomeValue
from treadle_schemas.moments import from_micros, to_micros

__all__ = ["Moment", "listed", "moment_text", "plain_message", "scalar", "under_pytest"]

Moment = str | datetime.datetime
"""A time: RFC 3339 text with a zone, kept verbatim, or an aware datetime."""


def moment_text(moment: Moment | None, field: str) -> str | None:
    """A moment as RFC 3339 text. Raises FieldError naming `field` when it has no zone."""
    if isinstance(moment, datetime.datetime):
        if moment.tzinfo is None:
            raise FieldError(field, f"{moment} has no time zone; use datetime.now(UTC)")
        return from_micros(to_micros(moment.isoformat(timespec="microseconds"), field))
    return moment


def plain_message(message: Any) -> Any:
    """A message as a dict: itself, or what the server sent of a client library's object (without the client's defaults)."""
    if isinstance(message, Mapping):
        return message if isinstance(message, dict) else dict(message)
    dump = getattr(message, "model_dump", None)
    return message if dump is None else dump(mode="json", exclude_unset=True)


def listed(values: Sequence[Any] | None) -> list[Any] | None:
    """A sequence as a list."""
    return None if values is None else list(values)


def scalar(value: OutcomeValue) -> OutcomeValue:
    """An outcome's value. numpy's float64 is a float, but not one that every encoder takes."""
    return float(value) if isinstance(value, float) else value


def under_pytest() -> bool:
    """Whether a test runs in this very process: then what is wrong is raised."""
    # the variable alone also reaches the programs that a test starts
    return "pytest" in sys.modules and "PYTEST_CURRENT_TEST" in os.environ
