"""Checkpoints that can be trusted: each is sealed once all of its files are written, and one whose files are not as sealed is skipped.

WORK/checkpoints/checkpoint-STEP/
    ...             what the trainer writes: weights, optimiser, schedule, random state
    treadle.json    the seal: what is trained, where the reader was, size and CRC-32 of every other file; written last
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from treadle_trainer._files import crc32_file, fsync_folder, write_atomically

__all__ = ["Checkpoint", "last_valid", "seal"]

SEAL: Final = "treadle.json"


class _Seal(msgspec.Struct, frozen=True, kw_only=True):
    training: str
    reader: dict[str, Any]
    files: dict[str, tuple[int, int]]


class Checkpoint(NamedTuple):
    """Where a training goes on: its folder, and the position of the reader."""

    folder: Path
    reader: dict[str, Any]


def seal(folder: Path, training: str, reader: dict[str, Any]) -> None:
    """Make what lies in `folder` a checkpoint of the training with that fingerprint. It is on disk when this returns. Raises OSError."""
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
        files[str(file.relative_to(folder))] = (file.stat().st_size, crc32_file(file))
    fsync_folder(folder)
    write_atomically(folder / SEAL, msgspec.json.encode(_Seal(training=training, reader=reader, files=files)))
    fsync_folder(folder.parent)


def last_valid(root: Path, training: str, on_skipped: Callable[[str, str], None]) -> Checkpoint | None:
    """The newest checkpoint below `root` that is whole and of this training.

    Newer ones that are not are removed, since the trainer would count them; `on_skipped` hears the name of each and why.
    """
    found = sorted(root.glob("checkpoint-*"), key=_step, reverse=True)
    for folder in found:
        problem = "its name has no step"
        if _step(folder) >= 0:
            sealed = _read(folder)
            problem = sealed if isinstance(sealed, str) else _difference(folder, sealed, training)
            if not problem and not isinstance(sealed, str):
                return Checkpoint(folder, sealed.reader)
        on_skipped(folder.name, problem)
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _read(folder: Path) -> _Seal | str:
    try:
        return msgspec.json.decode((folder / SEAL).read_bytes(), type=_Seal)
    except FileNotFoundError:
        return "it was not finished"
    except (OSError, msgspec.DecodeError) as err:
        return f"its seal cannot be read ({err})"


def _difference(folder: Path, sealed: _Seal, training: str) -> str:
    if sealed.training != training:
        return "it is of another training"
    for name, (size, crc) in sealed.files.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            return f"{name} has {found} bytes instead of {size}" if found is not None else f"{name} is missing"
        if crc32_file(file) != crc:
            return f"{name} has other bytes than were written"
    return ""


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
