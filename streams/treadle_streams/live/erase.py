"""Erasing a subject from a live index, whether or not an indexer is running."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from treadle_schemas.canonical import loads
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams.live.erased import Erased
from treadle_streams.live.errors import ErasureWaiting, IndexInUse
from treadle_streams.live.folder import IndexFolder
from treadle_streams.live.index import LiveIndex
from treadle_streams.live.store import Rows

__all__ = ["Erasure", "erase"]

_LOOK_S: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """What an erasure took out of one index."""

    workspace: str
    rows: int
    """Interactions that were there, of all episodes in which the subjects occurred."""
    folder: Path


def erase(
    home: Path, workspace: str, subjects: Sequence[str] = (), *, episodes: Sequence[str] = (), wait_s: float = 60.0
) -> Erasure:
    """Take subjects and episodes out of a workspace's live index: no byte of them is in its files when this returns, and reading the log
    again brings none back. Whole episodes in which a subject occurs leave; what the subject does afterwards stays out as well.

    A running indexer is asked to do it, else it is done here. Without an index only the names' digests are written down. Raises
    ErasureWaiting when it is not done in `wait_s`; it stays asked for, and a repeated call waits on.
    """
    folder = IndexFolder(home, workspace)
    rows = _count(folder, subjects, episodes)
    due = Erased(folder.path).add(subjects=subjects, episodes=episodes)
    deadline = time.monotonic() + wait_s
    while folder.rows.exists():
        try:
            with folder.locked():
                _erase_here(folder)
        except IndexInUse:
            pass
        if _done(folder) >= due:
            break
        if time.monotonic() > deadline:
            raise ErasureWaiting(
                f"live index {folder.path}: its indexer has not carried out the erasure in {wait_s:g} s; repeat it"
            )
        time.sleep(_LOOK_S)
    return Erasure(workspace=workspace, rows=rows, folder=folder.path)


def _erase_here(folder: IndexFolder) -> None:
    opened = Rows(folder.rows, writable=True)
    settings = msgspec.convert(loads((opened.meta("settings") or "{}").encode()), WorkspaceSettings)
    opened.close()
    index = LiveIndex(folder, settings, keep_vectors=True)
    try:
        if index.erasures_due:
            index.erase()
    finally:
        index.close()


def _done(folder: IndexFolder) -> int:
    rows = Rows(folder.rows, writable=False)
    try:
        return int(rows.meta("erasures") or 0)
    finally:
        rows.close()


def _count(folder: IndexFolder, subjects: Sequence[str], whole: Sequence[str]) -> int:
    if not folder.rows.exists():
        return 0
    rows = Rows(folder.rows, writable=False)
    try:
        episodes = {episode for subject in subjects for episode in rows.episodes_of(subject)} | {*whole}
        return sum(len(rows.of_episode(episode)) for episode in episodes)
    finally:
        rows.close()
