"""What a version is in an object store.

    URL/corpus.json         marker of a published corpus: {"format": "treadle-corpus-objects", "format_version": 1}
    URL/objects/SHA256      immutable bytes under their own name: pieces of journals and tails, seals, files of segments
    URL/versions/vN.json    the local vN.json, and which objects it needs; put last, and only where none is: the commit point of vN
    URL/erasures/, made/    erasures, and the versions as these made them: see `published`
    URL/tags/NAME.json      {"version": N}
    URL/writer/E.json       who may publish since epoch E: see `lease`

A journal or a tail grows with every version, and objects do not. So its bytes are a list of pieces: a version adds one piece, and joins it
with the pieces before while these are no larger, as digits carry in a binary counter. Each byte is put at most some ten times,
and a file is at most some ten small pieces and one a megabyte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from treadle_corpus import _disk
from treadle_corpus._bodies import Seal
from treadle_corpus._versions import VersionFile, decode_version
from treadle_corpus.errors import ObjectDamaged
from treadle_corpus.objects.store import ObjectStore

__all__ = [
    "Contents",
    "Piece",
    "assemble",
    "decode_contents",
    "encode_version",
    "grown",
    "object_name",
    "place_bodies",
    "put_bytes",
    "read_piece",
]

JOIN_BYTES: Final = 1024 * 1024
"""Pieces are not joined beyond this."""


class Piece(NamedTuple):
    """Bytes of a file, in an object."""

    sha256: str
    size: int


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """The objects of a version."""

    journal: list[Piece]
    tail_first: int
    """Number of the first body of the tail."""
    tail: list[Piece]
    seals: dict[str, Piece]
    """Seals of segments by the name of their file; each names the files of its segment."""


class _Object(msgspec.Struct):
    v: msgspec.Raw
    objects: msgspec.Raw
    objects_sha256: str


def object_name(sha256: str) -> str:
    """The name of the object with these bytes."""
    return f"objects/{sha256}"


def encode_version(local: bytes, contents: Contents) -> bytes:
    """The object of a version: its local file with the objects added. Whoever reads local files reads this one too."""
    inner = msgspec.json.encode(contents)
    digest = hashlib.sha256(inner).hexdigest().encode()
    return b'%b,"objects":%b,"objects_sha256":"%b"}\n' % (local.rstrip().removesuffix(b"}"), inner, digest)


def decode_contents(url: str, version: int, data: bytes) -> tuple[VersionFile, Contents]:
    """Raises ObjectDamaged where it is not what was put."""
    try:
        outer = msgspec.json.decode(data, type=_Object)
        if hashlib.sha256(outer.objects).hexdigest() != outer.objects_sha256:
            raise ObjectDamaged(url, "is not what was put there")
        contents = msgspec.json.decode(outer.objects, type=Contents)
    except msgspec.DecodeError as err:
        raise ObjectDamaged(url, f"cannot be read ({err})") from None
    return decode_version(url, version, data), contents


def put_bytes(store: ObjectStore, data: bytes) -> Piece:
    """Put bytes under their own name. Raises StoreError."""
    piece = Piece(hashlib.sha256(data).hexdigest(), len(data))
    store.put(object_name(piece.sha256), data)
    return piece


def grown(store: ObjectStore, file: Path, size: int, before: Sequence[Piece]) -> list[Piece]:
    """The first `size` bytes of a file, which begins with the pieces `before`, as pieces; new ones are put. Raises StoreError."""
    pieces = list(before)
    begin = sum(piece.size for piece in pieces)
    if begin == size:
        return pieces
    while pieces and pieces[-1].size <= size - begin and pieces[-1].size + size - begin <= JOIN_BYTES:
        begin -= pieces.pop().size
    with file.open("rb") as opened:
        opened.seek(begin)
        pieces.append(put_bytes(store, opened.read(size - begin)))
    return pieces


def read_piece(store: ObjectStore, piece: Piece) -> bytes:
    """The bytes of a piece. Raises ObjectDamaged, StoreError."""
    name = object_name(piece.sha256)
    data = store.read(name)
    if data is None:
        raise ObjectDamaged(store.at(name), "the object is gone")
    if len(data) != piece.size:
        raise ObjectDamaged(store.at(name), f"has {len(data)} bytes, and {piece.size} were put")
    if hashlib.sha256(data).hexdigest() != piece.sha256:
        raise ObjectDamaged(store.at(name), "is not what was put there")
    return data


def assemble(store: ObjectStore, file: Path, pieces: Sequence[Piece]) -> None:
    """Make `file` begin with these pieces. What it has of them already is compared, not fetched again.

    A file that is replaced stays as it was for whoever has it open. Raises StoreError, CorpusFull, CorpusUnwritable.
    """
    have = _beginning(file, pieces)
    if have == len(pieces) and file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = sum(piece.size for piece in pieces[:have])
    old = file.read_bytes()[:kept] if kept else b""
    _disk.create(file, old + b"".join(read_piece(store, piece) for piece in pieces[have:]))


def _beginning(file: Path, pieces: Sequence[Piece]) -> int:
    """How many of the pieces a file begins with."""
    try:
        with file.open("rb") as opened:
            for n, piece in enumerate(pieces):
                data = opened.read(piece.size)
                if len(data) != piece.size or hashlib.sha256(data).hexdigest() != piece.sha256:
                    return n
    except FileNotFoundError:
        return 0
    return len(pieces)


def place_bodies(store: ObjectStore, folder: Path, contents: Contents) -> None:
    """The bodies of a version, in the folder `bodies` of a corpus; the seal of a segment comes after its files.

    Raises StoreError, CorpusFull, CorpusUnwritable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, piece in contents.seals.items():
        data = read_piece(store, piece) if _beginning(folder / name, [piece]) == 0 else (folder / name).read_bytes()
        seal = msgspec.json.decode(data, type=Seal)
        segment = folder / name.removesuffix(".json")
        for file, (size, sha256) in seal.files.items():
            assemble(store, segment / file, [Piece(sha256, size)])
        if not (folder / name).exists():
            _disk.create(folder / name, data)
    assemble(store, folder / f"tail-{contents.tail_first:012d}.log", contents.tail)
