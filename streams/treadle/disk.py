"""What makes files durable, and how much they are, for every package that keeps some."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["folder_bytes", "fsync_folder"]


def fsync_folder(path: Path) -> None:
    """Make renames and new names inside `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder, of a link its own; those that go away meanwhile count as nothing."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
