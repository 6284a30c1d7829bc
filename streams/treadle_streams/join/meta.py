"""META: what a partition knows of itself, the last record of every changelog batch. Source offsets live here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from treadle_schemas.canonical import loads
from treadle_schemas.errors import FieldError

from treadle_streams.join.clock import ImportState
from treadle_streams.join.errors import StateError
from treadle_streams.join.restoring import Restore
from treadle_streams.join.state import json_bytes

__all__ = ["Meta"]

# Type byte and deadline as every record of the changelog has them, so that one reader serves all.
_HEAD = b"M" + bytes(8)


@dataclass(slots=True)
class Meta:
    """Positions, clock, imports under way and counts of one partition."""

    offsets: dict[str, int] = field(default_factory=dict)
    """By topic kind, the next offset to read: past transaction markers too."""
    appended: dict[str, int] = field(default_factory=dict)
    """By topic kind, the newest append time consumed (ms)."""
    clock_ms: int = 0
    imports: dict[str, ImportState] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """captured, settled, orphans, waiting (for a part) are gauges over kept rows;
    graded, corrections, duplicates, clock_ahead and the rest only grow."""
    dead_letters: dict[str, int] = field(default_factory=dict)
    """By reason."""
    regraded: int = 1
    """The grading version that every row has, at least."""
    grading: int = 1
    """The newest grading version that a row may have."""
    cursor: bytes = b""
    """While they differ: the key up to which records were graded anew."""
    looked_at: int = 0
    """Rows up to there."""
    restore: Restore | None = None
    """While lost state is being rebuilt from the log."""

    def copy(self) -> Meta:
        """A copy that can change without touching this one."""
        return Meta.decode(self.encode())

    def count(self, name: str, by: int = 1) -> None:
        """Add to a count."""
        if by:
            self.counts[name] = self.counts.get(name, 0) + by

    def encode(self) -> bytes:
        """The bytes of META."""
        return _HEAD + json_bytes(
            {
                "layout": 1,
                "offsets": self.offsets,
                "appended": self.appended,
                "clock": self.clock_ms,
                "imports": {i: [s.begun, s.ended, s.last_ms] for i, s in self.imports.items()},
                "counts": self.counts,
                "dead_letters": self.dead_letters,
                **({} if self.grading == 1 else {"grading": self.grading_at}),
                **({} if self.restore is None else {"restore": self.restore.plain()}),
            }
        )

    @property
    def grading_at(self) -> tuple[int, int, str, int]:
        """How far grading anew is."""
        return self.regraded, self.grading, self.cursor.hex(), self.looked_at

    @classmethod
    def decode(cls, data: bytes) -> Meta:
        """Raises StateError for other bytes."""
        try:
            if data[: len(_HEAD)] != _HEAD:
                raise StateError(f"{data[:40]!r} is no META record")
            plain: dict[str, Any] = loads(data[len(_HEAD) :])
            if plain["layout"] != 1:
                raise StateError(f"META of layout {plain['layout']!r}: this treadle reads layout 1")
            regraded, grading, cursor, looked_at = plain.get("grading", (1, 1, "", 0))
            return cls(
                offsets=plain["offsets"],
                appended=plain["appended"],
                clock_ms=plain["clock"],
                imports={i: ImportState(*s) for i, s in plain["imports"].items()},
                counts=plain["counts"],
                dead_letters=plain["dead_letters"],
                regraded=regraded,
                grading=grading,
                cursor=bytes.fromhex(cursor),
                looked_at=looked_at,
                restore=Restore.of_plain(plain["restore"]) if "restore" in plain else None,
            )
        except (FieldError, KeyError, TypeError, ValueError) as err:
            raise StateError(f"{data[:40]!r}... is no META record: {err}") from err
