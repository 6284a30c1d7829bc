"""What the wheel has done, recounted from its topics alone: the numbers that the demo shows and reports.

A pure fold over records of `.interactions`, `.graded`, `.snapshots` and `.releases`. Times are the broker's append times.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from treadle.log import Record
from treadle_schemas import GradedRow, ReleaseEvent, SnapshotRecord
from treadle_schemas.codec import GRADED, INTERACTION, RELEASE, SNAPSHOT, decode

__all__ = ["Ledger", "Row", "Stamped"]


@dataclass(kw_only=True)
class Row:
    """What is known of one interaction."""

    turn: int
    release: str | None
    append_ms: int
    reward: float | None = None
    settled: bool = False
    revision: int = 0


@dataclass(frozen=True)
class Stamped:
    """A record of `.snapshots` or `.releases` with its append time."""

    at_ms: int
    record: Any


@dataclass(kw_only=True)
class Ledger:
    """The fold. Feed it records in the order of their partitions; topics may interleave in any way."""

    rows: dict[str, Row] = field(default_factory=dict)
    snapshots: list[Stamped] = field(default_factory=list)
    releases: list[Stamped] = field(default_factory=list)
    _early: dict[str, list[GradedRow]] = field(default_factory=dict)

    def take(self, records: Iterable[Record]) -> None:
        """Fold in records. Those that this ledger does not know (markers of an import) are passed over."""
        for record in records:
            event = decode(record.value, record.headers)
            if event.type == INTERACTION:
                self._interaction(event.data, record.timestamp_ms)
            elif event.type == GRADED:
                self._graded(msgspec.convert(event.data, GradedRow))
            elif event.type == SNAPSHOT:
                self.snapshots.append(Stamped(record.timestamp_ms, msgspec.convert(event.data, SnapshotRecord)))
            elif event.type == RELEASE:
                self.releases.append(Stamped(record.timestamp_ms, msgspec.convert(event.data, ReleaseEvent)))

    def of_turn(self, turn: int) -> list[Row]:
        """The rows of a turn."""
        return [row for row in self.rows.values() if row.turn == turn]

    def live_success(self, turn: int) -> float | None:
        """Mean reward over the rows of a turn whose reward is known, None without any."""
        rewards = [row.reward for row in self.of_turn(turn) if row.reward is not None]
        return sum(rewards) / len(rewards) if rewards else None

    def decision(self, corpus: str, version: int) -> Stamped | None:
        """What the registry said of the candidate trained on a version."""
        for stamped in self.releases:
            event: ReleaseEvent = stamped.record
            said = event.event in ("promoted", "rejected", "not_enough_evidence", "failed")
            if said and event.evidence.get("corpus") == corpus and event.evidence.get("version") == version:
                return stamped
        return None

    def _interaction(self, data: dict[str, Any], at_ms: int) -> None:
        ident = data["interaction_id"]
        known = self.rows.get(ident)
        if known is not None:
            known.append_ms = min(known.append_ms, at_ms)
            return
        turn = data.get("tags", {}).get("turn")
        self.rows[ident] = Row(turn=turn, release=data.get("release"), append_ms=at_ms)
        for graded in self._early.pop(ident, ()):
            self._graded(graded)

    def _graded(self, graded: GradedRow) -> None:
        row = self.rows.get(graded.interaction_id)
        if row is None:  # its interaction is on another topic and may be read later
            self._early.setdefault(graded.interaction_id, []).append(graded)
            return
        if graded.provenance.revision > row.revision:
            row.revision = graded.provenance.revision
            row.reward = graded.grade.reward
            row.settled = graded.grade.settled
