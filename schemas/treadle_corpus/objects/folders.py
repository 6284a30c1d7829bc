"""A folder of files as immutable objects: releases, archives. What is fetched is what was published, or an error.

URL/folder.json   {"v": {"kind", "files": {name: [sha256, size]}}, "sha256": of the JSON of "v"}; put last, only where none is
URL/files/NAME    each file
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Final

import msgspec

from treadle_corpus import _disk
from treadle_corpus.errors import ObjectDamaged, TargetError
from treadle_corpus.objects.layout import Piece
from treadle_corpus.objects.store import ObjectStore

__all__ = ["fetch_folder", "publish_folder"]

_MARKER: Final = "folder.json"


class _Listed(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    files: dict[str, Piece]


class _Outer(msgspec.Struct):
    v: msgspec.Raw
    sha256: str


def publish_folder(folder: Path, url: str, *, kind: str) -> None:
    """Publish all files below a folder; `kind` says what it is, such as `release`. Publishing the same again does nothing.

    Raises TargetError where another folder is published there, or the URL or `folder` is none, StoreError.
    """
    store = ObjectStore(url)
    if not folder.is_dir():
        raise TargetError(f"{folder}: is no folder")
    files = {str(f.relative_to(folder)): _piece(f) for f in sorted(_disk.files_below(folder))}
    inner = msgspec.json.encode(_Listed(kind=kind, files=files))
    data = b'{"v":%b,"sha256":"%b"}\n' % (inner, hashlib.sha256(inner).hexdigest().encode())
    there = store.read(_MARKER)
    if there is None:
        for name in files:
            store.put_file(f"files/{name}", folder / name)
        if store.create(_MARKER, data):
            return
        there = store.read(_MARKER)
    if there != data:
        raise TargetError(
            f"target {store.url!r}: something else is published there; what is published never changes: name another prefix"
        )


def fetch_folder(url: str, folder: Path, *, kind: str) -> None:
    """Fetch what `publish_folder` published to a folder that is not there yet; it appears as a whole, compared and synced.

    Raises TargetError where nothing of that kind is published or `folder` is there, ObjectDamaged, StoreError, CorpusFull,
    CorpusUnwritable.
    """
    store = ObjectStore(url)
    if folder.exists():
        raise TargetError(f"{folder}: is there already")
    data = store.read(_MARKER)
    if data is None:
        raise TargetError(f"target {store.url!r}: no {kind} is published there")
    listed = _decoded(store, data)
    if listed.kind != kind:
        raise TargetError(f"target {store.url!r}: a {listed.kind} is published there, no {kind}")
    fresh = folder.with_name(f".{folder.name}.fetching")
    with _disk.writing(fresh):
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
    try:
        for name, piece in listed.files.items():
            file = fresh / name
            if not file.resolve().is_relative_to(fresh.resolve()):
                raise ObjectDamaged(store.at(_MARKER), f"names {name!r}, which lies outside of the folder")
            with _disk.writing(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                there = store.get_file(f"files/{name}", file)
            if not there:
                raise ObjectDamaged(store.at(f"files/{name}"), "the object is gone")
            if _piece(file) != piece:
                raise ObjectDamaged(store.at(f"files/{name}"), "is not what was put there")
            _disk.sync(file)
        _disk.place(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _decoded(store: ObjectStore, data: bytes) -> _Listed:
    try:
        outer = msgspec.json.decode(data, type=_Outer)
        if hashlib.sha256(outer.v).hexdigest() != outer.sha256:
            raise ObjectDamaged(store.at(_MARKER), "is not what was put there")
        return msgspec.json.decode(outer.v, type=_Listed)
    except msgspec.DecodeError as err:
        raise ObjectDamaged(store.at(_MARKER), f"cannot be read ({err})") from None


def _piece(file: Path) -> Piece:
    with file.open("rb") as opened:
        return Piece(hashlib.file_digest(opened, "sha256").hexdigest(), file.stat().st_size)
