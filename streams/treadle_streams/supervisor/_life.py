"""The life of one supervised process as a pure state machine: values in, values out, time passed in.

A process that should run and does not is waiting for its next start. The n-th end in a row is followed by a pause of

    delay(n) = min(first_delay_s * 2 ** (n - 1), most_delay_s)

and a life of at least `steady_s` begins a new row. Nothing ever gives up: a process that ends at every start is shown as failing, with
its reason, and tried again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Life", "Restarts", "State"]

State = Literal["waiting", "running", "restarting", "failing", "stopping", "stopped"]
"""waiting: not started yet; running; restarting: ended and about to be started again; failing: ended several times in a row, whether or
not it is alive at this moment; stopping, stopped: on purpose."""


@dataclass(frozen=True, kw_only=True)
class Restarts:
    """When a process that ended is started again. Every end counts, also one with exit code 0: services are not meant to end."""

    first_delay_s: float = 0.5
    """Pause after the first end in a row."""
    most_delay_s: float = 10.0
    """Longest pause."""
    steady_s: float = 30.0
    """A life of this length ends the row."""
    failing_after: int = 3
    """So many ends in a row are called failing."""

    def delay_s(self, ends: int) -> float:
        """The pause after the `ends`-th end in a row (counted from 1)."""
        # the exponent is bounded: 2.0 ** 1024 overflows
        return min(self.first_delay_s * 2.0 ** min(ends - 1, 62), self.most_delay_s)


@dataclass(frozen=True, kw_only=True)
class Life:
    """What is known of one process. Times are seconds of any one steadily rising clock."""

    phase: Literal["waiting", "alive", "stopping", "stopped"] = "waiting"
    since: float = 0.0
    """When the phase began."""
    due: float = 0.0
    """While waiting: not to be started before."""
    starts: int = 0
    """Starts so far, failed ones included."""
    ends: int = 0
    """Ends in a row, see `Restarts.steady_s`."""
    exit_code: int | None = None
    """Of the last end: the exit code, a signal's number negated, None before the first end or where it could not be started at all."""
    last_line: str = ""
    """What the process said last before that end."""

    @property
    def restarts(self) -> int:
        """Starts beyond the first."""
        return max(0, self.starts - 1)

    def is_due(self, now: float) -> bool:
        """Whether to start it now."""
        return self.phase == "waiting" and now >= self.due

    def state(self, now: float, rule: Restarts) -> State:
        """The one word that people see."""
        if self.phase in ("stopping", "stopped"):
            return self.phase
        if self.ends >= rule.failing_after and not self._steady(now, rule):
            return "failing"
        if self.phase == "alive":
            return "running"
        return "restarting" if self.starts else "waiting"

    def started(self, now: float) -> Life:
        """It was started."""
        return replace(self, phase="alive", since=now, starts=self.starts + 1)

    def not_started(self, now: float, rule: Restarts, reason: str) -> Life:
        """The system refused to start it."""
        return replace(self, starts=self.starts + 1, exit_code=None)._waiting(now, rule, reason)

    def ended(self, now: float, rule: Restarts, exit_code: int, last_line: str) -> Life:
        """It ended: by itself, or because it was asked to."""
        if self.phase == "stopping":
            return replace(self, phase="stopped", since=now, exit_code=exit_code)
        before = replace(self, exit_code=exit_code, ends=0 if self._steady(now, rule) else self.ends)
        return before._waiting(now, rule, last_line)

    def stopping(self, now: float) -> Life:
        """It is not to run any more: asked to end where it is alive, stopped at once where it is not."""
        if self.phase == "alive":
            return replace(self, phase="stopping", since=now)
        return self if self.phase in ("stopping", "stopped") else replace(self, phase="stopped", since=now)

    def _steady(self, now: float, rule: Restarts) -> bool:
        return self.phase == "alive" and now - self.since >= rule.steady_s

    def _waiting(self, now: float, rule: Restarts, last_line: str) -> Life:
        ends = self.ends + 1
        return replace(self, phase="waiting", since=now, due=now + rule.delay_s(ends), ends=ends, last_line=last_line)
