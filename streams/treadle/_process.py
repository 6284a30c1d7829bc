"""The recorders of this process, over its life: fork, normal exit, and the exit of a multiprocessing child.

SIGTERM is left alone: its default action ends the process without an exit handler, so what is in flight is lost. A service that is stopped
that way handles the signal itself and calls `close()`.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from typing import TYPE_CHECKING, Final

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


def _after_fork() -> None:
    for recorder in list(_live):
        recorder._after_fork()


def _at_exit() -> None:
    deadline = time.monotonic() + EXIT_FLUSH_S
    for recorder in list(_live):
        recorder._finish(max(0.0, deadline - time.monotonic()))
