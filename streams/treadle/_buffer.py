"""`buffered=True`: events wait in memory, encoded, until the background thread redacts and sends them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from treadle import _postman
from treadle.errors import QueueFull

__all__ = ["BUFFERED_BYTES", "BUFFERED_EVENTS", "Buffer", "Waiting"]

BUFFERED_EVENTS: Final = 20_000
BUFFERED_BYTES: Final = 64 * 1024 * 1024


class Waiting(NamedTuple):
    """An event as the host handed it over: which kind, and its JSON. A copy, since the host may change its messages."""

    kind: str
    raw: bytes
    key: str


class Buffer:
    """A bounded queue that the background thread empties through `deliver`, which never raises."""

    _lock: threading.Lock
    _working: threading.Lock
    _events: deque[Waiting]
    _bytes: int
    _enlisted: bool

    def __init__(self, deliver: Callable[[Waiting], None], complain: Callable[[str, object], None]) -> None:
        self._deliver = deliver
        self._complain = complain
        self._start()

    def put(self, event: Waiting) -> None:
        """Queue one event. Raises QueueFull at once."""
        with self._lock:
            if len(self._events) >= BUFFERED_EVENTS or self._bytes + len(event.raw) > BUFFERED_BYTES:
                raise QueueFull(f"{len(self._events)} events ({self._bytes} bytes) wait for the background thread")
            self._bytes += len(event.raw)
            self._events.append(event)
        if not self._enlisted:
            self._enlisted = True
            _postman.enlist(self)
        _postman.wake()

    def work(self, now_s: float) -> bool:
        """Send everything that waits. In the background thread, or in the one that closes the recorder."""
        with self._working:
            while self._events:
                event = self._events[0]
                self._deliver(event)
                # an event leaves the queue only when it is somewhere else
                self._events.popleft()
                with self._lock:
                    self._bytes -= len(event.raw)
        return False

    def complain(self, kind: str, problem: object) -> None:
        """Log a problem."""
        self._complain(kind, problem)

    def close(self) -> None:
        """Send what waits, in the calling thread."""
        _postman.discharge(self)
        self.work(0.0)

    def after_fork(self) -> None:
        """What waits is the parent's."""
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._working = threading.Lock()
        self._events = deque()
        self._bytes = 0
        self._enlisted = False
