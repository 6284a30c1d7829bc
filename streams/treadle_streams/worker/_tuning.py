"""What a process that joins asks of the interpreter and of malloc: a batch makes objects by the ten thousand, and they die together."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

__all__ = ["BATCH_OBJECTS", "POOL_OBJECTS", "collect_seldom", "keep_memory"]

BATCH_OBJECTS: Final = 1_000_000
"""More than a batch makes: batches die by reference counts, and walking live ones took 30 % of the lane's time."""
POOL_OBJECTS: Final = 200_000
"""Many small workspaces: small batches, and more of Faust's own cycles."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
"""Parameters of mallopt(3)."""
_KEPT_BYTES: Final = 64 * 1024 * 1024
_STEP_BYTES: Final = 4 * 1024 * 1024
_LARGE_BYTES: Final = 16 * 1024 * 1024
_ARENAS: Final = 4
"""Each keeps its own; eight a core, the default, would keep too much."""


def collect_seldom(objects: int) -> None:
    """Leave alone what the start has made, and look for cycles once `objects` more are alive."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(objects, 20, 50)


def keep_memory() -> None:
    """Have malloc keep what a batch frees for the next one: by default it went to the kernel and came back as page faults.

    Does nothing where the C library has no mallopt.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_ARENA_MAX, _ARENAS)
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_TOP_PAD, _STEP_BYTES)
    mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
