"""Providers' wire formats, brought into one form. Pure: no client, no recorder."""

from __future__ import annotations

from typing import Final

from treadle.integrations._formats._anthropic import Anthropic
from treadle.integrations._formats._chat import Chat
from treadle.integrations._formats._events import Unreadable, decoded, events
from treadle.integrations._formats._responses import Responses
from treadle.integrations._formats._shape import (
    Asked,
    Assembler,
    Format,
    Reply,
    Sample,
    error_text,
    function_tool,
    picked,
    total_usage,
)

__all__ = [
    "ROUTES",
    "Asked",
    "Assembler",
    "Format",
    "Reply",
    "Sample",
    "Unreadable",
    "decoded",
    "error_text",
    "events",
    "format_of",
    "function_tool",
    "picked",
    "total_usage",
]

_FORMATS: Final[dict[str, Format]] = {
    "/chat/completions": Chat(),
    "/responses": Responses(),
    "/messages": Anthropic(),
}
ROUTES: Final = tuple(_FORMATS)
"""How the path of a request to a model ends."""


def format_of(path: str) -> Format:
    """The format of a path that ends in one of ROUTES."""
    return next(known for end, known in _FORMATS.items() if path.endswith(end))
