"""Records of erasures in an object store, the next generation of a corpus there, and the end of the one before.

An erasure ends a generation in this order. Killed before 4, nothing has happened; after it, the next writer goes on with 5:

1. objects of the new versions
2. the record of the erasure, then the new versions, in a folder that nobody looks at
3. this process still has the newest epoch
4. the seal, where none is: from here on the new versions are those that readers see
5. whatever no new version needs is deleted: objects, the versions of before, what killed erasures left. The mark that it is done comes last

Whoever deletes looks whether it still has the newest epoch before each object: one that slept meanwhile deletes nothing of its successors'.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from treadle_corpus import _disk
from treadle_corpus._bodies import Seal
from treadle_corpus._tombstones import Erasure, erasures, write_erasure
from treadle_corpus.errors import CorpusLocked, ObjectDamaged
from treadle_corpus.objects.layout import read_piece
from treadle_corpus.objects.lease import WriterLease
from treadle_corpus.objects.published import (
    SMALL_BYTES,
    TOMBSTONE,
    Generation,
    generation_of,
    published_version,
    published_versions,
)
from treadle_corpus.objects.store import ObjectStore

__all__ = [
    "Recorded",
    "finished",
    "known_here",
    "needed_objects",
    "place_records",
    "put_generation",
    "records_after",
    "seal",
    "share_salt",
]

_SALT: Final = "erasures/salt"
_ID_BYTES: Final = 8


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What the store keeps of an erasure."""

    record: Erasure
    remade: bool
    """Were the versions made again? False: they are what they were, and only kept from ever taking in the episodes."""
    bytes: int = 0
    """Of the objects that it put."""


def put_generation(
    store: ObjectStore, before: Generation, versions: Mapping[int, bytes], recorded: Recorded
) -> Generation:
    """2: stage the generation after `before`. Raises StoreError."""
    made = before.after(f"{recorded.record.number}-{secrets.token_hex(_ID_BYTES)}")
    store.put(_record_name(made.erasures[-1]), msgspec.json.encode(recorded))
    for number, data in versions.items():
        store.put(made.version(number), data)
    return made


def seal(store: ObjectStore, lease: WriterLease, before: Generation, newest: int, made: Generation) -> None:
    """3 and 4: from here on `made` is the present generation. `newest` is the last version of `before`.

    Raises CorpusLocked where another one came first; then nothing has happened. Raises StoreError.
    """
    lease.check()  # 3
    name = before.version(newest + 1)
    if not store.create(name, made.seal) and store.read(name) != made.seal:  # 4
        raise CorpusLocked(store.url, f"another process, which went on from v{newest} meanwhile")


def finished(store: ObjectStore, lease: WriterLease) -> Generation:
    """5, where it is not done: the present generation, and nothing is left of those before it.

    Raises CorpusLocked where another writer took over, ObjectDamaged, StoreError.
    """
    held = generation_of(store)
    if held.done:
        return held
    needed = needed_objects(store, held)
    left = [name for name in store.names("objects") if name.removeprefix("objects/") not in needed]
    left += [name for name in store.names("made") if not name.startswith(f"{held.folder}/")]
    left += list(store.names("versions"))
    kept = {f"erasures/{name}.{kind}" for name in held.erasures for kind in ("json", "done")} | {_SALT}
    left += [name for name in store.names("erasures") if name not in kept]
    seals = set(_seals(store))
    lease.check()  # so all that was listed was there before anybody could follow this one
    for name in left:
        if name not in seals:
            lease.check()
            store.delete(name)
    lease.check()
    store.put(f"erasures/{held.erasures[-1]}.done", b"")
    return Generation(held.erasures)


def _seals(store: ObjectStore) -> Iterator[str]:
    """The seals of all generations before. They stay."""
    for folder in ("versions", "made"):
        for name, size in store.sizes(folder).items():
            if size <= SMALL_BYTES and size != len(TOMBSTONE):
                yield name


def needed_objects(store: ObjectStore, generation: Generation) -> set[str]:
    """SHA-256 of the objects that the versions of a generation need. Raises ObjectDamaged, StoreError."""
    needed: set[str] = set()
    known: dict[str, set[str]] = {}
    for version in published_versions(store, generation):
        _, _, contents = published_version(store, version, generation)
        needed |= {piece.sha256 for piece in (*contents.journal, *contents.tail)}
        for piece in contents.seals.values():
            if piece.sha256 not in known:
                found = msgspec.json.decode(read_piece(store, piece), type=Seal)
                known[piece.sha256] = {sha256 for _, sha256 in found.files.values()}
    return needed | known.keys() | {sha256 for files in known.values() for sha256 in files}


# --- what machines keep of the records ----------------------------------------------------------------------------------------


def known_here(folder: Path) -> int:
    """The number of the newest erasure that a folder of this machine has the record of."""
    return max((one.number for one in erasures(folder)), default=0)


def records_after(store: ObjectStore, generation: Generation, number: int) -> list[Recorded]:
    """The records of the erasures after one. Raises ObjectDamaged, StoreError."""
    return [_read_record(store, name) for name in generation.erasures[number:]]


def place_records(store: ObjectStore, folder: Path, records: list[Recorded]) -> None:
    """Write records, ascending, where the corpus in `folder` looks for them.

    Raises ObjectDamaged, StoreError, CorpusFull, CorpusUnwritable.
    """
    if records:
        share_salt(store, folder)
    for one in records:
        write_erasure(folder, one.record)


def share_salt(store: ObjectStore, folder: Path) -> None:
    """All machines hash with the salt that the store has; it is made where there is none. Raises StoreError, CorpusUnwritable."""
    salt = store.read(_SALT)
    if salt is None:
        store.create(_SALT, secrets.token_hex(32).encode())
        salt = store.read(_SALT)
    if salt is None:
        raise ObjectDamaged(store.at(_SALT), "the object is gone")
    file = folder / "erasures" / "salt"
    if not file.exists() or file.read_bytes() != salt:
        with _disk.writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        _disk.create(file, salt)


def _read_record(store: ObjectStore, erasure: str) -> Recorded:
    name = _record_name(erasure)
    data = store.read(name)
    if data is None:
        raise ObjectDamaged(store.at(name), "the object is gone")
    try:
        return msgspec.json.decode(data, type=Recorded)
    except msgspec.DecodeError as err:
        raise ObjectDamaged(store.at(name), f"cannot be read ({err})") from None


def _record_name(erasure: str) -> str:
    return f"erasures/{erasure}.json"
