"""A corpus as it was in each of its versions, one after the other: what walks through its history reads every journal once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from treadle_corpus import _files, _versions
from treadle_corpus._control import Control
from treadle_corpus._journal import decoded, journals, read_journal
from treadle_corpus._parts import PartKey
from treadle_corpus._recovery import checked_journal
from treadle_corpus._rows import Key
from treadle_corpus._state import State
from treadle_corpus._versions import VersionFile
from treadle_corpus.errors import CorpusDamaged
from treadle_corpus.objects.place import place_at

__all__ = ["Moment", "first_control", "folded_offsets", "moments", "workspace_of"]


class Moment(NamedTuple):
    """The rows as they were in a version, or after the last commit."""

    version: VersionFile | None
    """None: after the last commit, which no version has yet."""
    state: State
    """It changes when the next moment is asked for."""
    rows: dict[Key, None]
    """Rows that may have changed since the moment before, in the order in which they did."""
    parts: dict[PartKey, None]
    """Parts likewise."""


def moments(path: Path, *, head: bool = False) -> Iterator[Moment]:
    """Every version, ascending, and with `head` what was folded after the newest one: of a corpus in an object store nobody sees that.

    Raises CorpusDamaged, and what opening a version raises.
    """
    ends: dict[int, dict[int, VersionFile]] = {}
    for number in _versions.versions(path):
        found = _versions.read_version(path, number)
        ends.setdefault(found.journal, {})[found.size] = found
    last = journals(path)[-1:] if head and place_at(path) is None else []
    rows: dict[Key, None] = {}
    parts: dict[PartKey, None] = {}
    for journal in sorted({*ends, *last}):
        made = ends.get(journal, {})
        data = _journal_of(path, made[max(made)]) if made else b""
        if journal in last:
            data = read_journal(path, journal)
        state, at_end = None, 0
        try:
            for end, commit, state in State.steps(decoded(path, data)):
                rows.update(dict.fromkeys(state.keys_of(commit)))
                parts.update(dict.fromkeys(state.parts_of(commit)))
                at_end = end
                if end in made:
                    yield Moment(made[end], state, rows, parts)
                    rows, parts = {}, {}
        except (ValueError, IndexError, KeyError, TypeError) as err:
            raise CorpusDamaged(path, f"index/{journal:06d}.log cannot be read ({err})") from err
        if journal in last and state is not None and at_end not in made:
            yield Moment(None, state, rows, parts)


def _journal_of(path: Path, version: VersionFile) -> bytes:
    lease = _versions.lease(path, version.manifest.version)  # what is fetched for it stays until it is read
    try:
        return checked_journal(path, version)
    finally:
        lease.close()


def first_control(path: Path) -> Control | None:
    """What the newest journal of the corpus at `path` begins with: whose it is, above all. None before the first commit.

    Raises CorpusMissing, CorpusOutdated, CorpusDamaged.
    """
    last = journals(path)[-1:] if _files.check_marker(path) == "ready" else []
    first = next(decoded(path, read_journal(path, last[0])), None) if last else None
    return None if first is None else first[1].control


def workspace_of(path: Path) -> str | None:
    """Whose corpus it is, None before its first commit. Raises CorpusMissing, CorpusOutdated, CorpusDamaged, StoreError."""
    place = place_at(path)
    if place is not None:
        numbers = _versions.versions(path)
        if numbers:
            return _versions.read_version(path, numbers[-1]).manifest.workspace
        path = place.work  # where its first run may have begun
        if not path.exists():
            return None
    held = first_control(path)
    return None if held is None else held.workspace


def folded_offsets(path: Path) -> dict[int, int]:
    """Next offset of `.graded` by partition, as the last commit of the corpus at `path` has it; a writer may be at work.

    Raises CorpusMissing, CorpusOutdated, CorpusDamaged.
    """
    last = journals(path)[-1:] if _files.check_marker(path) == "ready" else []
    offsets: dict[str, int] = {}
    for number in last:
        for _, commit in decoded(path, read_journal(path, number)):
            offsets = commit.control.offsets
    return {int(partition): offset for partition, offset in offsets.items()}
