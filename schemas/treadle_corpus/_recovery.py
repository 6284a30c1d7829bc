"""Making a corpus, and bringing back what an interrupted writer left."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from treadle_corpus import _disk, _files, _versions
from treadle_corpus._bodies import BodyWriter
from treadle_corpus._control import Control
from treadle_corpus._journal import Frame, Journal, bytes_of_rows, decoded, journal_file, journals, prune, read_journal
from treadle_corpus._state import State
from treadle_corpus._versions import VersionFile
from treadle_corpus.errors import CorpusDamaged

__all__ = ["Found", "begin", "checked_journal", "recover"]


@dataclass(frozen=True)
class Found:
    """A corpus, ready to be written."""

    state: State
    journal: Journal
    bodies: BodyWriter
    last: str
    """Kind of the last commit."""


def begin(path: Path, control: Control) -> Found:
    """A new corpus. What an interrupted making left is thrown away. Raises CorpusFull, CorpusUnwritable."""
    _files.write_marker(path, "creating")
    state = State(control)
    journal = Journal.create(path, 1, state.base())
    _files.write_marker(path, "ready")
    return Found(state, journal, BodyWriter(path, 0, 0), "base")


def recover(path: Path, fresh: Control) -> Found:
    """The corpus as its last whole commit left it.

    1. the newest version and all that it needs must be whole: it cannot be replaced
    2. go on after the last whole commit. Where a power loss left a commit without its bodies, or a new journal unreadable, go back to
       the newest version, and without one to nothing: `.graded` has it all
    3. a commit that finishes a version whose file is missing gets it now, before anything else is committed

    Raises CorpusDamaged, CorpusFull, CorpusUnwritable.
    """
    numbers = _versions.versions(path)
    for folder in ("index", "versions"):
        for file in (path / folder).glob("*.new"):
            _disk.remove(file)
    newest = _versions.read_version(path, numbers[-1]) if numbers else None
    kept = checked_journal(path, newest) if newest else None  # 1
    found = _last(path, newest)  # 2
    if found is None:
        if newest is None or kept is None:
            return begin(path, fresh)
        prune(path, range(newest.journal + 1))
        found = _opened(path, newest.journal, kept, newest)
    made = found.state.manifest
    if made is not None and made.version != (newest.manifest.version if newest else 0):  # 3
        if found.last != "version" or made.version != (newest.manifest.version if newest else 0) + 1:
            raise CorpusDamaged(path, f"the file versions/v{made.version}.json is gone")
        found.bodies.sync()
        found.journal.sync()
        version = VersionFile(
            manifest=made,
            journal=found.journal.number,
            size=found.journal.size,
            sha256=found.journal.digest(),
            bodies=found.state.bodies,
        )
        _versions.write_version(path, version)
    return found


def _last(path: Path, newest: VersionFile | None) -> Found | None:
    """The corpus after the last whole commit; None where it cannot be had and an older state must do."""
    there = journals(path)
    if not there:
        return None
    try:
        return _opened(path, there[-1], read_journal(path, there[-1]), newest)
    except CorpusDamaged:
        return None


def _opened(path: Path, number: int, data: bytes, newest: VersionFile | None) -> Found:
    commits: list[Frame] = []
    end, rows = 0, 0.0
    for after, commit in decoded(path, data):
        commits.append(commit)
        rows += bytes_of_rows(commit, after - end)
        end = after
    try:
        state = State.fold(commits)
    except (ValueError, IndexError, KeyError, TypeError) as err:
        raise CorpusDamaged(path, f"index/{journal_file(path, number).name} cannot be read ({err})") from err
    bodies = BodyWriter(path, state.bodies, newest.bodies if newest else 0)
    return Found(state, Journal.go_on(path, number, data[:end], rows), bodies, commits[-1].kind)


def checked_journal(path: Path, version: VersionFile) -> bytes:
    """The bytes of the journal that a version is made of; from an object store all that it needs is fetched.

    Raises CorpusDamaged, StoreError.
    """
    _versions.bring(path, version.manifest.version)
    data = read_journal(path, version.journal, version.size)
    if hashlib.sha256(data).hexdigest() != version.sha256:
        raise CorpusDamaged(
            path, f"index/{version.journal:06d}.log is not what v{version.manifest.version} was written with"
        )
    return data
