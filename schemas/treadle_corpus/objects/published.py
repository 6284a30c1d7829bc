"""What is published of a corpus: its marker, the versions of its present generation, tags.

    URL/versions/vN.json          versions of generation 0
    URL/erasures/G-ID.json        record of the erasure that made generation G; put before the generation counts
    URL/erasures/G-ID.done        what was before it is deleted
    URL/made/G-ID/vN.json         versions of generation G

Whatever is published never changes, so an erasure makes all versions again in a folder of its own, the next generation. It counts from the
moment at which the folder before is *sealed*: a small object that names the next generation lies where its next version would. It is put
only where nothing is, as versions are. So a version and an erasure that both follow vN cannot both be, whoever sleeps how long between
looking and putting, and readers see all versions of before or all of after. Seals are never deleted, or a writer that comes back late would
publish into the folder of before.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

import msgspec

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
    "Generation",
    "check_published",
    "generation_of",
    "mark",
    "published_below",
    "published_tags",
    "published_version",
    "published_versions",
    "seal_of",
    "tag_name",
    "version_name",
]

FORMAT: Final = "treadle-corpus-objects"
FORMAT_VERSION: Final = 1
_VERSION: Final = re.compile(r"v([1-9][0-9]{0,8})\.json")
_ERASURE: Final = re.compile(r"erasures/(([1-9][0-9]{0,8})-[0-9a-f]{16})\.(json|done)")
TOMBSTONE: Final = b'{"removed":true}\n'
"""In the place of a version that was removed: its number is taken for good."""
SMALL_BYTES: Final = 64
"""Tombstones and seals are no larger, and every version is: a list of names with sizes tells what is a version."""


class _Seal(msgspec.Struct):
    generation: str


@dataclass(frozen=True)
class Generation:
    """The versions that one erasure made, or those that are as they were published."""

    erasures: tuple[str, ...] = ()
    """The erasures there were, as G-ID, in their order; the last made it."""
    done: bool = True
    """Is what was before it deleted?"""

    @property
    def number(self) -> int:
        """Number of the erasure that made it; 0: none did."""
        return len(self.erasures)

    @property
    def folder(self) -> str:
        """Where its versions lie."""
        return f"made/{self.erasures[-1]}" if self.erasures else "versions"

    def version(self, number: int) -> str:
        """The object of a version."""
        return f"{self.folder}/v{number}.json"

    def after(self, erasure: str) -> Generation:
        """The generation that the erasure G-ID makes of this one."""
        return Generation((*self.erasures, erasure), done=False)

    @property
    def seal(self) -> bytes:
        """What closes the generation before."""
        return b'{"generation":"%b"}\n' % self.erasures[-1].encode()


def generation_of(store: ObjectStore) -> Generation:
    """The present generation: the one whose folder is not sealed. Raises ObjectDamaged, StoreError.

    The record of an erasure is there before its seal is. So where there is no record of a next one, this is one request.
    """
    matches = [match for name in store.names("erasures") if (match := _ERASURE.fullmatch(name))]
    done = sorted((int(match[2]), match[1]) for match in matches if match[3] == "done")
    begun = {int(match[2]) for match in matches}
    found = Generation(tuple(name for _, name in done))
    while found.number + 1 in begun:
        following = seal_of(store, found)
        if following is None:
            break
        found = found.after(following)
    return found


def seal_of(store: ObjectStore, generation: Generation) -> str | None:
    """The erasure, as G-ID, that closed a generation. Raises ObjectDamaged, StoreError."""
    sizes = _sizes(store, generation)
    newest = max(sizes, default=0)
    if sizes.get(newest, SMALL_BYTES + 1) > SMALL_BYTES or sizes[newest] == len(TOMBSTONE):
        return None
    name = generation.version(newest)
    try:
        return msgspec.json.decode(store.read(name) or b"", type=_Seal).generation
    except msgspec.DecodeError as err:
        raise ObjectDamaged(store.at(name), f"cannot be read ({err})") from None


def version_name(version: int) -> str:
    """The file of a version in a folder of this machine."""
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


def published_versions(store: ObjectStore, generation: Generation | None = None) -> list[int]:
    """Versions there are in a generation, by default the present one, ascending. Raises ObjectDamaged, StoreError."""
    sizes = _sizes(store, generation or generation_of(store))
    return sorted(number for number, size in sizes.items() if size > SMALL_BYTES)


def _sizes(store: ObjectStore, generation: Generation) -> dict[int, int]:
    """Bytes by number of what lies in the folder of a generation."""
    found = store.sizes(generation.folder)
    return {
        int(match[1]): size
        for name, size in found.items()
        if (match := _VERSION.fullmatch(name.removeprefix(f"{generation.folder}/")))
    }


def published_version(
    store: ObjectStore, version: int, generation: Generation | None = None
) -> tuple[bytes, VersionFile, Contents]:
    """The object of a version in a generation, by default the present one, and what it says.

    Raises VersionMissing, ObjectDamaged, StoreError.
    """
    held = generation or generation_of(store)
    name = held.version(version)
    data = store.read(name)
    if data is None or len(data) <= SMALL_BYTES:
        now = generation_of(store)
        if generation is None and now != held:  # an erasure came between the two
            return published_version(store, version)
        raise VersionMissing(store.url, version, published_versions(store, held))
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
