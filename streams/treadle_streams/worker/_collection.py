"""Garbage collection of a process that joins: a batch makes objects by the ten thousand, and hardly any cycle."""

from __future__ import annotations

import gc
from typing import Final

__all__ = ["BATCH_OBJECTS", "POOL_OBJECTS", "collect_seldom"]

BATCH_OBJECTS: Final = 1_000_000
"""More than a batch makes. Batches die by reference counts before that many are alive; walking live ones took 30 % of the lane's time."""
POOL_OBJECTS: Final = 200_000
"""Many small workspaces: small batches, and more of Faust's own cycles."""


def collect_seldom(objects: int) -> None:
    """Leave alone what the start has made, and look for cycles once `objects` more are alive."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(objects, 20, 50)
