"""Putting what a version of a local corpus is made of, beyond what the version before has put."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from treadle_corpus._bodies import Seal
from treadle_corpus._frames import frames
from treadle_corpus._journal import journal_file
from treadle_corpus._versions import VersionFile
from treadle_corpus.errors import CorpusDamaged
from treadle_corpus.objects.layout import Contents, Piece, grown, object_name, put_bytes
from treadle_corpus.objects.store import ObjectStore

__all__ = ["Tail", "put_contents", "seals_below", "tail_of"]

_TAIL: Final = "tail-*.log"


class Tail(NamedTuple):
    """The tail of a corpus."""

    first: int
    """Number of its first body."""
    file: Path

    def ends(self) -> list[int]:
        """Where in the file each body ends."""
        return [end for _, end in frames(self.file.read_bytes())]


def tail_of(folder: Path) -> Tail:
    """The newest tail of the corpus in a folder. Raises CorpusDamaged."""
    files = sorted((folder / "bodies").glob(_TAIL))
    if not files:
        raise CorpusDamaged(folder, "bodies/ has no tail")
    return Tail(int(files[-1].stem.removeprefix("tail-")), files[-1])


def seals_below(folder: Path, bodies: int) -> list[Path]:
    """The seals of the segments that have any of the first `bodies` bodies, ascending."""
    return [file for file in sorted((folder / "bodies").glob("*.json")) if int(file.stem) < bodies]


def put_contents(
    store: ObjectStore,
    folder: Path,
    found: VersionFile,
    before: tuple[int, Contents] | None,
    *,
    seals: Sequence[Path],
    tail: Tail,
    tail_bytes: int,
) -> Contents:
    """Put what the version `found` of the corpus in `folder` needs. `before` is the version before it: its journal, and what that put.

    `seals` are those of its segments, and its other bodies are the first `tail_bytes` of the tail. Raises StoreError.
    """
    known = None if before is None else before[1]
    pieces = known.journal if before is not None and known is not None and before[0] == found.journal else []
    journal = grown(store, journal_file(folder, found.journal), found.size, pieces)
    put: dict[str, Piece] = {}
    for file in seals:
        there = None if known is None else known.seals.get(file.name)
        put[file.name] = there or _put_segment(store, file)
    pieces = known.tail if known is not None and known.tail_first == tail.first else []
    return Contents(journal=journal, tail_first=tail.first, tail=grown(store, tail.file, tail_bytes, pieces), seals=put)


def _put_segment(store: ObjectStore, seal: Path) -> Piece:
    data = seal.read_bytes()
    for name, (_, sha256) in msgspec.json.decode(data, type=Seal).files.items():
        store.put_file(object_name(sha256), seal.with_suffix("") / name)
    return put_bytes(store, data)
