"""Processes of an earlier job that outlived everything that should have ended them: nothing may train beside the next job.

A job ends with its nursery, and what it started ends with it. Only when both are killed at the same moment can a grandchild be left, with
nobody above it. Whatever a nursery starts inherits its environment, which names the jobs' folder, and that is how such a process is found.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["MARK", "end_strays"]

MARK: Final = "TREADLE_JOBS"
"""Environment variable of everything below a nursery: the folder of its jobs."""
NURSERY: Final = b"treadle_trainer.jobs._nursery"
GONE_WITHIN_S: Final = 10.0
"""A killed process is gone in milliseconds, unless a device holds it."""


def end_strays(root: Path) -> list[int]:
    """End the processes that jobs below `root` left behind and no nursery knows any more. Returns their ids, once they are gone."""
    found = list(_strays(root))
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + GONE_WITHIN_S
    while any(_alive(pid) for pid in found) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def _strays(root: Path) -> Iterator[int]:
    mark = f"{MARK}={root}".encode()
    # whoever asks for the job is none of its leftovers, whatever its environment says
    own = set(_ancestors(os.getpid()))
    for path in Path("/proc").iterdir():
        if not path.name.isdecimal() or int(path.name) in own:
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
            if mark in (path / "environ").read_bytes().split(b"\0") and not _has_nursery(int(path.name)):
                yield int(path.name)


def _has_nursery(pid: int) -> bool:
    """Whether it is a nursery, is a job that one forked, or descends from one. Raises OSError where it is gone."""
    return any(NURSERY in Path(f"/proc/{one}/cmdline").read_bytes() for one in _ancestors(pid))


def _ancestors(pid: int) -> Iterator[int]:
    """A process and those above it, but for the first of all."""
    while pid > 1:
        yield pid
        pid = _parent(pid)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
