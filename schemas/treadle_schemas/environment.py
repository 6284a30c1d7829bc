"""The environment protocol: a world that an agent acts in and that says, sooner or later, what became of it.

Three methods. An environment is named `pkg.module:Class` and constructed without arguments; the demo's agent plays in it and the
trainer evaluates candidates on its held-out tasks.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from treadle_schemas.errors import SettingError
from treadle_schemas.events import OutcomeValue

__all__ = ["Attempt", "Environment", "Message", "Task", "Verdict", "load_environment"]

Message = dict[str, Any]
"""An OpenAI chat message. Tool arguments are JSON strings."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked, independent of the attempt. `task_id` is the split group; `data` is private to the environment."""

    task_id: str
    messages: tuple[Message, ...]
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the world reports `after_s` seconds of event time after the attempt ended.

    `ref` names a verdict of this attempt, so that a later one with `op` retract can take it back.
    """

    after_s: float
    name: str
    value: OutcomeValue
    source: str
    op: Literal["set", "retract"] = "set"
    ref: str | None = None


@runtime_checkable
class Attempt(Protocol):
    """One try at a task in a fresh world."""

    task: Task
    messages: list[Message]

    def act(self, text: str) -> bool:
        """Take the model's raw text (a tool call as JSON, or prose), carry it out, append the messages. True while open."""
        ...

    def success(self) -> float:
        """The ground truth in [0, 1], read from the state of the world."""
        ...

    def close(self) -> None:
        """Release the world."""
        ...


@runtime_checkable
class Environment(Protocol):
    """A world for an agent."""

    def tasks(self, n: int, seed: int) -> Iterator[Task]:
        """`n` tasks, the same for the same seed. The caller keeps the ones on the side of the split that it wants."""
        ...

    def start(self, task: Task) -> Attempt:
        """A fresh world in which `task` is asked."""
        ...

    def outcomes(self, attempt: Attempt, rng: random.Random) -> list[Verdict]:
        """What the world will report of a finished attempt: late, repeated, taken back, or never (an empty list)."""
        ...


def load_environment(name: str) -> Environment:
    """The environment `pkg.module:Class`. Raises SettingError naming what is wrong with it."""
    module_name, _, class_name = name.partition(":")
    if not class_name:
        raise SettingError(f"environment {name!r} is not of the form pkg.module:Class")
    try:
        made = getattr(importlib.import_module(module_name), class_name)()
    except (ImportError, AttributeError) as err:
        raise SettingError(f"environment {name!r} cannot be loaded: {err}") from err
    if not isinstance(made, Environment):
        raise SettingError(f"environment {name!r} lacks one of the methods tasks, start, outcomes")
    return made
