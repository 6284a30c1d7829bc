"""Publishing what a writer made in its work folder, and beginning a work folder from what is published.

A version is published in this order, so that whoever is killed between any two puts leaves nothing that a reader sees:

1. this writer still has the newest epoch
2. objects that the version before does not have
3. vN.json, where none is: from here on there is a vN
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from treadle_corpus import _disk, _files, _versions
from treadle_corpus._bodies import Seal
from treadle_corpus._journal import journal_file, journals, prune
from treadle_corpus.errors import CorpusDamaged, CorpusError, CorpusLocked
from treadle_corpus.objects.layout import (
    Contents,
    Piece,
    assemble,
    encode_version,
    grown,
    object_name,
    place_bodies,
    put_bytes,
)
from treadle_corpus.objects.lease import WriterLease
from treadle_corpus.objects.place import Place
from treadle_corpus.objects.published import check_published, mark, published_version, published_versions, version_name

__all__ = ["Publisher"]

_TAIL: Final = "tail-*.log"


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
        there = published_versions(self._store)
        self.version = there[-1] if there else 0
        """The newest version that is published."""
        self._before: Contents | None = None
        self._journal = 0
        if not there:
            if _local(self.place.work) not in ([], [1]):
                _clear(self.place.work)  # versions that nobody has any more
            return
        data, found, contents = published_version(self._store, self.version)
        if not self._goes_on(data):
            _clear(self.place.work)
            self._restore(data, found, contents)
        self._before, self._journal = contents, found.journal

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
        contents = self._contents(found)  # 2
        data = encode_version((work / version_name(number)).read_bytes(), contents)
        if not self._store.create(version_name(number), data) and self._store.read(version_name(number)) != data:  # 3
            self._lost = True
            raise CorpusLocked(self._store.url, f"another writer, which published v{number} meanwhile")
        self.version, self._before, self._journal = number, contents, found.journal
        for old in local[:-1]:  # they are read where they were published
            _disk.remove(work / version_name(old))
        prune(work, {found.journal, *journals(work)[-1:]})

    def _contents(self, found: _versions.VersionFile) -> Contents:
        work, before = self.place.work, self._before
        same = before is not None and found.journal == self._journal
        journal = grown(
            self._store,
            journal_file(work, found.journal),
            found.size,
            before.journal if before is not None and same else [],
        )
        seals: dict[str, Piece] = {}
        for file in sorted((work / "bodies").glob("*.json")):
            known = None if before is None else before.seals.get(file.name)
            seals[file.name] = known or self._segment(file)
        first, tail = _tail(work)
        going_on = before is not None and before.tail_first == first
        pieces = grown(self._store, tail, tail.stat().st_size, before.tail if before is not None and going_on else [])
        return Contents(journal=journal, tail_first=first, tail=pieces, seals=seals)

    def _segment(self, seal: Path) -> Piece:
        data = seal.read_bytes()
        for name, (_, sha256) in msgspec.json.decode(data, type=Seal).files.items():
            self._store.put_file(object_name(sha256), seal.with_suffix("") / name)
        return put_bytes(self._store, data)

    def close(self) -> None:
        """Let another writer in."""
        self._lease.release()


def _local(work: Path) -> list[int]:
    try:
        return _versions.versions(work)
    except (CorpusError, FileNotFoundError):
        return []


def _clear(work: Path) -> None:
    """Forget what the work folder holds, but for the lock that the caller has."""
    for left in work.iterdir():
        if left.name != "lock":
            _disk.remove(left)


def _tail(work: Path) -> tuple[int, Path]:
    files = sorted((work / "bodies").glob(_TAIL))
    if not files:
        raise CorpusDamaged(work, "bodies/ has no tail")
    return int(files[-1].stem.removeprefix("tail-")), files[-1]
