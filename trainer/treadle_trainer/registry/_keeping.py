"""What is kept and what leaves: which releases something needs, what may be deleted, copies for elsewhere, flags on corpus versions."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from treadle_schemas import ReleaseId, ReleaseManifest

from treadle_trainer._files import fsync_file, fsync_folder
from treadle_trainer.errors import RegistryError
from treadle_trainer.registry._folders import MANIFEST, open_release

if TYPE_CHECKING:
    from treadle_trainer.registry._records import Records

__all__ = ["Flag", "collectable", "export", "flags", "needed", "within_budget"]

_VERDICTS = frozenset({"promoted", "rejected", "not_enough_evidence", "failed", "withdrawn", "rolled_back"})


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A corpus version on which a release was trained that had to be quarantined."""

    corpus: str
    version: int
    release: str
    reason: str


def needed(registry: Records) -> dict[int, str]:
    """Which releases' files something needs, and what: aliases, a possible rollback, pins, open decisions, and bases of those."""
    aliases = registry.aliases
    why: dict[int, str] = {}
    for pinned, text in aliases.pins.items():
        why[int(pinned)] = f"pinned: {text}"
    for number in aliases.history:
        if str(number) not in aliases.quarantined:
            why[number] = "a rollback may lead to it"
    for name, one in (("champion", aliases.champion), ("canary", aliases.canary), ("control", aliases.control)):
        if one is not None:
            why[one] = name
    manifests = {_number(m.release): m for m in registry.releases()}
    last = {e.release: e.event for e in registry.events() if e.release is not None and e.event not in _SILENT}
    for number, manifest in manifests.items():
        if number not in why and last.get(manifest.release) not in _VERDICTS:
            why[number] = "nothing was decided about it yet"
    # an adapter is nothing without the weights that it was trained on
    for number in sorted(why, reverse=True):
        if number not in manifests:
            continue
        manifest = manifests[number]
        if manifest.kind != "adapter" or manifest.base is None:
            continue
        for other in manifests:
            if other not in why and Path(manifest.base).absolute() == (registry.path / f"r{other}").absolute():
                why[other] = f"base of {manifest.release}"
    return why


_SILENT = frozenset({"pinned", "unpinned", "exported", "collected", "controlled", "quarantined", "approved"})


def collectable(registry: Records, *, keep_newest: int = 3) -> list[tuple[ReleaseId, int]]:
    """(release, bytes) whose files nothing needs, oldest first, but for the newest `keep_newest` releases."""
    keep = needed(registry)
    manifests = registry.releases()
    out = []
    for manifest in manifests[: max(0, len(manifests) - keep_newest)]:
        release = ReleaseId.parse(manifest.release)
        if release.number not in keep and manifest.files and not registry.collected(release):
            folder = registry.folder(release)
            out.append((release, sum((folder / name).stat().st_size for name in manifest.files)))
    return out


def within_budget(
    registry: Records, found: list[tuple[ReleaseId, int]], budget: int | None
) -> list[tuple[ReleaseId, int]]:
    """The oldest of what `collectable` found, until the releases of the slot take at most `budget` bytes; None: all of it."""
    if budget is None:
        return found
    total = sum(path.stat().st_size for path in registry.path.glob("r[0-9]*/**/*") if path.is_file())
    out = []
    for release, size in found:
        if total <= budget:
            break
        out.append((release, size))
        total -= size
    return out


def export(registry: Records, release: ReleaseId, target: Path) -> ReleaseManifest:
    """Copy a verified release to `target`, which must not exist: it appears there whole or not at all, and is checked again there.

    Raises ReleaseTampered, ReleaseMissing, RegistryError.
    """
    manifest = registry.verify(release)
    if target.exists():
        raise RegistryError(f"{target}: is there already; an export is never written over anything")
    folder = registry.folder(release)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}-{uuid.uuid4().hex}"
    try:
        for name in [MANIFEST, *manifest.files]:
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, staging / name)
            fsync_file(staging / name)
        open_release(staging)
        os.rename(staging, target)
        fsync_folder(target.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return manifest


def flags(registry: Records) -> list[Flag]:
    """The corpus versions behind quarantined releases. They follow from quarantine and manifests, so they are never out of step."""
    out = []
    for number, reason in sorted(registry.aliases.quarantined.items(), key=lambda item: int(item[0])):
        manifest = registry.manifest(registry.id(int(number)))
        if manifest.corpus is not None and manifest.corpus_version is not None:
            out.append(
                Flag(
                    corpus=manifest.corpus,
                    version=manifest.corpus_version,
                    release=manifest.release,
                    reason=reason,
                )
            )
    return out


def _number(release: str) -> int:
    return ReleaseId.parse(release).number
