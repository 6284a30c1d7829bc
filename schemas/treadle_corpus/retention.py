"""Removing old versions of a corpus: those that are wanted stay, whatever is asked for, and the reason is said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from treadle_schemas.errors import FieldError
from treadle_schemas.moments import to_micros

from treadle_corpus import _versions
from treadle_corpus._journal import journals, prune
from treadle_corpus.errors import CorpusInUse, VersionMissing
from treadle_corpus.objects.place import place_at

__all__ = ["Kept", "Pruned", "prune_versions"]


class Kept(msgspec.Struct, frozen=True):
    """A version that was to go and stays."""

    version: int
    reason: str


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What a pruning did, or would do."""

    removed: list[int]
    kept: list[Kept]
    left: int
    """How many versions there are now."""


def prune_versions(
    path: Path,
    *,
    keep: int | None = None,
    before: str | None = None,
    held: Mapping[int, str] | None = None,
    dry_run: bool = False,
) -> Pruned:
    """Remove versions of the corpus at `path` that are not among the newest `keep`, and were made before the RFC 3339 time `before`.

    At least one of the two must be said. What stays in any case: the newest version, one with a tag, one that a process of this machine
    reads, and those of `held`, with the reason there. Journals that no version needs go too; bodies stay, since versions share them, and
    go when the corpus is made again. In an object store all that no version needs goes once it is a day old. A writer may go on meanwhile.

    Raises ValueError, CorpusMissing, CorpusOutdated, CorpusDamaged, CorpusUnwritable, StoreError. What was removed before stays removed.
    """
    if keep is None and before is None:
        raise ValueError("say how many versions to keep, or from when on")
    if keep is not None and keep < 1:
        raise ValueError("the newest version is always kept")
    files = journals(path)  # before the versions: a journal that is begun later is not looked at
    there = _versions.versions(path)
    wanted = [number for number in there if keep is None or number not in there[-keep:]]
    if before is not None:
        limit = to_micros(before, "before")
        wanted = [number for number in wanted if _made_us(path, number) < limit]
    tags: dict[int, list[str]] = {}
    for name, number in _versions.read_tags(path).items():
        tags.setdefault(number, []).append(name)
    removed: list[int] = []
    kept: list[Kept] = []
    for number in wanted:
        if number == there[-1]:
            kept.append(Kept(number, "it is the newest one"))
        elif number in tags:
            kept.append(Kept(number, f"tag {', '.join(tags[number])}"))
        elif held is not None and number in held:
            kept.append(Kept(number, held[number]))
        elif (user := _versions.reader_of(path, number)) is not None:
            kept.append(Kept(number, f"{user} is reading it"))
        else:
            try:
                if not dry_run:
                    _versions.remove_version(path, number)
                removed.append(number)
            except CorpusInUse as err:
                kept.append(Kept(number, err.user))
            except VersionMissing:
                pass  # another one removed it
    if not dry_run:
        _sweep(path, files)
    return Pruned(removed=removed, kept=kept, left=len(there) - len(removed))


def _made_us(path: Path, number: int) -> int:
    """When a version was made, in microseconds; one that does not say is older than any time."""
    try:
        return to_micros(_versions.read_version(path, number).manifest.created_at, "created_at")
    except FieldError:
        return -1


def _sweep(path: Path, files: list[int]) -> None:
    place = place_at(path)
    if place is not None:
        from treadle_corpus.objects.history import sweep

        sweep(place.store)
        return
    needed = {_versions.read_version(path, number).journal for number in _versions.versions(path)}
    prune(path, needed | set(files[-1:]), among=files)
