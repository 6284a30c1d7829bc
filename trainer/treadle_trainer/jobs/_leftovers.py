"""Processes that a job leaves behind, also those that have made a session of their own, where no signal to the job's group reaches them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["die_with_parent", "nothing_left_behind"]

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36


def die_with_parent() -> None:
    """End at once when the parent ends (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Ends every process that was started within, directly or by others, and still runs at the end.

    Meanwhile this process is the parent of descendants whose own parent ends, as init is otherwise (Linux). Children that it had before
    are spared.
    """
    spared = set(_children())
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        # a killed process leaves its own children here: until none comes any more
        while new := set(_children()) - spared:
            for pid in new:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found
