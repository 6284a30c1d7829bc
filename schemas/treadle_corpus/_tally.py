"""Counting the rows of a version. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass

from treadle_schemas.records import GradedRow, Progress

from treadle_corpus._rows import RowMeta, grade_of
from treadle_corpus.manifest import StateCounts
from treadle_corpus.pass_at import pass_of

__all__ = ["Counts", "Tally", "kinds_of"]

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
        """Count rows whose statuses are decided. Raises FieldError."""
        return Counts.of(metas).tally


class Counts:
    """What is counted of rows and kept up to date as they change, so that a version does not count all of them again."""

    def __init__(self) -> None:
        self._statuses: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._sides: Counter[str] = Counter()
        self._states: Counter[tuple[str, str]] = Counter()
        """Members by (metric, state)."""
        self._tasks: dict[bytes, tuple[int, int]] = {}
        """Graded attempts and successes of the members, by split group."""
        self._shapes: Counter[tuple[int, int]] = Counter()
        """Tasks by these two."""
        self._appends: Counter[int] = Counter()
        """Members by append time."""

    @classmethod
    def of(cls, metas: Iterable[RowMeta]) -> Counts:
        """Count rows whose statuses are decided. Raises FieldError."""
        counts = cls()
        for meta in metas:
            counts._count(meta, 1)
        return counts

    def changed(self, changes: Iterable[tuple[RowMeta, RowMeta]]) -> Counts:
        """The counts after (before, after) of rows that were counted. Raises FieldError."""
        counts = Counts()
        for name, counter in vars(self).items():
            setattr(counts, name, counter.copy())
        for before, after in changes:
            counts._count(before, -1)
            counts._count(after, 1)
        return counts

    def replace(self, before: RowMeta | None, after: RowMeta) -> None:
        """One row changed, or is new. Raises FieldError."""
        if before is not None:
            self._count(before, -1)
        self._count(after, 1)

    def _count(self, meta: RowMeta, by: int) -> None:
        self._statuses[meta.status] += by
        if meta.status == "unknown":
            self._reasons[meta.decision] += by
        if meta.status == "member":
            self._sides[meta.side] += by
            for name, (state, _) in grade_of(meta.rest)[0].metrics.items():
                self._states[name, state] += by
            self._appends[meta.append_ms] += by
            if not self._appends[meta.append_ms]:
                del self._appends[meta.append_ms]
            if meta.reward is not None:
                self._attempt(meta.group, by, by * (meta.reward > 0))

    def _attempt(self, task: bytes, attempts: int, successes: int) -> None:
        before = self._tasks.get(task)
        if before is not None:
            self._shapes[before] -= 1
            if not self._shapes[before]:
                del self._shapes[before]
        n, c = before or (0, 0)
        after = (n + attempts, c + successes)
        if after[0]:
            self._tasks[task] = after
            self._shapes[after] += 1
        else:
            del self._tasks[task]

    @property
    def pass_at_all(self) -> dict[str, float | None]:
        """pass^1 to pass^4 over the tasks of the members, see `pass_hat`."""
        return {str(k): value for k, value in pass_of(self._shapes).items()}

    @property
    def last_append_ms(self) -> int | None:
        """Append time of the newest member."""
        return max(self._appends, default=None)

    @property
    def tally(self) -> Tally:
        """Where the rows stand."""
        statuses = self._statuses
        return Tally(
            rows=statuses.total(),
            selected=sum(statuses[s] for s in ("member", "leak", "duplicate", "near_duplicate")),
            rejected=statuses["rejected"],
            unknown={reason: self._reasons[reason] for reason in ("pending", "absent")},
            members=statuses["member"],
            dropped={reason: statuses[reason] for reason in _DROPS},
        )

    @property
    def split(self) -> dict[str, int]:
        """Members by side."""
        return {side: self._sides[side] for side in ("train", "heldout")}

    @property
    def completeness(self) -> dict[str, StateCounts]:
        """States by metric, over the members."""
        rows = self._statuses["member"]
        found: dict[str, StateCounts] = {}
        for name in sorted({name for (name, _), count in self._states.items() if count}):
            observed, pending = self._states[name, "observed"], self._states[name, "pending"]
            found[name] = StateCounts(observed=observed, absent=rows - observed - pending, pending=pending)
        return found


def kinds_of(row: GradedRow | Progress, into: MutableMapping[str, set[str]]) -> None:
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
