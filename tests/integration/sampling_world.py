"""Worlds and reward functions for a model that is trained on what it samples. Job processes import it by name, so it stands alone."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from treadle_schemas.environment import Attempt, Message, Task, Verdict

ANSWERS = {"sky": "blue", "grass": "green", "blood": "red", "snow": "white"}
TURNS = 3


class LookAttempt:
    """Whatever the agent writes, the world tells it something; after three turns it is over."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.messages: list[Message] = list(task.messages)

    def act(self, text: str) -> bool:
        said = sum(message["role"] == "assistant" for message in self.messages)
        # the world tidies up what it was told: the message has other tokens than were sampled
        self.messages.append({"role": "assistant", "content": text.strip() + " "})
        if said + 1 < TURNS:
            self.messages.append({"role": "tool", "content": f"seen {ANSWERS[self.task.data['kind']]} {said}"})
        return said + 1 < TURNS

    def success(self) -> float:
        return float(len(self.messages[-1]["content"]) % 2)

    def close(self) -> None:
        pass


class LookWorld:
    """Three turns with a tool's answer in between."""

    started: ClassVar[list[str]] = []

    def tasks(self, n: int, seed: int) -> Iterator[Task]:
        rng = random.Random(seed)
        for _ in range(n):
            kind, number = rng.choice(sorted(ANSWERS)), rng.randrange(1000)
            asked: Message = {"role": "user", "content": f"{kind} {number}"}
            yield Task(task_id=f"{kind}-{number}", messages=(asked,), data={"kind": kind})

    def start(self, task: Task) -> LookAttempt:
        LookWorld.started.append(task.task_id)
        return LookAttempt(task)

    def outcomes(self, attempt: Attempt, rng: random.Random) -> list[Verdict]:
        return []


class Stubborn(LookWorld):
    """Its worlds are broken."""

    def start(self, task: Task) -> LookAttempt:
        raise ConnectionError("the shop is closed")


class Mute(LookWorld):
    def start(self, task: Task) -> LookAttempt:
        attempt = LookAttempt(task)
        attempt.act = lambda text: False  # type: ignore[method-assign]
        return attempt


class Boundless(LookWorld):
    def start(self, task: Task) -> LookAttempt:
        attempt = LookAttempt(task)
        attempt.success = lambda: float("inf")  # type: ignore[method-assign]
        return attempt


class Interrupting(LookWorld):
    """The process is asked to end in the middle of its 70th attempt."""

    acted: ClassVar[int] = 0

    def start(self, task: Task) -> LookAttempt:
        attempt = LookAttempt(task)
        act = attempt.act

        def counted(text: str) -> bool:
            Interrupting.acted += 1
            if Interrupting.acted == 70:
                os.kill(os.getpid(), signal.SIGTERM)
            return act(text)

        attempt.act = counted  # type: ignore[method-assign]
        return attempt


# -- reward functions ------------------------------------------------------------------------------------------------------------


def right_word(answers: Sequence[dict[str, Any]]) -> list[float | None]:
    """As an evaluator: 1 where the word is the right one. Nobody can say of a question that is tagged so."""
    return [
        None if answer["tags"].get("kind") == "unsayable" else float(answer["text"] == ANSWERS[_kind(answer)])
        for answer in answers
    ]


def _kind(answer: dict[str, Any]) -> str:
    kind: str = answer["messages"][-1]["content"].split()[0]
    return kind


def raising(answers: Sequence[dict[str, Any]]) -> list[float]:
    raise KeyError("colour")


def one_short(answers: Sequence[dict[str, Any]]) -> list[float]:
    return [1.0] * (len(answers) - 1)


def endless(answers: Sequence[dict[str, Any]]) -> list[float]:
    return [float("inf")] * len(answers)


def wordy(answers: Sequence[dict[str, Any]]) -> list[Any]:
    return ["good"] * len(answers)


def alike(answers: Sequence[dict[str, Any]]) -> list[float]:
    return [0.5] * len(answers)


def evenly(answers: Sequence[dict[str, Any]]) -> list[float]:
    return [float(len(answer["text"]) % 2) for answer in answers]
