"""Publishing what a writer made in its work folder, and beginning a work folder from what is published.

A version is published in this order, so that whoever is killed between any two puts leaves nothing that a reader sees:

1. this writer still has the newest epoch
2. objects that the version before does not have
3. vN.json, where none is: from here on there is a vN

Where an erasure was killed, whoever publishes next finishes it first, and a work folder from before an erasure is thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from treadle_corpus import _disk, _files, _versions
from treadle_corpus._journal import journal_file, journals, prune
from treadle_corpus._tombstones import Erasure
from treadle_corpus.errors import CorpusError, CorpusLocked
from treadle_corpus.objects.contents import put_contents, seals_below, tail_of
from treadle_corpus.objects.generations import (
    Recorded,
    finished,
    known_here,
    place_records,
    put_generation,
    records_after,
    seal,
    share_salt,
)
from treadle_corpus.objects.layout import Contents, assemble, encode_version, place_bodies
from treadle_corpus.objects.lease import WriterLease
from treadle_corpus.objects.place import Place
from treadle_corpus.objects.published import (
    check_published,
    mark,
    published_version,
    published_versions,
    seal_of,
    version_name,
)

__all__ = ["Publisher", "clear"]


class Publisher:
    """Brings the versions of a work folder to where they are read. One a corpus at a time."""

    def __init__(self, place: Place) -> None:
        """The caller holds the lock of the work folder. Raises CorpusLocked, StoreError, CorpusFull, CorpusUnwritable."""
        self.place = place
        self._store = place.store
        self._lost = False
        self._lease = WriterLease(self._store, place.id)
        try:
            self._begin()
        except BaseException:
            self._lease.release()
            raise

    def _begin(self) -> None:
        mark(self._store)
        check_published(self._store)
        self.generation = finished(self._store, self._lease)
        """What is published now."""
        there = published_versions(self._store, self.generation)
        self.version = there[-1] if there else 0
        """The newest version that is published."""
        self._before: tuple[int, Contents] | None = None
        work, present = self.place.work, self.generation.number
        known = _known(work)
        if there:
            data, found, contents = published_version(self._store, self.version, self.generation)
            if known != present or not self._goes_on(data):
                clear(work)
                self._restore(data, found, contents)
            self._before = found.journal, contents
        elif known != present or _local(work) not in ([], [1]):
            clear(work)  # versions that nobody has any more
        if _known(work) != present:  # last: what is here without all of them is from before an erasure
            place_records(self._store, work, records_after(self._store, self.generation, 0))

    def _goes_on(self, published: bytes) -> bool:
        """Whether the work folder has the newest version and perhaps the next, not something else."""
        local = _local(self.place.work)
        if not local or not self.version <= local[-1] <= self.version + 1 or self.version not in local:
            return False
        here = (self.place.work / version_name(self.version)).read_bytes().rstrip().removesuffix(b"}")
        return published.startswith(here)

    def _restore(self, data: bytes, found: _versions.VersionFile, contents: Contents) -> None:
        """Make the work folder what the newest version says; the marker comes last."""
        work = self.place.work
        _files.write_marker(work, "creating")
        assemble(self._store, journal_file(work, found.journal), contents.journal)
        place_bodies(self._store, work / "bodies", contents)
        _disk.create(work / version_name(self.version), data)
        _files.write_marker(work, "ready")

    def regain(self) -> None:
        """Take the next epoch where this one was lost. Raises CorpusLocked, StoreError."""
        if self._lost:
            self._lease.release()
            self._lease = WriterLease(self._store, self.place.id)
            self._begin()
            self._lost = False

    @property
    def lost(self) -> bool:
        """Whether another writer took over."""
        return self._lost

    def publish(self) -> None:
        """Publish the version that the work folder has and the store has not. Raises CorpusLocked, StoreError, CorpusDamaged."""
        local = _local(self.place.work)
        if self._lost or not local or local[-1] <= self.version:
            return
        number = local[-1]
        try:
            self._lease.check()  # 1
        except CorpusLocked:
            self._lost = True
            raise
        work = self.place.work
        found = _versions.read_version(work, number)
        tail = tail_of(work)
        contents = put_contents(  # 2
            self._store,
            work,
            found,
            self._before,
            seals=seals_below(work, tail.first),
            tail=tail,
            tail_bytes=tail.file.stat().st_size,
        )
        data = encode_version((work / version_name(number)).read_bytes(), contents)
        name = self.generation.version(number)
        if not self._store.create(name, data) and self._store.read(name) != data:  # 3
            self._lost = True
            erased = seal_of(self._store, self.generation) is not None
            what = "erased episodes from it" if erased else f"published v{number}"
            raise CorpusLocked(self._store.url, f"another writer, which {what} meanwhile")
        self.version, self._before = number, (found.journal, contents)
        for old in local[:-1]:  # they are read where they were published
            _disk.remove(work / version_name(old))
        prune(work, {found.journal, *journals(work)[-1:]})

    def erase(self, recorded: Recorded, versions: Mapping[int, bytes], fetched: AbstractContextManager[None]) -> None:
        """Put other versions in the place of those that are published, under the same numbers; all that they need was put before.

        `fetched` is held while they take the place, see `cache.unread`. What the work folder has is from before then, and goes or is
        brought along by the caller. Raises CorpusLocked where another writer went on meanwhile, and what entering `fetched` raises;
        nothing was changed then. Raises StoreError: the next call, or the next writer, goes on.
        """
        made = put_generation(self._store, self.generation, versions, recorded)
        with fetched:
            seal(self._store, self._lease, self.generation, self.version, made)
        self.generation = finished(self._store, self._lease)

    def forbid(self, record: Erasure) -> None:
        """Keep episodes of which no version knows anything from ever being published. Raises CorpusLocked, StoreError."""
        try:
            self.erase(Recorded(record=record, remade=False), self.published(), nullcontext())
        except CorpusLocked:
            self._lost = True
            raise

    def published(self) -> dict[int, bytes]:
        """The versions of the present generation, as they are published. Raises VersionMissing, StoreError."""
        numbers = published_versions(self._store, self.generation)
        return {number: published_version(self._store, number, self.generation)[0] for number in numbers}

    def share_salt(self) -> None:
        """Hash with the salt of the store. Raises StoreError, CorpusUnwritable."""
        share_salt(self._store, self.place.work)

    def close(self) -> None:
        """Let another writer in."""
        self._lease.release()


def _local(work: Path) -> list[int] | None:
    """The versions in the work folder; None where it cannot be gone on with."""
    try:
        return _versions.versions(work)
    except (CorpusError, FileNotFoundError):
        return None


def _known(work: Path) -> int:
    """The newest erasure that the work folder knows; -1 where that cannot be read."""
    try:
        return known_here(work)
    except CorpusError:
        return -1


def clear(work: Path) -> None:
    """Forget what the work folder holds, but for the lock that the caller has."""
    _disk.remove(work / "corpus.json")  # killed after this, what is left is not gone on with
    for left in work.iterdir():
        if left.name != "lock":
            _disk.remove(left)
