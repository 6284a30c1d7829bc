"""How much memory a job takes, with everything that it started, in whatever process group (Linux).

    memory of a job = sum over its processes of their proportional set size (PSS)

A page that several processes share counts once in all: a job is forked from a process that has TRL imported, and ranks share what they
read. The plain resident size is cheaper to ask for and never smaller, so the exact one is read only where that one says something new.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["MemoryWatch", "oom_kills", "read_memory"]

EXACT_EVERY_S: Final = 1.0
"""Between two exact looks at a job that neither grows nor nears its limit: walking the pages of a large process takes milliseconds."""
TREE_EVERY_S: Final = 0.5
"""Between two looks for new processes, which ask every thread for its children."""
GROWN: Final = 1.1
"""Growth since the last exact look that asks for another one."""
OVERSHOOT: Final = 1.25
"""Share of the limit at which a job that is to end gets no more time to do it in order."""
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_PSS: Final = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)
_OOM: Final = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


class MemoryWatch:
    """Watches the processes below `pid`, itself not among them, against `limit` bytes (None: it only keeps the peak)."""

    def __init__(self, pid: int, limit: int | None) -> None:
        self._pid, self.limit = pid, limit
        self.peak = 0
        """Most bytes seen at once."""
        self.now = 0
        self._pids: list[int] = []
        self._tree_at = self._exact_at = 0.0
        self._resident = 0
        """Plain bytes at the last exact look."""

    def look(self) -> None:
        """Ask the system. A job that has just ended has nothing."""
        now = time.monotonic()
        if now >= self._tree_at:
            self._pids, self._tree_at = list(_below(self._pid)), now + TREE_EVERY_S
        resident = sum(map(_resident, self._pids))
        grown = resident > self._resident * GROWN
        above = self.limit is not None and resident > self.limit
        if grown or above or now >= self._exact_at:
            self.now, self._resident = sum(map(read_memory, self._pids)), resident
            self.peak = max(self.peak, self.now)
            self._exact_at = now + EXACT_EVERY_S

    @property
    def over(self) -> bool:
        """Whether it has more than it may."""
        return self.limit is not None and self.now > self.limit

    @property
    def far_over(self) -> bool:
        """Whether it goes on growing beyond what it may."""
        return self.limit is not None and self.now > self.limit * OVERSHOOT


def read_memory(pid: int) -> int:
    """Proportional bytes of one process; its resident ones where the system does not tell those, 0 where it is gone."""
    with contextlib.suppress(OSError):
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
        if found is not None:
            return int(found[1]) * 1024
    return _resident(pid)


def oom_kills() -> int | None:
    """How many processes of this machine its kernel has killed for want of memory so far. None where it does not say."""
    try:
        found = _OOM.search(Path("/proc/vmstat").read_bytes())
    except OSError:
        return None
    return None if found is None else int(found[1])


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _below(pid: int) -> Iterator[int]:
    """The children of a process, and theirs."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for child in map(int, (task / "children").read_text().split()):
                    yield child
                    yield from _below(child)
