"""What can be consumed: the kinds of topics, their types, and what else lies on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from treadle_schemas.codec import (
    CLOCK,
    EPISODE_END,
    ERASURE,
    GRADED,
    IMPORT_MARKER,
    INTERACTION,
    OUTCOME,
    PART,
    PROGRESS,
    REGRADED,
    RELEASE,
    SNAPSHOT,
)
from treadle_schemas.events import Interaction, Outcome
from treadle_schemas.records import GradedRow, Progress, ReleaseEvent, SnapshotRecord

__all__ = ["BESIDE", "PUBLIC_INPUTS", "REVISED", "TYPES", "Kind", "Revisions", "Start"]

Kind = Literal["interactions", "outcomes", "graded", "progress", "snapshots", "releases"]
Start = Literal["beginning", "end"] | Mapping[int, int]
Revisions = Literal["all", "latest"]

TYPES: Final[dict[str, tuple[str, type[Any]]]] = {
    "interactions": (INTERACTION, Interaction),
    "outcomes": (OUTCOME, Outcome),
    "graded": (GRADED, GradedRow),
    "progress": (PROGRESS, Progress),
    "snapshots": (SNAPSHOT, SnapshotRecord),
    "releases": (RELEASE, ReleaseEvent),
}
"""By kind, the type of the wanted events and the struct that they become."""
BESIDE: Final = {
    INTERACTION: (PART, IMPORT_MARKER, EPISODE_END, ERASURE),
    OUTCOME: (IMPORT_MARKER,),
    GRADED: (PART, REGRADED),
    PROGRESS: (CLOCK, REGRADED),
}
"""What else lies on a topic, by the type of what is wanted from it."""
PUBLIC_INPUTS: Final = (INTERACTION, OUTCOME)
"""Types that anybody may write: one that cannot be read is counted, and holds up nobody."""
REVISED: Final = ("graded", "progress")
"""Kinds with revisions of rows."""
