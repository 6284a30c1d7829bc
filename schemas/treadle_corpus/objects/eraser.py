"""Erasing episodes from a corpus in an object store.

The corpus is made again in a folder of this machine, from what is published, with the code that erases from any corpus; then all of its
versions take the place of those that are published, see `generations`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from treadle_corpus import _disk, _files, _versions
from treadle_corpus._bodies import Seal
from treadle_corpus._moments import workspace_of
from treadle_corpus._tombstones import Erasure, salted, write_erasure
from treadle_corpus.erasure import Found, made_again, ordered, record_of, rows_of
from treadle_corpus.errors import CorpusError, CorpusMissing
from treadle_corpus.manifest import Manifest
from treadle_corpus.objects.cache import unread
from treadle_corpus.objects.contents import Tail, put_contents, seals_below, tail_of
from treadle_corpus.objects.generations import Recorded, records_after
from treadle_corpus.objects.history import sweep
from treadle_corpus.objects.layout import Contents, encode_version, object_name
from treadle_corpus.objects.place import Place
from treadle_corpus.objects.published import check_published, generation_of, version_name
from treadle_corpus.objects.publisher import Publisher, clear
from treadle_corpus.objects.store import ObjectStore
from treadle_corpus.replace import lock_for

__all__ = ["bytes_written", "erase_published", "rows_in_work", "workspace_here"]


def erase_published(
    place: Place, episodes: Collection[str], *, reason: str, erased_at: str, code_version: str = "", wait_s: float = 0.0
) -> Erasure | None:
    """Erase episodes from a published corpus, and from what this machine has of it. Returns the record, or None where none was new.

    1. keep others from writing: a snapshotter service of this machine has `wait_s` to let go. Finish an erasure that was killed, and
       publish what a writer here made and could not publish
    2. find the rows and parts, in every version and in what the work folder has beyond them
    3. make the corpus again without them, in a folder beside the cache
    4. nobody here reads a version: put the new ones in the place of the old ones. The fetched copies go
    5. the work folder begins anew from what is published: what no version had is folded again, without these episodes
    6. objects that no version needs and that are a day old go: a writer that slept through an erasure may have put some

    Killed anywhere, readers see all versions of before or all of after, and the next call or the next writer goes on. Raises CorpusMissing,
    CorpusLocked naming the writer, CorpusInUse naming the reader, CorpusDamaged, CorpusFull, CorpusUnwritable, StoreError.
    """
    check_published(place.store)
    with _locked(place, wait_s):
        publisher = Publisher(place)  # 1
        try:
            if _has_journal(place.work):
                ordered(place.work)
                publisher.publish()
            with unread(place):
                pass
            publisher.share_salt()
            record = _erased(place, publisher, frozenset(episodes), reason, erased_at, code_version)
            sweep(place.store)  # 6
            return record
        finally:
            publisher.close()


def rows_in_work(place: Place, episodes: Collection[str]) -> Found:
    """What a writer here has of episodes. Nothing is changed. Raises CorpusDamaged."""
    return rows_of(place.work, episodes) if _has_journal(place.work) else Found()


def workspace_here(place: Place) -> str | None:
    """Whose corpus it is, as what this machine has of it says; None where it has nothing. The store is not asked. Raises CorpusDamaged."""
    for file in (place.cache / "versions").glob("v*.json"):
        return _versions.decode_version(place.url, int(file.stem[1:]), file.read_bytes()).manifest.workspace
    with suppress(CorpusError):  # nothing, or what a killed process left, and the next one makes anew
        return workspace_of(place.work)
    return None


def bytes_written(place: Place, erasure: int) -> int:
    """How many bytes an erasure put. Raises ObjectDamaged, StoreError."""
    return records_after(place.store, generation_of(place.store), erasure - 1)[0].bytes


def _has_journal(work: Path) -> bool:
    try:
        return _files.check_marker(work) == "ready"
    except CorpusMissing:
        return False


@contextmanager
def _locked(place: Place, wait_s: float) -> Iterator[None]:
    lock = lock_for(place.work, wait_s)
    try:
        yield
    finally:
        lock.release()


def _erased(
    place: Place, publisher: Publisher, episodes: frozenset[str], reason: str, erased_at: str, code_version: str
) -> Erasure | None:
    fresh = place.cache.with_name(f".{place.cache.name}.rebuild")
    _disk.remove(fresh)
    names = salted(place.work)
    made: dict[int, Manifest] = {}
    try:
        with _kept(place, publisher.version):
            found = rows_of(place.cache, episodes)  # 2
            beyond = rows_in_work(place, episodes)
            if found.nothing and beyond.nothing and all(names.covers(episode) for episode in episodes):
                return None
            if not found.nothing:
                assert found.control is not None
                made = made_again(place.cache, fresh, found.control, episodes)  # 3
        found.rows |= beyond.rows
        record = record_of(
            place.cache, found, made, episodes, names, reason=reason, erased_at=erased_at, code_version=code_version
        )
        if made:
            versions, size = _put(place.store, fresh)
            publisher.erase(Recorded(record=record, remade=True, bytes=size), versions, unread(place))  # 4
        else:
            publisher.erase(Recorded(record=record, remade=False), publisher.published(), unread(place))
    finally:
        _disk.remove(fresh)
    if made or not beyond.nothing:
        clear(place.work)  # 5
    else:
        write_erasure(place.work, record)
    return record


@contextmanager
def _kept(place: Place, newest: int) -> Iterator[None]:
    """What is fetched of a version stays: the newest one has the bodies of all."""
    lease = _versions.lease(place.cache, newest) if newest else None
    try:
        yield
    finally:
        if lease is not None:
            lease.close()


def _put(store: ObjectStore, folder: Path) -> tuple[dict[int, bytes], int]:
    """Put the objects of all versions of a corpus: what their files say, and how many bytes that were."""
    versions: dict[int, bytes] = {}
    sizes: dict[str, int] = {}
    before: tuple[int, Contents] | None = None
    tail = tail_of(folder)
    ends = tail.ends()
    for number in _versions.versions(folder):
        found = _versions.read_version(folder, number)
        seals = seals_below(folder, found.bodies)
        own, own_bytes = tail, 0
        if found.bodies > tail.first:
            own_bytes = ends[found.bodies - tail.first - 1]
        elif found.bodies < tail.first:  # its last bodies are in a segment: its tail begins after that, with nothing
            own = Tail(_end_of(seals[-1]) if seals else 0, tail.file)
        contents = put_contents(store, folder, found, before, seals=seals, tail=own, tail_bytes=own_bytes)
        before = found.journal, contents
        versions[number] = encode_version((folder / version_name(number)).read_bytes(), contents)
        for piece in (*contents.journal, *contents.tail, *contents.seals.values()):
            sizes[object_name(piece.sha256)] = piece.size
        for file in seals:
            if file.name not in sizes:
                sizes[file.name] = sum(size for size, _ in _seal(file).files.values())
    return versions, sum(sizes.values())


def _seal(file: Path) -> Seal:
    return msgspec.json.decode(file.read_bytes(), type=Seal)


def _end_of(file: Path) -> int:
    seal = _seal(file)
    return seal.first + seal.bodies
