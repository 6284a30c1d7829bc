"""Grading: from the outcomes of a row to its metrics, reward and completeness. Pure, with the clock passed in.

A metric's time is up when the clock passes

    max(min(ended_at, append) + horizon, append) + grace

with append the append time of the row's first copy. Until then a metric without outcome is pending, afterwards it is absent. A metric of
level `episode` is not absent, and settles no row, before the episode is over; then it is absent at once where it was observed of the
episode and credited to other steps. All times are integer milliseconds; order among outcomes is by (observed_at in microseconds,
outcome_id).
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, Final

import msgspec
from treadle_schemas.canonical import loads
from treadle_schemas.erasing import ErasedSubjects
from treadle_schemas.errors import FieldError
from treadle_schemas.events import OutcomeValue
from treadle_schemas.records import Grade, MetricState
from treadle_schemas.sealing import NO_KEYS, Keys
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.join.credit import Share
from treadle_streams.join.kept import surviving
from treadle_streams.join.reward import Value
from treadle_streams.join.reward import compile as compile_reward
from treadle_streams.join.sealed import Pinned
from treadle_streams.join.state import NEVER_MS, RowState, Seen

__all__ = ["MAX_TEXT_VALUE_BYTES", "Grading", "counted", "time_up_ms"]

MAX_TEXT_VALUE_BYTES: Final = 4_096
"""Longest text that an outcome may have as its value: a category or a label, not a document."""

_PENDING: Final[MetricState] = ("pending", None)
_ABSENT: Final[MetricState] = ("absent", None)


class Grading:
    """The grading settings of a workspace, checked and compiled once. `grade` is a pure function of the row and the clock."""

    def __init__(self, settings: WorkspaceSettings, keys: Keys = NO_KEYS) -> None:
        """`keys` open what is sealed, of a workspace that encrypts. Raises SettingError for settings that make no sense, RewardError."""
        self.keys: Keys = keys
        self.settings = settings.checked()
        self.metrics = settings.metrics
        self.declared = {m.name: m for m in settings.metrics}
        self.stand_ins: dict[str, Value] = {m.name: m.check(m.absent) for m in settings.metrics}
        self.reward = compile_reward(settings.reward, {m.name: m.type for m in settings.metrics})
        self._grace_ms = _ms(settings.grace_s)
        slowest_s = max((m.horizon_s for m in settings.metrics), default=0.0)
        self.keep_ms = max(_ms(settings.retention_s), min(_ms(slowest_s) + self._grace_ms, NEVER_MS))
        """How long a row is kept after the append of its first copy: never less than the time in which it settles."""
        self._erasures = ErasedSubjects(settings.erased) if settings.erased.subjects else None
        self._horizon_ms = {m.name: _ms(m.horizon_s) for m in settings.metrics}

    def pinned(self) -> Grading:
        """The same for one batch, which sees each key in one state however long it takes."""
        if self.keys is NO_KEYS:
            return self
        same = copy.copy(self)
        same.keys = Pinned(self.keys)
        return same

    def covers_erased(self, subject: str | None, started_us: int) -> bool:
        """Was the subject's work up to this moment (microseconds) erased?"""
        return subject is not None and self._erasures is not None and self._erasures.covers(subject, started_us)

    def times_up(self, row: RowState) -> dict[str, int]:
        """By declared metric, the clock after which it is absent if nothing was observed. Empty for an orphan."""
        if row.captured is None:
            return {}
        ended_ms = row.captured.ended_us // 1000
        return {
            name: time_up_ms(ended_ms, row.append_ms, horizon, self._grace_ms)
            for name, horizon in self._horizon_ms.items()
        }

    def patience_ms(self, row: RowState) -> int:
        """The clock after which a row should have settled, whatever was observed: how long it waits for a part without a word."""
        times = self.times_up(row)
        wanted = [times[m.name] for m in self.metrics if m.required] or list(times.values())
        return max(wanted, default=row.append_ms + self._grace_ms)

    def value(self, name: str, value: OutcomeValue) -> OutcomeValue:
        """The value of an outcome as it is kept. Raises FieldError where it does not fit its metric."""
        metric = self.declared.get(name)
        if metric is not None:
            value = metric.check(value)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise FieldError("$.value", "an undeclared metric keeps integers of 64 bits; declare it as a float")
        if isinstance(value, str) and len(value.encode(errors="surrogatepass")) > MAX_TEXT_VALUE_BYTES:
            raise FieldError("$.value", f"is a text of more than {MAX_TEXT_VALUE_BYTES} bytes")
        return value + 0.0 if isinstance(value, float) else value  # -0.0 is 0.0, as in canonical JSON

    def refit(self, outcomes: dict[str, Seen]) -> None:
        """Take the values of kept outcomes anew from their events, after the metrics were declared otherwise."""
        for outcome_id, seen in outcomes.items():
            if seen.kind == "metric":
                try:
                    value, fits = self.value(seen.name, loads(seen.raw)["value"]), True
                except FieldError:
                    value, fits = None, False
                outcomes[outcome_id] = msgspec.structs.replace(seen, value=value, fits=fits)

    def grade(
        self, row: RowState, clock_ms: int, share: Share, outcomes: Iterable[Seen] | None = None
    ) -> tuple[Grade, int]:
        """The grade of a captured row when its time has run to `clock_ms`, and the clock after which time alone changes it.

        `outcomes` are those of `counted`, where the caller has them already.
        """
        by_name: dict[str, list[Seen]] = {}
        for outcome in counted(row, share) if outcomes is None else outcomes:
            if outcome.kind == "metric" and outcome.fits:
                by_name.setdefault(outcome.name, []).append(outcome)
        metrics: dict[str, MetricState] = {}
        values: dict[str, Value] = {}
        next_ms = NEVER_MS
        pending = 0
        settled = True
        times = self.times_up(row)
        for metric in self.metrics:
            name, up_ms = metric.name, times[metric.name]
            still_open = False
            if metric.level == "episode":
                up_ms = -1 if name in share.elsewhere else up_ms
                if not share.ended:
                    up_ms, still_open = max(up_ms, share.idle_ms), clock_ms <= share.idle_ms
            state = _ABSENT if clock_ms > up_ms else _PENDING
            if name in by_name:
                state = _aggregated(metric.aggregate, metric.type, by_name.pop(name))
            metrics[name] = state
            if still_open:
                next_ms = min(next_ms, share.idle_ms)
                settled = settled and not metric.required
            if state[0] == "pending":
                pending += 1
                next_ms = min(next_ms, up_ms)
                settled = settled and not metric.required
            else:
                # absent is NULL unless the metric says what it stands for; pending is NULL always
                values[name] = state[1] if state[0] == "observed" else self.stand_ins[name]
        for name in sorted(by_name):
            metrics[name] = _aggregated("last", None, by_name[name])
        grade = Grade(
            metrics=metrics,
            reward=self.reward(values),
            completeness=(len(self.metrics) - pending) / len(self.metrics) if self.metrics else 1.0,
            settled=settled,
            grading_version=self.settings.grading_version,
        )
        return grade, next_ms


def counted(row: RowState, share: Share) -> list[Seen]:
    """The outcomes of a row that count, its own and those credited to it, in (observed_at, outcome_id) order."""
    left = surviving(row)
    if share.outcomes:
        left = sorted([*left, *share.outcomes], key=lambda seen: (seen.observed_us, seen.outcome_id, seen.raw))
    return left


def time_up_ms(ended_ms: int, append_ms: int, horizon_ms: int, grace_ms: int) -> int:
    """max(min(ended, append) + horizon, append) + grace: a wrong clock of the agent cannot move it before the append."""
    return min(max(min(ended_ms, append_ms) + horizon_ms, append_ms) + grace_ms, NEVER_MS)


def _aggregated(aggregate: str, kind: str | None, outcomes: list[Seen]) -> MetricState:
    if aggregate in ("last", "first"):
        value: Any = outcomes[-1 if aggregate == "last" else 0].value
    else:
        present = [o.value for o in outcomes if o.value is not None]
        value = _NUMERIC[aggregate](present) if present else None
        if value is not None and kind == "bool" and aggregate in ("max", "min"):
            value = bool(value)
    return _ABSENT if value is None else ("observed", value)


def _total(values: Iterable[Any]) -> float:
    values = [float(v) for v in values]
    try:
        return math.fsum(values)  # correctly rounded, so the order of arrival does not show
    except OverflowError:
        return _clamped(sum(map(Fraction, values)))


def _mean(values: list[Any]) -> float:
    try:
        total = math.fsum(float(v) for v in values)
    except OverflowError:
        return float(sum(map(Fraction, values)) / len(values))
    return total / len(values)


def _clamped(exact: Fraction | int) -> float:
    try:
        return float(exact)
    except OverflowError:
        return sys.float_info.max if exact > 0 else -sys.float_info.max


_NUMERIC: Final[dict[str, Callable[[list[Any]], Any]]] = {"mean": _mean, "sum": _total, "max": max, "min": min}


def _ms(seconds: float) -> int:
    return NEVER_MS if seconds * 1000 >= NEVER_MS else int(seconds * 1000)
