"""What is published of a corpus: its marker, versions, tags."""

from __future__ import annotations

import json
import re
from typing import Final

from treadle_corpus._versions import VersionFile
from treadle_corpus.errors import (
    CorpusDamaged,
    CorpusMissing,
    CorpusNewer,
    CorpusOutdated,
    ObjectDamaged,
    VersionMissing,
)
from treadle_corpus.objects.layout import Contents, decode_contents
from treadle_corpus.objects.store import ObjectStore

__all__ = [
    "check_published",
    "mark",
    "published_below",
    "published_tags",
    "published_version",
    "published_versions",
    "tag_name",
    "version_name",
]

FORMAT: Final = "treadle-corpus-objects"
FORMAT_VERSION: Final = 1
_VERSION: Final = re.compile(r"versions/v([1-9][0-9]{0,8})\.json")
_REMOVED: Final = re.compile(r"removed/v([1-9][0-9]{0,8})")
TOMBSTONE: Final = b'{"removed":true}\n'


def version_name(version: int) -> str:
    """The object of a version."""
    return f"versions/v{version}.json"


def tag_name(name: str) -> str:
    """The object of a tag."""
    return f"tags/{name}.json"


def mark(store: ObjectStore) -> None:
    """Put the marker, if none is there. Raises StoreError."""
    marker = {"format": FORMAT, "format_version": FORMAT_VERSION}
    store.create("corpus.json", json.dumps(marker, separators=(",", ":")).encode() + b"\n")


def check_published(store: ObjectStore) -> None:
    """Raises CorpusMissing where nothing is published, CorpusOutdated, CorpusDamaged, StoreError."""
    data = store.read("corpus.json")
    if data is None:
        raise CorpusMissing(store.url)
    try:
        marker = json.loads(data)
        found, version = marker["format"], marker["format_version"]
    except (ValueError, KeyError, TypeError):
        raise CorpusDamaged(store.url, "corpus.json is not the marker of a published corpus") from None
    if found != FORMAT:
        raise CorpusDamaged(
            store.url,
            f"corpus.json says format {found!r}, not {FORMAT!r}; a folder that was copied there is none",
        )
    if isinstance(version, int) and version < FORMAT_VERSION:
        raise CorpusOutdated(store.url, version, FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise CorpusNewer(store.url, version, FORMAT_VERSION)


def published_below(url: str) -> list[str]:
    """URLs of the corpora at a URL and at most two below. Raises TargetError, StoreError."""
    store = ObjectStore(url)
    found = [url] if store.read("corpus.json") is not None else []
    for one in [] if found else store.folders():
        below = [one] if store.read(f"{one}/corpus.json") is not None else store.folders(one)
        found += [store.at(name) for name in below if name == one or store.read(f"{name}/corpus.json") is not None]
    return found


def published_versions(store: ObjectStore) -> list[int]:
    """Versions there are, ascending. Raises StoreError."""
    found = {int(match[1]) for name in store.names("versions") if (match := _VERSION.fullmatch(name))}
    gone = {int(match[1]) for name in store.names("removed") if (match := _REMOVED.fullmatch(name))}
    return sorted(found - gone)


def published_version(store: ObjectStore, version: int) -> tuple[bytes, VersionFile, Contents]:
    """The object of a version, and what it says. Raises VersionMissing, ObjectDamaged, StoreError."""
    name = version_name(version)
    data = store.read(name)
    if data is None or data == TOMBSTONE:
        raise VersionMissing(store.url, version, published_versions(store))
    try:
        return data, *decode_contents(store.at(name), version, data)
    except CorpusDamaged as err:
        raise ObjectDamaged(store.at(name), err.problem) from None


def published_tags(store: ObjectStore) -> dict[str, int]:
    """Versions by tag, sorted by name. Raises ObjectDamaged, StoreError."""
    found: dict[str, int] = {}
    for name in store.names("tags"):
        data = store.read(name)
        if data is None:
            continue
        try:
            found[name.removeprefix("tags/").removesuffix(".json")] = int(json.loads(data)["version"])
        except (ValueError, KeyError, TypeError) as err:
            raise ObjectDamaged(store.at(name), f"cannot be read ({err})") from None
    return found
