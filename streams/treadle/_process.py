"""The recorders of this process, over its life: fork, normal exit, the exit of a multiprocessing child, and SIGTERM.

SIGTERM's default action ends the process without an exit handler. Where the host left it at that, the first event recorded in the main
thread installs a handler that lets events drain for EXIT_FLUSH_S at most and then ends the process by the same signal. A host that handles
SIGTERM itself, before or after, is left alone; it may call `close()`, and what it does not wait for is in the spool.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from treadle import _postman

if TYPE_CHECKING:
    from treadle.recorder import Recorder

EXIT_FLUSH_S: Final = 2.0
"""How long the end of a process may wait for events in flight, over all its recorders."""

_live: set[Recorder] = set()
_hooked_pids: set[int] = set()
_hooked_fork = False


def enlist(recorder: Recorder) -> None:
    """Look after a recorder until it is closed."""
    global _hooked_fork
    if not _hooked_fork:
        _hooked_fork = True
        atexit.register(_at_exit)
        os.register_at_fork(after_in_child=_after_fork)
    _live.add(recorder)


def discharge(recorder: Recorder) -> None:
    """Forget a recorder that was closed."""
    _live.discard(recorder)


def hook_multiprocessing() -> None:
    """A multiprocessing child runs no exit handlers but those of multiprocessing itself: join them at its first event."""
    pid = os.getpid()
    if pid in _hooked_pids:
        return
    _hooked_pids.add(pid)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _at_exit, exitpriority=0)


def hook_sigterm() -> None:
    """Let events drain before SIGTERM ends the process, where nobody else wants to know of it."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _at_sigterm)


def _at_sigterm(number: int, _frame: Any) -> None:
    # it may interrupt `record`: so nothing here takes a lock that is not reentrant, and files are left to the end of the process
    try:
        deadline = time.monotonic() + EXIT_FLUSH_S
        for recorder in list(_live):
            recorder._hurry(max(0.0, deadline - time.monotonic()))
    finally:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _after_fork() -> None:
    _postman.after_fork()
    for recorder in list(_live):
        recorder._after_fork()


def _at_exit() -> None:
    deadline = time.monotonic() + EXIT_FLUSH_S
    for recorder in list(_live):
        recorder._finish(max(0.0, deadline - time.monotonic()))
