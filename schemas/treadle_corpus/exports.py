"""What was exported from a corpus, and where to: so that an erasure reaches the files.

PATH/exports/HASH.json   one export; HASH is of the path of its file, so a file that is written again is there once
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from treadle_corpus import _disk
from treadle_corpus.errors import CorpusDamaged

__all__ = ["Export", "ExportState", "exports", "forget_export", "note_export", "sha256_of", "state_of"]

FOLDER: Final = "exports"


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """A view of a version in a file."""

    file: str
    """Absolute path."""
    version: int
    content_hash: str
    """Of the version, as it was exported."""
    view: str
    form: str
    options: dict[str, Any]
    """What else the command was given, by name."""
    lines: int
    size: int
    """Bytes of the file."""
    sha256: str
    exported_at: str


ExportState = Literal["there", "changed", "gone"]


def note_export(path: Path, export: Export) -> None:
    """Remember an export. Raises CorpusUnwritable, CorpusFull."""
    folder = path / FOLDER
    with _disk.writing(folder):
        folder.mkdir(exist_ok=True)
    _disk.create(_record(path, export.file), msgspec.json.encode(export))


def exports(path: Path) -> list[Export]:
    """The exports of the corpus at `path`, by file. Raises CorpusDamaged."""
    found: list[Export] = []
    try:
        names = os.listdir(path / FOLDER)
    except FileNotFoundError:
        return found
    for name in names:
        if name.endswith(".json"):
            try:
                found.append(msgspec.json.decode((path / FOLDER / name).read_bytes(), type=Export))
            except (OSError, msgspec.DecodeError) as err:
                raise CorpusDamaged(path, f"{FOLDER}/{name} cannot be read ({err})") from err
    return sorted(found, key=lambda export: export.file)


def forget_export(path: Path, file: str) -> None:
    """Forget an export; its file stays. Raises CorpusUnwritable."""
    _disk.remove(_record(path, file))


def state_of(export: Export) -> ExportState:
    """Is the file there as it was exported, changed, or gone?"""
    try:
        if os.stat(export.file).st_size != export.size:
            return "changed"
        return "there" if sha256_of(Path(export.file)) == export.sha256 else "changed"
    except OSError:
        return "gone"


def sha256_of(file: Path) -> str:
    """Of the bytes of a file, lower-case hex. Raises OSError."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _record(path: Path, file: str) -> Path:
    return path / FOLDER / f"{hashlib.sha256(os.fsencode(file)).hexdigest()[:32]}.json"
