"""Tags of a corpus in an object store, and removing versions there."""

from __future__ import annotations

import json
import time
from typing import Final

import msgspec

from treadle_corpus._bodies import Seal
from treadle_corpus.errors import CorpusInUse, TagMissing, TagTaken
from treadle_corpus.objects.layout import read_piece
from treadle_corpus.objects.published import (
    TOMBSTONE,
    published_tags,
    published_version,
    published_versions,
    tag_name,
    version_name,
)
from treadle_corpus.objects.store import ObjectStore

__all__ = ["put_tag", "remove_published", "remove_tag", "sweep"]


SWEEP_AFTER_S: Final = 24 * 3600.0
"""Longer than any publishing takes: what it has put before its version is there is needed by none."""


def put_tag(store: ObjectStore, name: str, version: int, *, force: bool = False) -> None:
    """Name a version; with `force` also where the tag names another one. Raises VersionMissing, TagTaken, StoreError."""
    published_version(store, version)
    data = json.dumps({"version": version}).encode() + b"\n"
    if store.create(tag_name(name), data):
        return
    before = published_tags(store).get(name)
    if before == version:
        return
    if before is not None and not force:
        raise TagTaken(store.url, name, before)
    store.put(tag_name(name), data)


def remove_tag(store: ObjectStore, name: str) -> int:
    """Take a tag away; the version that it named. Raises TagMissing, StoreError."""
    tags = published_tags(store)
    if name not in tags:
        raise TagMissing(store.url, name, sorted(tags))
    store.delete(tag_name(name))
    return tags[name]


def remove_published(store: ObjectStore, version: int) -> None:
    """Remove a version that no tag names. Its objects go with `sweep`. Raises CorpusInUse, VersionMissing, StoreError.

    1. from here on it is in no list
    2. its file becomes a tombstone: a writer that lost its right cannot publish under the number
    """
    published_version(store, version)
    named = [name for name, number in published_tags(store).items() if number == version]
    if named:
        raise CorpusInUse(
            store.url, version, f"the tag {named[0]!r} names it; `treadle corpus tag --delete` takes it away"
        )
    store.put(f"removed/v{version}", b"")  # 1
    store.put(version_name(version), TOMBSTONE)  # 2


def sweep(store: ObjectStore) -> int:
    """Delete the objects that no version needs, a day after they were put; how many. Raises StoreError.

    A writer may publish meanwhile: whatever its version is made of was needed by the version before it, or is put anew.
    """
    old = store.names_before("objects", time.time() - SWEEP_AFTER_S)
    needed: set[str] = set()
    seals: dict[str, set[str]] = {}
    for version in published_versions(store):
        _, _, contents = published_version(store, version)
        needed |= {piece.sha256 for piece in (*contents.journal, *contents.tail)}
        for piece in contents.seals.values():
            if piece.sha256 not in seals:
                seal = msgspec.json.decode(read_piece(store, piece), type=Seal)
                seals[piece.sha256] = {sha256 for _, sha256 in seal.files.values()}
    needed |= seals.keys() | {sha256 for files in seals.values() for sha256 in files}
    unneeded = [name for name in old if name.removeprefix("objects/") not in needed]
    for name in unneeded:
        store.delete(name)
    return len(unneeded)
