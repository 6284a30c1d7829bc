"""The errors of graders.

StreamsError (treadle_streams.errors)
└── GraderError
    ├── GraderChanged        the same version of a grader has published verdicts of another prompt, model or program
    ├── GraderRunning        a grader of that name runs on this machine
    ├── GraderRefused        the endpoint will never answer like this: a wrong key, address, model or request
    ├── EndpointDown         so many gradings in a row found no working endpoint
    ├── BudgetSpent          the budget is spent
    └── JudgeFailed          one grading failed; retried where that can help, then counted and written down
"""

from __future__ import annotations

from treadle_streams.errors import StreamsError

__all__ = [
    "BudgetSpent",
    "EndpointDown",
    "GraderChanged",
    "GraderError",
    "GraderRefused",
    "GraderRunning",
    "JudgeFailed",
]


class GraderError(StreamsError):
    """Base of the graders' errors."""


class GraderChanged(GraderError):
    """The same version of a grader has published verdicts of another prompt, model or program."""

    exit_code = 2

    def __init__(self, name: str, version: str, known: str, now: str) -> None:
        super().__init__(
            f"grader {name} version {version} has published verdicts with the fingerprint {known}, but what it would run now has {now}: "
            "prompt, model or program changed. Give it a new version, or put the old one back"
        )


class GraderRunning(GraderError):
    """A grader of that name runs on this machine."""


class GraderRefused(GraderError):
    """The endpoint will never answer like this: a wrong key, address, model or request."""

    exit_code = 2


class EndpointDown(GraderError):
    """So many gradings in a row found no working endpoint. They are not marked as failed: the next start grades them again."""

    retriable = True
    exit_code = 5


class BudgetSpent(GraderError):
    """The budget is spent. `for_good` tells the total budget from the day's."""

    exit_code = 3

    def __init__(self, what: str, *, for_good: bool) -> None:
        super().__init__(f"the budget is spent: {what}")
        self.for_good = for_good


class JudgeFailed(GraderError):
    """One grading failed. `endpoint` says that it says nothing about the interaction: the endpoint did not work."""

    def __init__(
        self, message: str, *, retriable: bool = False, endpoint: bool = False, after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.retriable = retriable
        self.endpoint = endpoint
        self.after_s = after_s
        """How long the endpoint asks to wait."""
