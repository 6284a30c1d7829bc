"""Tags of a corpus in an object store, and removing versions there."""

from __future__ import annotations

import json
import time
from typing import Final

from treadle_corpus.errors import CorpusInUse, TagMissing, TagTaken
from treadle_corpus.objects.generations import needed_objects
from treadle_corpus.objects.published import (
    TOMBSTONE,
    generation_of,
    published_tags,
    published_version,
    published_versions,
    tag_name,
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
    """Remove a version that no tag names and that is not the newest. Its objects go with `sweep`.

    Its file becomes a tombstone: it is in no list from then on, and nobody can publish under the number. Raises CorpusInUse,
    VersionMissing, StoreError.
    """
    generation = generation_of(store)
    published_version(store, version, generation)
    if version == published_versions(store, generation)[-1]:
        raise CorpusInUse(store.url, version, "it is the newest one")
    named = [name for name, number in published_tags(store).items() if number == version]
    if named:
        raise CorpusInUse(
            store.url, version, f"the tag {named[0]!r} names it; `treadle corpus tag --delete` takes it away"
        )
    store.put(generation.version(version), TOMBSTONE)
    if generation_of(store).number != generation.number:  # an erasure came between
        remove_published(store, version)


def sweep(store: ObjectStore) -> int:
    """Delete the objects that no version needs, a day after they were put; how many. Raises StoreError.

    A writer may publish meanwhile: whatever its version is made of was needed by the version before it, or is put anew.
    """
    old = store.names_before("objects", time.time() - SWEEP_AFTER_S)
    needed = needed_objects(store, generation_of(store))
    unneeded = [name for name in old if name.removeprefix("objects/") not in needed]
    for name in unneeded:
        store.delete(name)
    return len(unneeded)
