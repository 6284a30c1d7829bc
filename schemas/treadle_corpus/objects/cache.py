"""What readers here fetched of a corpus in an object store: a folder like that of a local corpus, with the files of some versions.

    NAME/versions/vN.json   fetched when vN is opened; whoever reads vN holds a lock on it
    NAME/have/vN            all that vN needs is there, and was compared with its sizes and checksums
    NAME/erasures/          the records of erasures
    NAME/cache.lock         held by whoever fetches or removes

After an erasure nothing here is what is published any more. So whoever opens or lists versions here first looks which erasures there were:
all that was fetched goes before anything new is fetched, and so does what others keep beside it, such as token columns. While a process
reads a version of before, no version can be opened.

The caches of all corpora together take at most TREADLE_CORPUS_CACHE_BYTES (20 GiB): versions that were not opened for longest leave first,
those that are being read never.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
from treadle_schemas.errors import SettingError

from treadle_corpus import _disk, _versions
from treadle_corpus._bodies import Seal
from treadle_corpus._journal import journal_file, prune
from treadle_corpus.errors import CorpusError, CorpusInUse, ObjectDamaged, VersionChanged, VersionMissing
from treadle_corpus.objects.generations import known_here, place_records, records_after
from treadle_corpus.objects.layout import assemble, decode_contents, place_bodies
from treadle_corpus.objects.place import MARKER, Place, place_at
from treadle_corpus.objects.published import Generation, generation_of, published_version, version_name
from treadle_corpus.objects.store import ObjectStore

__all__ = ["CACHE_BYTES", "budget_bytes", "evict", "fetch", "follow", "open_version", "unread"]

_KEPT: Final = frozenset({MARKER, "cache.lock", "erasures", "exports"})
"""What an erasure leaves here. Exports are written again by whoever erases."""

CACHE_BYTES: Final = 20 * 1024**3


def budget_bytes() -> int:
    """How much the caches may take. Raises SettingError."""
    text = os.environ.get("TREADLE_CORPUS_CACHE_BYTES") or str(CACHE_BYTES)
    if not text.isdecimal():
        raise SettingError(f"TREADLE_CORPUS_CACHE_BYTES={text!r}: expected a number of bytes")
    return int(text)


def open_version(place: Place, version: int) -> _versions.Lease:
    """Bring the file of a version here, and keep it until the lease is closed.

    Raises VersionMissing, StoreError, CorpusFull, and CorpusInUse where one is being read that an erasure changed.
    """
    with _locked(place.cache):
        _placed(place, version)
        return _versions.Lease(place.cache, version)


def fetch(place: Place, version: int) -> None:
    """Bring all that a version needs here.

    Raises VersionMissing, VersionChanged, ObjectDamaged, StoreError, CorpusFull, CorpusUnwritable.
    """
    done = place.cache / "have" / f"v{version}"
    if done.exists():
        return
    with _locked(place.cache):
        if done.exists():
            return
        store = place.store
        file = place.cache / version_name(version)
        if not file.exists():  # nobody opened it here: whoever walks through the history comes by every journal
            _placed(place, version)
        found, contents = decode_contents(store.at(version_name(version)), version, file.read_bytes())
        try:
            assemble(store, journal_file(place.cache, found.journal), contents.journal)
            place_bodies(store, place.cache / "bodies", contents)
        except ObjectDamaged:
            if generation_of(store).number > known_here(place.cache):
                raise VersionChanged(place.url, version) from None
            raise
        with _disk.writing(done):
            done.parent.mkdir(exist_ok=True)
        _disk.create(done, b"")
    evict(place.cache.parent, budget_bytes())


def _placed(place: Place, version: int) -> None:
    """The file of a version is here, and as it is published. The caller holds the cache's lock."""
    file = place.cache / version_name(version)
    store = place.store
    while True:
        generation = generation_of(store)
        _renew(place, store, generation)
        try:
            data, _, _ = published_version(store, version, generation)
            break
        except VersionMissing:
            if generation_of(store).number == generation.number:
                _forget(place.cache, version)
                raise
    if not file.exists() or file.read_bytes() != data:
        _forget(place.cache, version)
        with _disk.writing(file):
            file.parent.mkdir(exist_ok=True)
        _disk.create(file, data)
    os.utime(file)


def follow(place: Place) -> Generation:
    """The present generation. Nothing that was fetched before an erasure is here when this returns, unless somebody reads it.

    Raises ObjectDamaged, StoreError, CorpusFull, CorpusUnwritable.
    """
    store = place.store
    generation = generation_of(store)
    if generation.number > known_here(place.cache):
        with _locked(place.cache), suppress(CorpusInUse):
            _renew(place, store, generation)
    return generation


@contextmanager
def unread(place: Place) -> Iterator[None]:
    """Nobody here reads or fetches a version until the end; then all of it goes if an erasure was made. Raises CorpusInUse."""
    with _locked(place.cache):
        _check_unread(place)
        yield
        _renew(place, place.store, generation_of(place.store))


def _check_unread(place: Place) -> None:
    """Raises CorpusInUse. The caller holds the cache's lock, without which nobody begins to read."""
    for file in sorted((place.cache / "versions").glob("v*.json")):
        number = int(file.stem[1:])
        user = _versions.reader_of(place.cache, number)
        if user is not None:
            user += " is reading it on this machine; wait for it, or stop it"
            raise CorpusInUse(place.url, number, user, what="replaced")


def _renew(place: Place, store: ObjectStore, generation: Generation) -> None:
    """Take in the erasures that are not known here. The caller holds the cache's lock. Raises CorpusInUse.

    1. what was fetched goes, if they made it again
    2. their records: from here on what is fetched is what is published now
    """
    known = known_here(place.cache)
    if known >= generation.number:
        return
    records = records_after(store, generation, known)
    if any(one.remade for one in records):
        _check_unread(place)
        for left in place.cache.iterdir():  # 1
            if left.name not in _KEPT:
                _disk.remove(left)
    place_records(store, place.cache, records)  # 2


def evict(root: Path, budget: int) -> None:
    """Remove versions that nobody reads from the caches below `root` until they fit. A cache that is being written is left alone."""
    caches = [path for path in root.iterdir() if place_at(path) is not None]
    total = sum(_size(path) for path in caches)
    versions = [(file.stat().st_mtime_ns, file) for path in caches for file in path.glob("versions/v*.json")]
    for _, file in sorted(versions):
        if total <= budget:
            return
        cache = file.parent.parent
        before = _size(cache)
        try:
            with _locked(cache, wait=False):
                if _unread(file):
                    _forget(cache, int(file.stem[1:]))
                    _sweep(cache)
        except (BlockingIOError, CorpusError):
            continue
        total += _size(cache) - before


def _size(folder: Path) -> int:
    total = 0
    for file in _disk.files_below(folder):
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            pass  # removed meanwhile
    return total


@contextmanager
def _locked(cache: Path, *, wait: bool = True) -> Iterator[None]:
    """Nobody else fetches into this cache or removes from it. Raises BlockingIOError where somebody does, without `wait`."""
    with _disk.writing(cache):
        opened = os.open(cache / "cache.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(opened)


def _unread(file: Path) -> bool:
    opened = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(opened)
    return True


def _forget(cache: Path, version: int) -> None:
    _disk.remove(cache / "have" / f"v{version}")
    _disk.remove(cache / version_name(version))


def _sweep(cache: Path) -> None:
    """Remove what no version needs that is here: journals, tails, and segments, of which the seal goes first."""
    journals: set[int] = set()
    tails: set[str] = set()
    seals: set[str] = set()
    for file in (cache / "versions").glob("v*.json"):
        found, contents = decode_contents(str(file), int(file.stem[1:]), file.read_bytes())
        journals.add(found.journal)
        tails.add(f"tail-{contents.tail_first:012d}.log")
        seals |= contents.seals.keys()
    prune(cache, journals)
    for file in sorted((cache / "bodies").glob("*.json")):
        if file.name not in seals:
            segment = msgspec.json.decode(file.read_bytes(), type=Seal)
            _disk.remove(file)
            _disk.remove(file.with_name(f"{segment.first:012d}"))
    for file in (cache / "bodies").glob("tail-*.log"):
        if file.name not in tails:
            _disk.remove(file)
