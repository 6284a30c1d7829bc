"""What a run and a dry run both count, as JSON."""

from __future__ import annotations

from typing import Any

from treadle_corpus import Tally
from treadle_schemas.moments import from_micros

__all__ = ["counts_json"]


def counts_json(tally: Tally, pending: int, refused: int, settled_through_ms: int) -> dict[str, Any]:
    """Counts are rows; `settled_through_ms` 0 stands for nothing."""
    return {
        "selected": tally.selected,
        "rejected": tally.rejected,
        "unknown": sum(tally.unknown.values()),
        "unknown_by_reason": tally.unknown,
        "pending": pending,
        "dropped": tally.dropped,
        "refused": refused,
        "settled_through": from_micros(settled_through_ms * 1000) if settled_through_ms else None,
    }
