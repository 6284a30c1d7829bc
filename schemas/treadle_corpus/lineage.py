"""Where rows come from, and in which versions they are or were: rows, versions and positions in the log, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

import msgspec
from treadle_schemas.canonical import loads
from treadle_schemas.errors import FieldError
from treadle_schemas.records import Provenance
from treadle_schemas.split import Side

from treadle_corpus import _versions
from treadle_corpus._bodies import Bodies
from treadle_corpus._moments import moments
from treadle_corpus._rows import Key, RowMeta, Status
from treadle_corpus.errors import CorpusDamaged

__all__ = ["RowOrigin", "RowTrace", "Sighting", "origin_of", "trace_rows", "trace_subject"]

_BLOCK: Final = 500
"""Bodies held in memory at once."""


class RowOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """One revision of a row, and where it comes from: offsets of its interaction, ids of its outcomes."""

    episode_id: str
    interaction_id: str
    split: Side
    reward: float | None
    provenance: Provenance


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """A revision of a row and the versions that hold it, ascending."""

    origin: RowOrigin
    versions: list[int]


class RowTrace(msgspec.Struct, frozen=True, kw_only=True):
    """One row in one corpus, from its first version to the newest."""

    episode_id: str
    interaction_id: str
    status: Status
    """Where it stands in the newest version: `member`, or why it is not in it."""
    sightings: list[Sighting]
    """By revision, ascending. None where the corpus knows the row and no version has it."""


def origin_of(path: Path, key: Key, meta: RowMeta) -> RowOrigin:
    """Where a row of the corpus at `path` comes from. No body is read. Raises CorpusDamaged."""
    try:
        rest: dict[str, Any] = loads(meta.rest)
        provenance = msgspec.convert(rest.get("provenance"), Provenance)
    except (FieldError, msgspec.ValidationError) as err:
        raise CorpusDamaged(path, f"the provenance of row {key[0]}/{key[1]} cannot be read ({err})") from err
    return RowOrigin(
        episode_id=key[0], interaction_id=key[1], split=meta.side, reward=meta.reward, provenance=provenance
    )


def trace_rows(path: Path, keys: Collection[Key]) -> list[RowTrace]:
    """What the versions at `path` hold and held of rows; rows that the corpus never saw are left out.

    Every journal is read once, however many versions there are. Raises CorpusMissing, CorpusOutdated, CorpusDamaged.
    """
    return _trace(path, keys, lambda _: True)


def trace_subject(path: Path, names: Collection[str]) -> list[RowTrace]:
    """The same of all rows whose interaction names one of these subjects. All bodies are read, those of old revisions too.

    Raises CorpusMissing, CorpusOutdated, CorpusDamaged.
    """
    numbers = _versions.versions(path)
    end = _versions.read_version(path, numbers[-1]).bodies if numbers else 0
    if numbers:
        _versions.bring(path, numbers[-1])
    bodies = Bodies(path)
    found: dict[int, Key] = {}
    for start in range(0, end, _BLOCK):
        block = range(start, min(end, start + _BLOCK))
        for number, bulk in zip(block, bodies.bulks(block), strict=True):
            key = _named(bulk, names)
            if key is not None:
                found[number] = key
    return _trace(path, set(found.values()), lambda meta: meta.bulk in found)


def _trace(path: Path, keys: Collection[Key], wanted: Callable[[RowMeta], bool]) -> list[RowTrace]:
    held: dict[Key, dict[int, Sighting]] = {}
    statuses: dict[Key, Status] = {}
    for made, state, _, _ in moments(path):
        assert made is not None, "no head was asked for"
        version = made.manifest.version
        statuses = {}
        for key in keys:
            meta = state.rows.get(key)
            if meta is None:
                continue
            statuses[key] = meta.status
            seen = held.setdefault(key, {})
            if meta.status == "member" and wanted(meta):
                sighting = seen.get(meta.revision)
                if sighting is None:
                    sighting = seen[meta.revision] = Sighting(origin=origin_of(path, key, meta), versions=[])
                sighting.versions.append(version)
    return [
        RowTrace(
            episode_id=key[0],
            interaction_id=key[1],
            status=statuses[key],
            sightings=[held[key][revision] for revision in sorted(held[key])],
        )
        for key in sorted(held)
    ]


class _Named(msgspec.Struct):
    subject: Any = None


class _Bulk(msgspec.Struct):
    episode_id: str
    interaction_id: str
    interaction: _Named


_BULK: Final = msgspec.json.Decoder(_Bulk)


def _named(bulk: bytes, names: Collection[str]) -> Key | None:
    """The row that a body is of, if it names one of these subjects. A body may also be a part, which is no row."""
    try:
        body = _BULK.decode(bulk)
    except msgspec.DecodeError:  # a part, or a row with escaped lone surrogates
        try:
            body = msgspec.convert(loads(bulk), _Bulk)
        except (FieldError, msgspec.ValidationError):
            return None
    subject = body.interaction.subject
    return (body.episode_id, body.interaction_id) if isinstance(subject, str) and subject in names else None
