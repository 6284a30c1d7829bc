"""Erasing episodes from a corpus: from all of its versions, and from every file of it.

A version is a fold, and its files are sealed, so the corpus is made again from its own history without these episodes, beside itself, and
the two change places in one step. Versions keep their numbers, tags and offsets; a version that knew rows of these episodes has another
content hash, and a record that says so (`Erasure`). From then on nothing of these episodes is taken in, whatever the log says.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from treadle_corpus import _files
from treadle_corpus._control import Control
from treadle_corpus._moments import first_control, moments
from treadle_corpus._recovery import recover
from treadle_corpus._remake import Remake
from treadle_corpus._rows import Key
from treadle_corpus._tombstones import Erasure, Tombstones, VersionChange, adopt, erasures, salted, write_erasure
from treadle_corpus.errors import CorpusDamaged
from treadle_corpus.manifest import Manifest
from treadle_corpus.objects.place import name_of, place_at
from treadle_corpus.replace import Replacement

__all__ = ["Erasure", "Found", "VersionChange", "erase", "erasures", "made_again", "ordered", "record_of", "rows_of"]


def erase(
    path: Path, episodes: Collection[str], *, reason: str, erased_at: str, code_version: str = "", wait_s: float = 0.0
) -> Erasure | None:
    """Erase episodes from the corpus at `path`. Returns the record, or None where there was nothing new to erase.

    1. keep others from writing: a snapshotter service has `wait_s` to let go, and comes back by itself. Remove what an erasure or a
       rebuild that was killed left beside the corpus: that may be the corpus of before
    2. bring what an interrupted run left into order
    3. find the rows and parts of the episodes, in every version and in what is folded after the newest
    4. make the corpus again beside itself without them, with the record and the hashes of what was erased
    5. nobody reads the old one: exchange the two, and remove the old one

    Killed between any two of these the corpus is the one of before or the one of after, and the next call goes on. Token columns beside the
    corpus go with the old one. One in an object store is erased there, see `objects.eraser`.

    Raises CorpusLocked (another writer), CorpusInUse naming who reads a version, CorpusMissing, CorpusOutdated, CorpusDamaged, CorpusFull,
    CorpusUnwritable, StoreError; nothing was erased then.
    """
    place = place_at(path)
    if place is not None:
        from treadle_corpus.objects.eraser import erase_published

        return erase_published(
            place, episodes, reason=reason, erased_at=erased_at, code_version=code_version, wait_s=wait_s
        )
    with Replacement(path, new=False, wait_s=wait_s) as replacement:  # 1
        path = replacement.path
        if _files.check_marker(path) != "ready":
            return None
        control = ordered(path)  # 2
        wanted = frozenset(episodes)
        found = rows_of(path, wanted)  # 3
        names = salted(path)
        if found.nothing and all(names.covers(episode) for episode in wanted):
            return None
        made: dict[int, Manifest] = {}
        if not found.nothing:
            adopt(replacement.fresh, path)
            made = made_again(path, replacement.fresh, control, wanted)  # 4
        record = record_of(
            path, found, made, wanted, names, reason=reason, erased_at=erased_at, code_version=code_version
        )
        write_erasure(path if found.nothing else replacement.fresh, record)
        if not found.nothing:
            replacement.place()  # 5
        return record


@dataclass
class Found:
    """What a corpus has of episodes."""

    told: dict[int, Manifest] = field(default_factory=dict)
    """Every version of the corpus."""
    rows: set[Key] = field(default_factory=set)
    parts: int = 0
    removed: dict[int, int] = field(default_factory=dict)
    """By version that knew any of the rows, how many of them were members."""
    control: Control | None = None
    """Of the newest version, or of what was folded after it; None where there is neither."""

    @property
    def nothing(self) -> bool:
        """Is there nothing to erase?"""
        return not self.rows and not self.parts


def rows_of(path: Path, episodes: Collection[str]) -> Found:
    """What the corpus at `path` has of episodes, in its versions and after them. Nothing is changed.

    Raises CorpusMissing, CorpusOutdated, CorpusDamaged, StoreError.
    """
    found = Found()
    parts: set[tuple[str, str]] = set()
    for moment in moments(path, head=True):
        found.rows.update(key for key in moment.rows if key[0] in episodes)
        parts.update(key for key in moment.parts if key[0] in episodes)
        found.control = moment.state.control
        if moment.version is not None:
            number = moment.version.manifest.version
            found.told[number] = moment.version.manifest
            there = [meta for key in found.rows if (meta := moment.state.rows.get(key)) is not None]
            if there:
                found.removed[number] = sum(meta.status == "member" for meta in there)
    found.parts = len(parts)
    return found


def made_again(path: Path, fresh: Path, control: Control, left_out: Collection[str]) -> dict[int, Manifest]:
    """Make the corpus at `path` again at `fresh`, where nothing is, without some episodes: its versions as they are there.

    Raises CorpusDamaged, CorpusFull, CorpusUnwritable, StoreError.
    """
    made: dict[int, Manifest] = {}
    with Remake(fresh, path, control, left_out.__contains__) as remake:
        for moment in moments(path, head=True):
            manifest = remake.take(moment)
            if manifest is not None:
                made[manifest.version] = manifest
        remake.sync()
    return made


def record_of(
    path: Path,
    found: Found,
    made: dict[int, Manifest],
    episodes: Collection[str],
    names: Tombstones,
    *,
    reason: str,
    erased_at: str,
    code_version: str,
) -> Erasure:
    """The record of an erasure of what was `found`, not written yet. `made` are the versions without it; none where none was made again.

    Raises CorpusDamaged where a version that knew nothing of it came out as another one.
    """
    versions: dict[int, VersionChange] = {}
    for version, after in made.items():
        told = found.told[version]
        if version in found.removed:
            versions[version] = VersionChange(
                before=told.content_hash,
                after=after.content_hash,
                rows_before=told.rows,
                rows_after=after.rows,
                removed=found.removed[version],
            )
        elif after.content_hash != told.content_hash:
            raise CorpusDamaged(
                name_of(path),
                f"v{version} knew nothing of what is erased, and made again it has content hash {after.content_hash}, not "
                f"{told.content_hash}; `treadle corpus verify` tells what is wrong with it",
            )
    return Erasure(
        number=names.erasures + 1,
        erased_at=erased_at,
        reason=reason,
        episodes=tuple(sorted(names.hash_episode(e) for e in episodes if not names.covers(e))),
        rows=tuple(sorted(names.hash_row(key) for key in found.rows)),
        versions=versions,
        code_version=code_version,
    )


def ordered(path: Path) -> Control:
    """Bring an interrupted run into order; whose corpus it is. The caller holds the lock. Raises CorpusDamaged, CorpusFull."""
    held = first_control(path)
    if held is None:
        raise CorpusDamaged(path, "has no journal that can be read")
    fresh = Control(workspace=held.workspace, workspace_created_at=held.workspace_created_at)
    found = recover(path, fresh)
    found.journal.close()
    found.bodies.close()
    return found.state.control
