"""What lies in the folder of a job, and what of it holds the text of rows.

Rows in a job's folder are copies that nobody looks for there. They go as soon as they have been read, and with the end of the job; what a
kill leaves, the next try, `treadle job prune` and `treadle erase` remove.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from treadle.disk import folder_bytes

__all__ = ["CHECKPOINTS", "MODEL", "remove", "rows_in", "size_of", "tidy"]

CHECKPOINTS: Final = "checkpoints"
MODEL: Final = "model"
_KEPT: Final = frozenset(
    {"spec.json", "result.json", "progress.jsonl", "log.txt", "backend.log", "launch", CHECKPOINTS, MODEL}
)
"""What a job leaves that is no text of rows: what was asked, what came of it, logs, weights."""
_ROWS: Final = frozenset({"heldout.jsonl", "measured.json", "rows.jsonl", "tokens"})
"""Rows to evaluate on, rows for an external trainer, and token columns of a corpus that cannot be written to. All are made again."""


def rows_in(folder: Path) -> Iterator[Path]:
    """What may hold text of rows: known by name, or left by an external trainer, which may keep there whatever it likes."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.name not in _KEPT and not path.name.startswith("config."):
                yield path


def tidy(folder: Path, *, done: bool) -> None:
    """Remove the rows. What an external trainer keeps for its next try stays until the job is `done`."""
    for path in rows_in(folder):
        if done or path.name in _ROWS:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 where there is none. What goes meanwhile does not count."""
    with suppress(OSError):
        return folder_bytes(path) if path.is_dir() else path.stat().st_size
    return 0
