"""The folder of a release: copied in whole, checked before it is trusted."""

from __future__ import annotations

import shutil
from pathlib import Path

from treadle import release_files
from treadle.errors import ReleaseUnusable
from treadle.release_files import COLLECTED, MANIFEST
from treadle_schemas import ReleaseManifest

from treadle_trainer._files import fsync_file, fsync_folder, sha256_file
from treadle_trainer.errors import RegistryError, ReleaseMissing, ReleaseTampered

__all__ = ["COLLECTED", "MANIFEST", "copy_in", "open_release", "read_manifest"]


def open_release(folder: Path) -> ReleaseManifest:
    """The manifest of the release in `folder`, after checking every file against it.

    This is what a loader calls before it trusts a file. Raises ReleaseMissing or ReleaseTampered naming the file.
    """
    try:
        return release_files.open_release(folder)
    except ReleaseUnusable as err:
        raise (ReleaseMissing if err.missing else ReleaseTampered)(str(err)) from err


def read_manifest(folder: Path) -> ReleaseManifest:
    """The manifest alone, no file checked. Raises ReleaseMissing or ReleaseTampered."""
    try:
        return release_files.read_manifest(folder)
    except ReleaseUnusable as err:
        raise (ReleaseMissing if err.missing else ReleaseTampered)(str(err)) from err


def copy_in(folder: Path, staging: Path) -> dict[str, str]:
    """Copy the files of `folder`, synced. Returns relative path -> sha256 of the copy. Raises RegistryError naming the file."""
    if not folder.is_dir():
        raise RegistryError(f"{folder}: is no folder")
    files: dict[str, str] = {}
    for name, source in release_files.walk(folder):
        if name in (MANIFEST, COLLECTED):
            raise RegistryError(f"{source}: a release writes its own {name}; rename yours")
        if not source.resolve().is_relative_to(folder.resolve()):
            raise RegistryError(f"{source}: leads out of {folder}; a release holds its own files")
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        fsync_file(target)
        files[name] = sha256_file(target)
    if not files:
        raise RegistryError(f"{folder}: holds no files")
    for inner in [p for p in staging.rglob("*") if p.is_dir()]:
        fsync_folder(inner)
    return files
