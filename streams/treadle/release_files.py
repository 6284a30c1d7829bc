"""The folder of a release, and how a loader makes sure of it: every file is what the manifest says, and that what the registry said."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from treadle_schemas.records import ReleaseManifest

from treadle.errors import ReleaseUnusable

__all__ = ["COLLECTED", "MANIFEST", "open_release", "read_manifest", "sha256_file", "walk"]

MANIFEST: Final = "manifest.json"
COLLECTED: Final = ".collected"
"""Lies where the files of a release were deleted to save space. Its manifest stays."""


def open_release(folder: Path, manifest_hash: str | None = None) -> ReleaseManifest:
    """The manifest of the release in `folder`, after checking every file against it, and it against `manifest_hash` where that is known.

    Reads every file once. Raises ReleaseUnusable naming the file.
    """
    manifest = read_manifest(folder)
    path = folder / MANIFEST
    if manifest_hash is not None and sha256_file(path) != manifest_hash:
        raise ReleaseUnusable(path, f"was changed after {manifest.release} was registered")
    if (folder / COLLECTED).exists():
        raise ReleaseUnusable(folder, f"the files of {manifest.release} were deleted to save space", missing=True)
    found: dict[str, Path] = {name: path for name, path in walk(folder) if name != MANIFEST}
    for name, wanted in manifest.files.items():
        if name not in found:
            raise ReleaseUnusable(folder / name, f"is missing; {manifest.release} must not be loaded")
        path = found.pop(name)
        if path.is_symlink() or sha256_file(path) != wanted:
            raise ReleaseUnusable(path, f"is not what the manifest says; {manifest.release} must not be loaded")
    for path in found.values():
        raise ReleaseUnusable(path, f"is not in the manifest; {manifest.release} must not be loaded")
    return manifest


def read_manifest(folder: Path) -> ReleaseManifest:
    """The manifest alone, no file checked. Raises ReleaseUnusable."""
    path = folder / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=ReleaseManifest)
    except (FileNotFoundError, NotADirectoryError):
        raise ReleaseUnusable(folder, f"no release lies there (no {MANIFEST})", missing=True) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise ReleaseUnusable(path, f"not a release manifest: {err}") from err


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """(relative path, path) of every file and link, in order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() or path.is_symlink():
            yield path.relative_to(folder).as_posix(), path


def sha256_file(path: Path) -> str:
    """Lower-case hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
