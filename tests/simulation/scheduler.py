"""Virtual time, and threads of which exactly one runs at a time, in an order that the seed decides.

The lane's code blocks, so each lane has a stack of its own: a greenlet, which gives way where it waits and nowhere else.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random

from greenlet import getcurrent, greenlet

__all__ = ["Killed", "Owner", "Scheduler", "Task"]


class Killed(BaseException):
    """Unwinds the thread of a process that is dead. What it still does on its way out reaches nothing."""


class Owner:
    """A process: what belongs to it waits while it is stopped and never happens once it is dead."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopped = False
        self.dead = False
        self.held: list[Callable[[], None] | Task] = []
        """What fell due while it was stopped."""


class Task:
    """A thread of a process. It runs from its turn to its next wait."""

    def __init__(self, owner: Owner, body: Callable[[], None]) -> None:
        self.owner = owner
        self.body = body
        self.wait_number = 0
        self.woken = False
        self.done = False
        self.stack: greenlet | None = None


class Scheduler:
    """The agenda: (time, number) to a call or a thread's turn."""

    def __init__(self, seed: int) -> None:
        self.now_s = 0.0
        self.random = Random(seed)
        self.trace: list[str] | None = None
        """Every step in words, where asked for."""
        self.failure: BaseException | None = None
        """An error of the simulator itself."""
        self._agenda: list[tuple[float, int, Owner | None, Callable[[], None] | Task, int]] = []
        self._number = 0
        self._finished = False
        self._main = getcurrent()
        self._tasks: list[Task] = []
        self.current: Task | None = None

    # Asked by everything that takes time.

    def note(self, *words: object) -> None:
        """A step of the schedule."""
        if self.trace is not None:
            self.trace.append(f"{self.now_s:11.6f}  {' '.join(map(str, words))}")

    def after(self, delay_s: float, call: Callable[[], None], owner: Owner | None = None) -> None:
        """Have `call` run later; as part of `owner`, unless that is stopped or dead by then."""
        self._push(self.now_s + delay_s, owner, call, 0)

    def spawn(self, owner: Owner, body: Callable[[], None]) -> Task:
        """A thread that begins at once, when its turn comes."""
        task = Task(owner, body)
        self._tasks.append(task)
        task.stack = greenlet(lambda: self._body(task), self._main)
        self._push(self.now_s, owner, task, 0)
        return task

    def wait(self, timeout_s: float) -> bool:
        """In a thread: let time pass, until `wake` (True) or the timeout (False). Raises Killed."""
        task = self.current
        assert task is not None, "only a thread waits"
        if task.owner.dead:
            raise Killed
        task.wait_number += 1
        task.woken = False
        self._push(self.now_s + timeout_s, task.owner, task, task.wait_number)
        self._main.switch()
        if task.owner.dead:
            raise Killed
        return task.woken

    def wake(self, task: Task, delay_s: float = 0.0) -> None:
        """End a thread's present wait early."""
        number = task.wait_number

        def turn() -> None:
            if task.wait_number == number and not task.done:
                task.woken = True
                self._push(self.now_s, task.owner, task, number)

        self._push(self.now_s + delay_s, None, turn, 0)

    # Processes.

    def stop(self, owner: Owner) -> None:
        """SIGSTOP."""
        owner.stopped = True

    def resume(self, owner: Owner) -> None:
        """SIGCONT: what fell due meanwhile comes now, in any order."""
        owner.stopped = False
        held, owner.held = owner.held, []
        for what in held:
            number = what.wait_number if isinstance(what, Task) else 0
            self._push(self.now_s + self.random.uniform(0.0, 0.05), owner, what, number)

    def kill(self, owner: Owner) -> None:
        """SIGKILL. Its threads unwind at once; nothing of it happens any more."""
        owner.dead, owner.stopped, owner.held = True, False, []
        for task in self._tasks:
            if task.owner is owner and not task.done and task is not self.current:
                self._push(self.now_s, None, task, task.wait_number)

    # The main thread.

    def run(self) -> None:
        """Work off the agenda until `finish`. Raises what went wrong in the simulator itself."""
        self._finished = False
        self._work_off()
        if self.failure is not None:
            raise self.failure

    def finish(self) -> None:
        """End `run`."""
        self._finished = True

    def close(self) -> None:
        """Unwind every thread."""
        for task in self._tasks:
            task.owner.dead = True
            if not task.done:
                task.wait_number += 1
                self._switch(task)

    # The agenda.

    def _push(self, at_s: float, owner: Owner | None, what: Callable[[], None] | Task, number: int) -> None:
        self._number += 1
        heapq.heappush(self._agenda, (at_s, self._number, owner, what, number))

    def _body(self, task: Task) -> None:
        try:
            if not task.owner.dead:
                task.body()
        except Killed:
            pass
        except BaseException as err:
            self.failure = self.failure or err
            self._finished = True
        task.done = True

    def _switch(self, task: Task) -> None:
        """Run a thread until it waits or ends."""
        assert task.stack is not None
        self.current = task
        task.stack.switch()

    def _work_off(self) -> None:
        while not self._finished:
            if not self._agenda:
                self.failure = self.failure or RuntimeError("nothing will ever happen again")
                break
            at_s, _, owner, what, number = heapq.heappop(self._agenda)
            self.now_s = max(self.now_s, at_s)
            if isinstance(what, Task) and (what.done or number != what.wait_number):
                continue
            if owner is not None and owner.stopped:
                owner.held.append(what)
            elif isinstance(what, Task):
                self._switch(what)
            elif owner is None or not owner.dead:
                self.current = None
                try:
                    what()
                except BaseException as err:
                    self.failure = self.failure or err
                    self._finished = True
