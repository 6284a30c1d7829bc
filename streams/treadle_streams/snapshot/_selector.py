"""A policy ready to decide about single rows: usage rights, required metrics, filter, in that order."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence

from treadle_corpus import Decision, Policy
from treadle_schemas.errors import SettingError
from treadle_schemas.records import GradedRow

from treadle_streams import filter as filters
from treadle_streams.filter import SqlType

__all__ = ["PolicySelector"]


class PolicySelector:
    """The selector of a policy. What needs other rows, or the time, is decided by treadle_corpus."""

    def __init__(self, policy: Policy, metrics: Mapping[str, SqlType], watermark_ms: int) -> None:
        """`metrics` are those that are declared or were seen. Raises FilterError, SettingError for a required metric that is neither."""
        self._policy = policy
        self._filter = filters.compile(policy.filter, metrics, watermark_ms)
        for name in policy.require:
            if name not in metrics:
                near = difflib.get_close_matches(name, metrics, 1, 0.6)
                known = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(metrics))}"
                raise SettingError(f"require: no metric {name!r} is declared or was seen; {known}")
        self.identity = self._filter.identity
        """Names all that a decision depends on beside the row."""
        if policy.require or policy.rights:
            said = "\0".join((self.identity, *sorted(policy.require), "", *sorted(policy.rights)))
            self.identity = hashlib.sha256(said.encode()).hexdigest()[:16]

    def select(self, rows: Sequence[GradedRow]) -> list[Decision]:
        """The decision for each row."""
        return [self._before(row) or found for row, found in zip(rows, self._filter.select(rows), strict=True)]

    def _before(self, row: GradedRow) -> Decision | None:
        denied = (
            [] if row.rights is None else [use for use in self._policy.rights if getattr(row.rights, use) == "deny"]
        )
        if denied:
            return "rights"
        states = (row.grade.metrics.get(name, ("absent", None))[0] for name in self._policy.require)
        return "incomplete" if any(state != "observed" for state in states) else None
