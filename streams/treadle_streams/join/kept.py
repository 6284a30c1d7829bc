"""What is kept of what was said of one target, and which of it counts. Pure."""

from __future__ import annotations

from typing import Protocol

from treadle_streams.join.state import NEVER_MS, Seen

__all__ = ["Keeps", "surviving"]


class Keeps(Protocol):
    """Where it is kept: a row's state, or an episode's."""

    outcomes: dict[str, Seen]
    retracted_ids: set[tuple[str, str]]
    retracted_until: dict[str, int]
    outcome_bytes: int
    rights: dict[str, tuple[int, str]]


def surviving(kept: Keeps) -> list[Seen]:
    """The outcomes that no retract takes back, in (observed_at, outcome_id) order."""
    until = kept.retracted_until
    if not (until or kept.retracted_ids) and len(kept.outcomes) < 2:  # as nearly all are
        return list(kept.outcomes.values())
    left = [
        o
        for o in kept.outcomes.values()
        if o.observed_us > until.get(o.name, -NEVER_MS) and (o.name, o.outcome_id) not in kept.retracted_ids
    ]
    left.sort(key=lambda o: (o.observed_us, o.outcome_id))
    return left
