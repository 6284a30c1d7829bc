"""The clock of a partition, and the imports under way on it. Pure arithmetic over what META keeps.

The clock is the smallest append time consumed over the input topics; a topic known to be at its end counts as the broker time at which
that was known, minus a margin. It never goes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = ["END_MARGIN_MS", "IMPORT_PATIENCE_MS", "INPUTS", "ImportState", "Input", "advanced"]

Input = Literal["interactions", "outcomes", "references"]
INPUTS: Final[tuple[Input, ...]] = ("interactions", "outcomes", "references")
MARKED: Final[tuple[Input, ...]] = ("interactions", "outcomes")
"""The topics that carry import markers."""

END_MARGIN_MS: Final = 5_000
"""How far behind broker time a topic at its end counts: covers brokers' clocks and records appended but not yet replicated."""
IMPORT_PATIENCE_MS: Final = 3_600_000
"""An import without end markers is over after this much clock since its last record."""


def advanced(clock_ms: int, appended: Mapping[str, int], at_end_ms: Mapping[str, int]) -> int:
    """The clock after more was consumed.

    `appended` is the newest append time consumed of each topic, `at_end_ms` the broker time at which a topic was known to be at its end.
    """
    times = (
        max(appended.get(topic, 0), at_end_ms[topic] - END_MARGIN_MS if topic in at_end_ms else 0) for topic in INPUTS
    )
    return max(clock_ms, min(times))


@dataclass(slots=True)
class ImportState:
    """One import on one partition. A repeated import has the same id, so runs are counted by their begin markers."""

    begun: dict[str, int] = field(default_factory=dict)
    """Begin markers consumed, by topic."""
    ended: dict[str, int] = field(default_factory=dict)
    """The run that the last end marker closed, by topic."""
    last_ms: int = 0
    """Append time of its newest record or marker here."""

    def see(self, topic: Input, append_ms: int, phase: Literal["begin", "end"] | None = None) -> None:
        """Take in a record (no phase) or a marker."""
        self.last_ms = max(self.last_ms, append_ms)
        if phase == "begin":
            self.begun[topic] = self.begun.get(topic, 0) + 1
        elif phase == "end":
            self.ended[topic] = self.begun.get(topic, 0)

    def over(self, clock_ms: int) -> bool:
        """Whether both end markers of the newest run are consumed, or an hour of clock has passed since its last record.

        A reader may be in the second run on one topic and still in the first on the other: then the counts differ and it is not over.
        """
        runs = {self.begun.get(topic, 0) for topic in MARKED} | {self.ended.get(topic, 0) for topic in MARKED}
        return (len(runs) == 1 and runs != {0}) or clock_ms > self.last_ms + IMPORT_PATIENCE_MS
