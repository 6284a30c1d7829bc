"""What a writer asks of the filter of a policy, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from treadle_schemas.records import GradedRow

from treadle_corpus._rows import Decision

__all__ = ["Refusal", "Selector"]


class Refusal(NamedTuple):
    """A record that contradicts what the corpus holds: `position` in the batch, and why. It belongs among the dead letters."""

    position: int
    problem: str


class Selector(Protocol):
    """The filter of a policy, ready to decide. The writer asks it anew for every row when its identity changes."""

    @property
    def identity(self) -> str:
        """Names everything that the decision depends on beside the row."""
        ...

    def select(self, rows: Sequence[GradedRow]) -> list[Decision]:
        """A decision for each row; `pending` or `absent` where the filter knows nothing, because of a metric in that state."""
        ...
