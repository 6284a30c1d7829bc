"""What a product's export says, in treadle's words: what every format module yields, one document at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from treadle_schemas.errors import FieldError

__all__ = ["Bad", "Call", "Format", "Item", "Passed", "Recall", "Remember", "Score", "Span", "Trace"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """A node of a trace that is no call of a model: an agent, a tool, a chain. It says who called whom."""

    id: str
    trace_id: str
    parent_id: str | None = None
    name: str = ""
    agent: bool = False
    """Whether it stands for an agent, so that calls below it are that agent's."""
    session: str | None = None
    ended_at: str = ""
    subject: str | None = None


@dataclass(frozen=True, kw_only=True)
class Call(Span):
    """One call of a model. `response` counts the messages, from the end, that the model produced: they are `messages[-response:]`."""

    messages: list[dict[str, Any]]
    response: int
    started_at: str
    fields: dict[str, Any] = field(default_factory=dict)
    """More fields of the interaction, as they are: model, tools, usage, error..."""

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.fields.get("status") == "error"


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What an export says of a trace as a whole."""

    id: str
    name: str = ""
    session: str | None = None
    subject: str | None = None
    tags: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A judgement. It is about a span, else about a trace (its last call), else about a whole session."""

    id: str | None
    name: str
    value: bool | int | float | str | None
    observed_at: str
    span_id: str | None = None
    trace_id: str | None = None
    session: str | None = None
    kind: Literal["metric", "comment", "preference", "demonstration"] = "metric"
    messages: list[dict[str, Any]] | None = None
    source: str | None = None


@dataclass(frozen=True)
class Remember:
    """Something that another document refers to by `key`, such as the request of a batch."""

    key: str
    value: Any


@dataclass(frozen=True)
class Passed:
    """A part that was understood and holds nothing to import. `what` is counted in the report."""

    what: str


@dataclass(frozen=True)
class Bad:
    """A part that cannot be imported, and which field is to blame."""

    error: FieldError


Item = Span | Call | Trace | Score | Remember | Passed | Bad
Recall = Callable[[str], Any]
"""What was remembered under a key, or None. Raises FieldError where two documents say different things under it."""


class Format(Protocol):
    """One product's export. Pure: the same document gives the same items."""

    def __call__(self, document: dict[str, Any], recall: Recall) -> Iterator[Item]:
        """The items of one decoded document. Raises FieldError where the whole of it cannot be read; parts that cannot are `Bad`."""
        ...
