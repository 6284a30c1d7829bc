"""Who works next in a pool: a queue of seats, each taken by one thread at a time for one bounded turn, then put at the end again.

Two queues with threads of their own: quick turns (a bounded batch), and long ones (taking partitions over, which may replay a changelog),
so that workspaces which start delay none that run.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["Seat", "Turns"]

QUICK_THREADS: Final = 4
"""So many workspaces may wait for Kafka within a batch at the same time; the next one waits for one of them."""
LONG_THREADS: Final = 4


class Seat(Protocol):
    """What takes turns. Its two flags belong to `Turns`."""

    queued: bool
    running: bool
    again: bool

    @property
    def over(self) -> bool:
        """No turn is to be taken any more."""
        ...

    @property
    def long(self) -> bool:
        """The next turn may take long."""
        ...

    def turn(self, *, quick: bool) -> bool:
        """Take one; True: there is more to do at once. A quick turn that would take long does nothing. Raises nothing."""
        ...


class Turns:
    """The queues and their threads. `wake` may be called from any thread."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        """`failed` is told what ended a thread; nothing should."""
        self._failed = failed
        self._lock = threading.Lock()
        self._quick: deque[Seat] = deque()
        self._long: deque[Seat] = deque()
        self._quick_ready = threading.Condition(self._lock)
        self._long_ready = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._quit = False
        self._threads = [
            threading.Thread(target=self._work, args=(quick,), name=f"treadle-turns-{number}", daemon=True)
            for number, quick in enumerate([True] * QUICK_THREADS + [False] * LONG_THREADS)
        ]

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Take no more turns."""
        with self._lock:
            self._quit = True
            self._quick_ready.notify_all()
            self._long_ready.notify_all()

    def wake(self, seat: Seat) -> None:
        """There is something to do for this one."""
        with self._lock:
            if seat.running:
                seat.again = True
            elif not seat.queued and not seat.over:
                self._put(seat)

    def wait_idle(self, seat: Seat, timeout_s: float) -> bool:
        """Wait until a seat that is over takes no turn; whether it is so."""
        with self._lock:
            return self._idle.wait_for(lambda: not seat.running, timeout_s)

    def _put(self, seat: Seat) -> None:
        seat.queued = True
        if seat.long:
            self._long.append(seat)
            self._long_ready.notify()
        else:
            self._quick.append(seat)
            self._quick_ready.notify()

    def _work(self, quick: bool) -> None:
        try:
            queue, ready = (self._quick, self._quick_ready) if quick else (self._long, self._long_ready)
            while (seat := self._next(queue, ready)) is not None:
                more = seat.turn(quick=quick)
                with self._lock:
                    seat.running = False
                    if seat.over:
                        self._idle.notify_all()
                    elif more or seat.again:
                        self._put(seat)
        except BaseException as err:
            self._failed(err)

    def _next(self, queue: deque[Seat], ready: threading.Condition) -> Seat | None:
        with self._lock:
            while True:
                if self._quit:
                    return None
                if queue:
                    seat = queue.popleft()
                    seat.queued, seat.again = False, False
                    if not seat.over:
                        seat.running = True
                        return seat
                else:
                    ready.wait()
