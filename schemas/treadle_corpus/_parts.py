"""The parts of long contexts in a corpus: bodies that members name, each stored once.

The body of a part is the JSON of the message, the value, or the reason of an erasure. Graded rows are stored as they came and put
together when they are read.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec
from treadle_schemas.canonical import canonical_json, dumps, loads
from treadle_schemas.errors import FieldError, PartErased, PartMissing
from treadle_schemas.parts import Part, names_parts, read_part, resolve
from treadle_schemas.records import GradedRow

from treadle_corpus.errors import CorpusDamaged

__all__ = [
    "PartKey",
    "PartMeta",
    "PartRecord",
    "Parts",
    "part_name",
    "read_parts",
    "whole_rows",
]

PartKey: TypeAlias = tuple[str, str]
"""(episode_id, hash)."""
_PREFIX: Final = b"part:"
"""No row has such a stored key: theirs are JSON lists."""
BLOCK_BYTES: Final = 32 * 1024 * 1024
"""Bytes of parts that are held at once while rows are put together."""
BLOCK_ROWS: Final = 500


@dataclass(frozen=True, slots=True)
class PartRecord:
    """Parts as they came from `.graded`."""

    episode_id: str
    parts: list[Part]


class PartMeta(msgspec.Struct, array_like=True, kw_only=True, frozen=True):
    """What is known of a part without its body."""

    kind: Literal["message", "value", "erased"]
    prev: str | None
    claims: dict[str, str] | None
    size: int
    crc: int

    @classmethod
    def of(cls, part: Part) -> tuple[PartMeta, bytes]:
        """Of a part, with the body to store."""
        body = dumps(part.body)
        return cls(kind=part.kind, prev=part.prev, claims=part.claims, size=len(body), crc=zlib.crc32(body)), body

    def needs(self) -> list[str]:
        """The parts that must be there to read this one."""
        return ([] if self.prev is None else [self.prev]) + list((self.claims or {}).values())


def read_parts(value: bytes) -> PartRecord:
    """Decode the value of a part record. Raises FieldError naming the field, also where a hash is not that of the content."""
    data = loads(value)
    if not isinstance(data, dict):
        raise FieldError("$", "is no object")
    return PartRecord(*read_part(data))


def part_name(key: PartKey) -> bytes:
    """The stored key of a part: `part:` and the JSON list of episode id and hash."""
    return _PREFIX + canonical_json(list(key))


class Parts:
    """All parts of a corpus by key, with their bodies in reach."""

    def __init__(
        self,
        path: Path,
        bodies: Callable[[Sequence[int]], list[bytes]],
        known: dict[PartKey, tuple[int, PartMeta]],
    ) -> None:
        """`known` are body and meta data of each, `bodies` reads bodies."""
        self._path = path
        self._bodies = bodies
        self._known = known

    def meta(self, key: PartKey) -> PartMeta | None:
        """What is known of a part."""
        found = self._known.get(key)
        return None if found is None else found[1]

    def news(self, records: Iterable[PartRecord]) -> dict[PartKey, tuple[PartMeta, bytes]]:
        """Of parts that came the ones that are not known yet, and those that are erased now; with their bodies."""
        found: dict[PartKey, tuple[PartMeta, bytes]] = {}
        for record in records:
            for part in record.parts:
                key = (record.episode_id, part.hash)
                known = found[key][0] if key in found else self.meta(key)
                if known is None or (part.kind == "erased" and known.kind != "erased"):
                    found[key] = PartMeta.of(part)
        return found

    def read(self, keys: Sequence[PartKey]) -> dict[PartKey, Part]:
        """Parts with their bodies. Raises CorpusDamaged."""
        found: dict[PartKey, Part] = {}
        for key, body in zip(keys, self._bodies([self._known[k][0] for k in keys]), strict=True):
            meta = self._known[key][1]
            if zlib.crc32(body) != meta.crc:
                raise CorpusDamaged(self._path, f"part {key[1]} of episode {key[0]} is not what was written")
            found[key] = Part(meta.kind, key[1], loads(body), meta.prev, meta.claims)
        return found

    def check(self) -> None:
        """Read every body. Raises CorpusDamaged."""
        keys = list(self._known)
        for start in range(0, len(keys), 1000):
            self.read(keys[start : start + 1000])


def whole_rows(
    rows: Iterable[GradedRow], parts: Parts, fresh: dict[PartKey, tuple[PartMeta, bytes]] | None = None
) -> Iterator[GradedRow | PartMissing | FieldError]:
    """Rows with their parts put back, in order; for a row that cannot be put together the error that says why.

    An erased row stays as it is. `fresh` are parts that are not stored yet. Bodies are read in blocks of BLOCK_BYTES or BLOCK_ROWS, and
    rows of one block share the messages that they have in common: nobody may change them.
    """
    new = fresh or {}

    def meta_of(key: PartKey) -> PartMeta | None:
        return new[key][0] if key in new else parts.meta(key)

    block: list[GradedRow] = []
    wanted: dict[PartKey, None] = {}
    size = 0
    for row in rows:
        block.append(row)
        for key in _needed(row, meta_of, wanted):
            wanted[key] = None
            meta = meta_of(key)
            size += 0 if meta is None else meta.size
        if size >= BLOCK_BYTES or len(block) >= BLOCK_ROWS:
            yield from _put_together(block, wanted, parts, new)
            block, wanted, size = [], {}, 0
    yield from _put_together(block, wanted, parts, new)


def _needed(
    row: GradedRow, meta_of: Callable[[PartKey], PartMeta | None], known: dict[PartKey, None]
) -> Iterator[PartKey]:
    if row.erased:
        return
    left = names_parts(row.interaction)
    seen: set[PartKey] = set()
    while left:
        key = (row.episode_id, left.pop())
        # what is wanted already brought along what it needs
        if key in known or key in seen:
            continue
        seen.add(key)
        meta = meta_of(key)
        if meta is not None:
            yield key
            left += meta.needs()


def _put_together(
    block: list[GradedRow],
    wanted: dict[PartKey, None],
    parts: Parts,
    new: dict[PartKey, tuple[PartMeta, bytes]],
) -> Iterator[GradedRow | PartMissing | FieldError]:
    found = parts.read([key for key in wanted if key not in new]) if wanted else {}
    for key in wanted:
        if key in new:
            meta, body = new[key]
            found[key] = Part(meta.kind, key[1], loads(body), meta.prev, meta.claims)
    for row in block:
        yield _one(row, found)


def _one(row: GradedRow, found: dict[PartKey, Part]) -> GradedRow | PartMissing | FieldError:
    if row.erased:
        return row
    try:
        interaction: dict[str, Any] = resolve(row.interaction, lambda name: found.get((row.episode_id, name)))
    except (PartMissing, FieldError) as err:
        return err
    except PartErased:
        # the join says so with a revision of its own that follows; until it does the row has no content
        return msgspec.structs.replace(row, erased=True)
    return row if interaction is row.interaction else msgspec.structs.replace(row, interaction=interaction)
