"""A world so small that a random model learns it in seconds: each kind of question has one right word for an answer.

Job processes import it by name, so it stands alone; tests put this folder on their path.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from treadle_schemas.environment import Attempt, Message, Task, Verdict

ANSWERS = {"sky": "blue", "grass": "green", "blood": "red", "snow": "white"}


class WordAttempt:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.messages: list[Message] = list(task.messages)

    def act(self, text: str) -> bool:
        self.messages.append({"role": "assistant", "content": text})
        return False

    def success(self) -> float:
        return float(self.messages[-1]["content"] == ANSWERS[self.task.data["kind"]])

    def close(self) -> None:
        pass


class WordWorld:
    """One turn: asked for a kind of thing, the agent must name its colour."""

    def tasks(self, n: int, seed: int) -> Iterator[Task]:
        rng = random.Random(seed)
        for _ in range(n):
            kind, number = rng.choice(sorted(ANSWERS)), rng.randrange(1000)
            yield Task(
                task_id=f"{kind}-{number}",
                messages=({"role": "user", "content": f"{kind} {number}"},),
                data={"kind": kind},
            )

    def start(self, task: Task) -> WordAttempt:
        return WordAttempt(task)

    def outcomes(self, attempt: Attempt, rng: random.Random) -> list[Verdict]:
        return []


def said(task: Task, word: str) -> list[dict[str, Any]]:
    return [*task.messages, {"role": "assistant", "content": word}]


def make_base(folder: Path, seed: int = 0) -> None:
    """A random tiny model that knows the words but not what they mean."""
    from treadle_demo.model import build_model, save, train_tokenizer

    conversations = [said(t, w) for t in WordWorld().tasks(40, 1) for w in ANSWERS.values()]
    tokenizer = train_tokenizer(conversations)
    save(build_model(tokenizer, seed), tokenizer, folder)


# -- evaluators that need no torch, for tests of the processes around them ------------------------------------------------------


def by_folder_name(folder: str, _: Any, tasks: Sequence[Task], seed: int) -> list[float]:
    return [float(folder.rsplit("/", 1)[-1] == "good")] * len(tasks)


def sleepy(folder: str, _: Any, tasks: Sequence[Task], seed: int) -> list[float]:
    time.sleep(600)
    return []


def failing(folder: str, _: Any, tasks: Sequence[Task], seed: int) -> list[float]:
    raise RuntimeError("the evaluator broke")


def short(folder: str, _: Any, tasks: Sequence[Task], seed: int) -> list[float]:
    return [1.0]


def suicidal(folder: str, _: Any, tasks: Sequence[Task], seed: int) -> list[float]:
    import os
    import signal

    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def by_skill_file(folder: str, _: Any, tasks: Sequence[Task], seed: int) -> list[float]:
    """A model folder whose score is written in it; waits as long as a file `hold` lies beside the registry's workspace."""
    hold = Path(folder).parents[1] / "hold"
    while hold.exists():
        time.sleep(0.02)
    skill = float((Path(folder) / "skill").read_text())
    return [float(random.Random(f"{seed}-{task.task_id}").random() < skill) for task in tasks]


# -- evaluators of a scorecard ---------------------------------------------------------------------------------------------------


def is_short(answers: Sequence[dict[str, Any]]) -> list[float]:
    return [float(len(answer["text"]) <= 5) for answer in answers]


# -- evaluators that take what they should not -------------------------------------------------------------------------------------


def hungry(folder: str, _: Any, tasks: Sequence[Task], seed: int) -> list[float]:
    """Takes 10 MB at a time, without end, until it is told to stop; then it stops."""
    held = []
    while True:
        held.append(b"x" * 10_000_000)
        time.sleep(0.005)


def hungry_children(folder: str, _: Any, tasks: Sequence[Task], seed: int) -> list[float]:
    """Takes next to nothing itself; the children in groups of their own that it starts take 200 MB each."""
    import subprocess
    import sys

    code = "import time; held = b'x' * 200_000_000; time.sleep(600)"
    children = [subprocess.Popen([sys.executable, "-c", code], start_new_session=True) for _ in range(3)]
    return [float(children[0].wait())]


def stubborn(folder: str, _: Any, tasks: Sequence[Task], seed: int) -> list[float]:
    """Hears no SIGTERM and goes on taking."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return hungry(folder, _, tasks, seed)


def no_memory(folder: str, _: Any, tasks: Sequence[Task], seed: int) -> list[float]:
    raise MemoryError("cannot have it")


def no_room(folder: str, _: Any, tasks: Sequence[Task], seed: int) -> list[float]:
    """Writes until the device has no room: /dev/full never has any."""
    with open("/dev/full", "wb") as file:
        file.write(b"x" * 100_000)
    return []


def filling(folder: str, _: Any, tasks: Sequence[Task], seed: int) -> list[float]:
    """Fills the disk on which the models lie, unless a file `room` lies beside the registry's workspace."""
    workspace = Path(folder).parents[1]
    if not (workspace / "room").exists():
        with (workspace / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 10_000)
    return by_skill_file(folder, _, tasks, seed)


def hungry_once(folder: str, _: Any, tasks: Sequence[Task], seed: int) -> list[float]:
    """Takes all memory that it can get, unless a file `room` lies beside the registry's workspace."""
    if not (Path(folder).parents[1] / "room").exists():
        hungry(folder, _, tasks, seed)
    return by_skill_file(folder, _, tasks, seed)
