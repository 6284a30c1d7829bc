"""What ranks of one training say to each other. In a training of one process every function is the trivial one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

__all__ = ["any_of_them", "first_says", "is_first", "place", "wait_for_all"]

_T = TypeVar("_T")


def place() -> tuple[int, int]:
    """This process's rank and how many there are, as torchrun tells."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this one writes the files."""
    return place()[0] == 0


def wait_for_all() -> None:
    """Return when every rank is here."""
    if _together():
        dist.barrier()


def any_of_them(said: bool, device: torch.device) -> bool:
    """Whether any rank says so: all of them get the same answer, at the same step."""
    if not _together():
        return said
    flag = torch.tensor([int(said)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def first_says(make: Callable[[], _T]) -> _T:
    """What `make` gives on the first rank, on all of them. It is called there only."""
    if not _together():
        return make()
    held: list[Any] = [make() if is_first() else None]
    dist.broadcast_object_list(held, src=0)
    made: _T = held[0]
    return made


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
