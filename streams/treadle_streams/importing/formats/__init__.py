"""Exports of other products, read as interactions and outcomes.

Each module turns one decoded document of its product into items (`_items`), purely: no clock, no random id. The index knows which
item belongs to which; `FORMATS` names the products.
"""

from __future__ import annotations

from typing import Final

from treadle_streams.importing.formats._index import Index
from treadle_streams.importing.formats._items import (
    Bad,
    Call,
    Format,
    Item,
    Passed,
    Recall,
    Remember,
    Score,
    Span,
    Trace,
)
from treadle_streams.importing.formats._lines import interaction_line, outcome_line
from treadle_streams.importing.formats.langfuse import langfuse
from treadle_streams.importing.formats.langsmith import langsmith
from treadle_streams.importing.formats.openai import openai
from treadle_streams.importing.formats.otlp import otlp
from treadle_streams.importing.formats.phoenix import phoenix
from treadle_streams.importing.formats.treadle import treadle

__all__ = [
    "FORMATS",
    "Bad",
    "Call",
    "Format",
    "Index",
    "Item",
    "Passed",
    "Recall",
    "Remember",
    "Score",
    "Span",
    "Trace",
    "interaction_line",
    "outcome_line",
]

FORMATS: Final[dict[str, Format]] = {
    "langfuse": langfuse,
    "langsmith": langsmith,
    "openai": openai,
    "otlp": otlp,
    "phoenix": phoenix,
    "treadle": treadle,
}
