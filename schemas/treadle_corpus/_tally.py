"""Counting the rows of a version. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass

from treadle_schemas.records import GradedRow

from treadle_corpus._rows import RowMeta
from treadle_corpus.hashing import content_hash, row_line
from treadle_corpus.manifest import StateCounts
from treadle_corpus.pass_at import pass_hat

__all__ = ["Content", "Tally", "kinds_of"]

_DROPS = (
    "rejected",
    "unknown",
    "incomplete",
    "leak",
    "split_moved",
    "duplicate",
    "near_duplicate",
    "rights",
    "expired",
    "redacted",
    "erased",
)


@dataclass(frozen=True)
class Content:
    """What one pass over the members finds."""

    split: dict[str, int]
    completeness: dict[str, StateCounts]
    pass_at_all: dict[str, float | None]
    content_hash: str


@dataclass(frozen=True)
class Tally:
    """How many rows of a corpus stand where.

    `selected` passed the filter, whatever dropped them afterwards; `unknown` is by reason: pending, absent. `dropped` is by reason.
    """

    rows: int
    selected: int
    rejected: int
    unknown: dict[str, int]
    members: int
    dropped: dict[str, int]

    @classmethod
    def of(cls, metas: Iterable[RowMeta]) -> Tally:
        """Count rows whose statuses are decided."""
        statuses: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for meta in metas:
            statuses[meta.status] += 1
            if meta.status == "unknown":
                reasons[meta.decision] += 1
        return cls(
            rows=statuses.total(),
            selected=sum(statuses[s] for s in ("member", "leak", "duplicate", "near_duplicate")),
            rejected=statuses["rejected"],
            unknown={reason: reasons[reason] for reason in ("pending", "absent")},
            members=statuses["member"],
            dropped={reason: statuses[reason] for reason in _DROPS},
        )

    def content(self, members: Iterable[tuple[RowMeta, GradedRow]]) -> Content:
        """One pass over the members in the order of their ids, one row in memory at a time."""
        sides: Counter[str] = Counter()
        states: dict[str, Counter[str]] = {}
        attempts: list[tuple[bytes, float | None]] = []

        def counted_lines() -> Iterator[bytes]:
            for meta, row in members:
                sides[meta.side] += 1
                attempts.append((meta.group, meta.reward))
                for name, (state, _) in row.grade.metrics.items():
                    states.setdefault(name, Counter())[state] += 1
                yield row_line(row)

        total = content_hash(counted_lines())
        return Content(
            split={side: sides[side] for side in ("train", "heldout")},
            completeness={name: _counts(states[name], self.members) for name in sorted(states)},
            pass_at_all={str(k): value for k, value in pass_hat(attempts).items()},
            content_hash=total,
        )


def _counts(found: Counter[str], rows: int) -> StateCounts:
    observed, pending = found["observed"], found["pending"]
    return StateCounts(observed=observed, absent=rows - observed - pending, pending=pending)


def kinds_of(row: GradedRow, into: MutableMapping[str, set[str]]) -> None:
    """Note the metrics of a row and what kind of value each has."""
    for name, (_, value) in row.grade.metrics.items():
        kinds = into.setdefault(name, set())
        match value:
            case None:
                pass
            case bool():
                kinds.add("bool")
            case str():
                kinds.add("text")
            case _:
                kinds.add("number")
