"""What the two environments have in common: an attempt at a task in its own SQLite database.

A subclass says which database, which tools and which question to the resulting state decides success. Nobody scripts an outcome:
the calls are executed, and SQL judges what they left behind.
"""

from __future__ import annotations

import random
import sqlite3
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from treadle_schemas.environment import Attempt, Environment, Message, Task, Verdict

from treadle_demo._calls import Call, assistant_call, assistant_prose, parse_call, tool_answer

__all__ = ["METRIC", "SqlAttempt", "integer", "late_verdicts", "succeeds"]

METRIC = "reward"
"""The metric both environments report: the one a new workspace requires."""
HOUR_S = 3600.0
NO_ANSWER_SHARE = 0.10
"""Customers who never answer: their rows must not settle as failures."""
REPEATED_SHARE = 0.05
"""Answers that are delivered twice, as at-least-once webhooks do."""


class SqlAttempt(ABC):
    """One try at a task, in an in-memory database that only this attempt sees (about 0.1 ms to set up)."""

    max_calls: ClassVar[int] = 2
    """The attempt is over after this many calls: one to look up, one to act."""
    lookup: ClassVar[str]
    """The tool that only reads. Any other call ends the attempt."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.messages: list[Message] = [dict(message) for message in task.messages]
        self.last_call: Call | None = None
        self.last_result: dict[str, Any] = {}
        self._calls = 0
        self._open = True
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        self._prepare(self._db)

    def act(self, text: str) -> bool:
        """Carry out what the model wrote and append it with the tool's answer. Prose ends the attempt. True while it is open."""
        if not self._open:
            raise ValueError(f"the attempt at {self.task.task_id} is over; start another with Environment.start")
        call = parse_call(text)
        if call is None:
            self.messages.append(assistant_prose(text))
            self.last_call, self._open = None, False
            return False
        index, self._calls = self._calls, self._calls + 1
        self.last_call, self.last_result = call, self._execute(call)
        self.messages.append(assistant_call(call.name, call.arguments_json, index))
        self.messages.append(tool_answer(self.last_result, index))
        self._open = self._goes_on(call) and self._calls < self.max_calls
        return self._open

    def success(self) -> float:
        """1.0 when the state of the database says that the case is settled, else 0.0."""
        sql, values = self._question()
        return float(self._db.execute(sql, values).fetchone()[0])

    def close(self) -> None:
        """Drop the database."""
        self._db.close()

    def _goes_on(self, call: Call) -> bool:
        """Whether the attempt stays open after this call."""
        return call.name == self.lookup

    def _execute(self, call: Call) -> dict[str, Any]:
        try:
            return self._run(self._db, call)
        except sqlite3.IntegrityError as err:
            # raised by the schema's triggers and constraints: the systems behind the desk refuse the change
            return {"error": str(err)}

    @abstractmethod
    def _prepare(self, db: sqlite3.Connection) -> None:
        """Make the schema and the rows of this task."""

    @abstractmethod
    def _run(self, db: sqlite3.Connection, call: Call) -> dict[str, Any]:
        """Execute one call. May raise sqlite3.IntegrityError, which becomes the tool's answer."""

    @abstractmethod
    def _question(self) -> tuple[str, dict[str, Any]]:
        """SQL and its values; the first column of the only row is 1 when the case is settled."""


def integer(value: Any) -> int | None:
    """`value` when it is a whole number that SQLite can hold, else None."""
    # bool is an int in Python; a number beyond 64 bits makes sqlite3 raise OverflowError
    ok = isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    return value if ok else None


def late_verdicts(rng: random.Random, *, settled: bool, pleased: bool, asker: str, auditor: str) -> list[Verdict]:
    """What the world reports of an attempt, in seconds after it.

    The asker answers after a median of 2.7 h (lognormal), or never. Somebody pleased although the case is not settled is found out
    by the auditor a median of 5 h later, who takes the answer back and reports a failure. An answer delivered twice keeps its `ref`
    and its time: it is the same observation.
    """
    if rng.random() < NO_ANSWER_SHARE:
        return []
    answered_s = rng.lognormvariate(1.0, 0.8) * HOUR_S
    answer = Verdict(after_s=answered_s, name=METRIC, value=float(settled or pleased), source=asker, ref="answer")
    verdicts = [answer]
    if rng.random() < REPEATED_SHARE:
        verdicts.append(answer)
    if pleased and not settled:
        found_s = answered_s + rng.lognormvariate(1.6, 0.6) * HOUR_S
        verdicts.append(Verdict(after_s=found_s, name=METRIC, value=None, source=auditor, op="retract", ref="answer"))
        verdicts.append(Verdict(after_s=found_s, name=METRIC, value=0.0, source=auditor, ref="audit"))
    return verdicts


def succeeds(environment: Environment, task: Task, text: str) -> bool:
    """Whether one call alone, tried in a fresh world, does what the task asks. For demonstrations and tests."""
    attempt: Attempt = environment.start(task)
    try:
        attempt.act(text)
        return attempt.success() > 0
    finally:
        attempt.close()
