"""Rebuilding lost state from the log: the inputs are read again from their start, with `.graded` as the floor for revisions. Pure.

    seeds       rows that know nothing but their last revision and its fingerprint, written by `treadle restore`
    replay      events are folded, and state ends in its time; nothing is graded, and what was said before is not said again
    sweep       when every input has passed the end that it had at the restore, all rows are graded, a bounded number a transaction

So a row whose content is what `.graded` has says nothing, and any other goes on above its last revision. Live events that come meanwhile
are folded with the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from treadle_schemas.records import Provenance

from treadle_streams.join.emissions import graded_hash_of
from treadle_streams.join.state import RowState

__all__ = ["Restore", "seed_of"]


@dataclass(slots=True)
class Restore:
    """How far the rebuilding of a partition is."""

    until: dict[str, int] = field(default_factory=dict)
    """By topic kind, the end of the input at the restore."""
    said: dict[str, int] = field(default_factory=dict)
    """By topic kind, where the lost state stood: what events below it had to say is on the log already."""
    cursor: bytes = b""
    """The last row that the sweep has graded."""

    def replaying(self, offsets: Mapping[str, int]) -> bool:
        """Is any input still below the end that it had?"""
        return any(offsets.get(kind, 0) < end for kind, end in self.until.items())

    def known(self, kind: str, offset: int) -> bool:
        """Had the lost state taken this record in?"""
        return offset < self.said.get(kind, 0)

    def plain(self) -> list[Any]:
        """As META keeps it."""
        return [self.until, self.said, self.cursor.hex()]

    @classmethod
    def of_plain(cls, plain: list[Any]) -> Restore:
        """The inverse of `plain`."""
        return cls(plain[0], plain[1], bytes.fromhex(plain[2]))


class _Known(msgspec.Struct):
    """What is needed of records.GradedRow."""

    episode_id: str
    interaction_id: str
    provenance: Provenance


_DECODER = msgspec.json.Decoder(_Known)


def seed_of(value: bytes) -> RowState:
    """The seed of a row, from its last record on `.graded`. Raises msgspec.DecodeError for other bytes."""
    row = _DECODER.decode(value)
    return RowState(
        row.episode_id,
        row.interaction_id,
        append_ms=row.provenance.append_ms,
        revision=row.provenance.revision,
        graded_hash=graded_hash_of(value),
    )
