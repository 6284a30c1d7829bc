"""The one background thread of a process: it drains spools, polls producers, syncs files and adopts what dead processes left.

Started at the first event, a daemon; a forked child starts its own. It never ends by an error: it says what is wrong and tries again.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final, Protocol

__all__ = ["Outlet", "after_fork", "enlist", "wake"]

_LOG = logging.getLogger("treadle")
GATHER_S: Final = 0.02
"""After an event the thread lets others gather: a pass an event would take the host's interpreter lock each time."""
BUSY_S: Final = 0.02
IDLE_S: Final = 0.5
PAUSE_S: Final = 1.0


class Outlet(Protocol):
    """What the thread looks after."""

    def work(self, now_s: float) -> bool:
        """Do what there is to do without waiting long; whether more is under way. `now_s` is monotonic."""
        ...

    def complain(self, kind: str, problem: object) -> None:
        """Log a problem."""
        ...


class _Postman:
    def __init__(self) -> None:
        self.outlets: tuple[Outlet, ...] = ()
        self.lock = threading.Lock()
        self.woken = threading.Event()
        self.hurried = False
        self.thread: threading.Thread | None = None

    def run(self) -> None:
        busy = False
        while True:
            if self.woken.wait(BUSY_S if busy else IDLE_S):
                if not self.hurried:
                    time.sleep(GATHER_S)
                self.hurried = False
                self.woken.clear()
            busy = False
            with self.lock:
                if not self.outlets:
                    self.thread = None
                    return
                outlets = self.outlets
            for outlet in outlets:
                try:
                    busy = outlet.work(time.monotonic()) or busy
                except Exception as err:  # the thread outlives whatever goes wrong
                    _LOG.debug("background work failed", exc_info=True)
                    outlet.complain("background work failed, it is tried again", repr(err))
                    time.sleep(PAUSE_S)


_postman = _Postman()


def enlist(outlet: Outlet) -> None:
    """Look after an outlet, starting the thread where there is none."""
    postman = _postman
    with postman.lock:
        if outlet not in postman.outlets:
            postman.outlets = (*postman.outlets, outlet)
        if postman.thread is None:
            postman.thread = threading.Thread(target=postman.run, name="treadle-recorder", daemon=True)
            postman.thread.start()


def discharge(outlet: Outlet) -> None:
    """Forget an outlet. Without any the thread ends."""
    postman = _postman
    with postman.lock:
        postman.outlets = tuple(other for other in postman.outlets if other is not outlet)
    postman.woken.set()


def wake(*, hurry: bool = False) -> None:
    """There is something to do. Cheap, and without a lock where the thread knows already."""
    postman = _postman
    if hurry:
        postman.hurried = True
    if not postman.woken.is_set():
        postman.woken.set()


def after_fork() -> None:
    """In a forked child: the thread did not come along."""
    global _postman
    _postman = _Postman()
