"""The demo's event clock: it starts in the past and runs fast, one simulated day a turn."""

from __future__ import annotations

from dataclasses import dataclass

from treadle_schemas.moments import to_micros

__all__ = ["EventClock"]


@dataclass(frozen=True)
class EventClock:
    """Event times in microseconds since the epoch. Turn 1 is the first day."""

    START = "2024-03-04T08:00:00Z"
    WORKDAY_S = 18 * 3600.0
    """The agent works 18 hours of each day."""
    DAY_S = 24 * 3600.0

    def start_of(self, turn: int) -> int:
        """When the agent begins work on the day of `turn`."""
        return to_micros(self.START, "start") + int((turn - 1) * self.DAY_S * 1e6)

    def cut(self, turn: int) -> int:
        """The end of the day: what the world reports later than this belongs to a later turn."""
        return self.start_of(turn + 1)
