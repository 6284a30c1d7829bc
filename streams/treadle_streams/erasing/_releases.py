"""Releases that learnt from what was erased, remembered: when corpora have forgotten the rows, nothing else says so.

TREADLE_HOME/erasing/WORKSPACE/DIGEST.json      names of releases, by the digest of the subject
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec
from treadle.disk import fsync_folder
from treadle_schemas.erasing import StoreReport, subject_digest
from treadle_schemas.ids import check_workspace

__all__ = ["Remembered"]

_STORE = "release"


class _File(msgspec.Struct):
    releases: dict[str, list[str]] = {}
    """By release, what was said of it."""


class Remembered:
    """The releases of one subject's erasure, of this run and of earlier ones that were cut off."""

    def __init__(self, home: Path, workspace: str, salt: str, subjects: Collection[str]) -> None:
        folder = home / "erasing" / check_workspace(workspace)
        self._path = folder / f"{min(subject_digest(salt, name) for name in subjects)}.json" if salt else None
        self._known = _File()
        if self._path is not None and self._path.exists():
            self._known = msgspec.json.decode(self._path.read_bytes(), type=_File)
        self._told: set[str] = set()

    def add(self, report: StoreReport, *, keep: bool) -> StoreReport:
        """A report on its way out; of a release it is kept before a corpus can forget."""
        if report.store == _STORE:
            self._told.add(report.place)
            if keep and self._path is not None and report.place not in self._known.releases:
                self._known.releases[report.place] = list(report.notes)
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                fresh = self._path.with_suffix(".new")
                with fresh.open("wb") as file:
                    file.write(msgspec.json.encode(self._known))
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(self._path)
                fsync_folder(self._path.parent)
        return report

    def left(self) -> Iterator[StoreReport]:
        """Those that an earlier run found and this one could not any more."""
        for release, notes in self._known.releases.items():
            if release not in self._told:
                yield StoreReport(store=_STORE, place=release, notes=tuple(notes))
