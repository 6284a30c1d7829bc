"""Where on Kafka revisions of rows and their outcomes lie. Topics are read from their beginning: a row keeps ids, not offsets, of these."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
from treadle.log import Admin, read
from treadle_corpus import decode_key
from treadle_schemas.codec import GRADED, OUTCOME, header_map
from treadle_schemas.errors import ContractError
from treadle_schemas.topics import topic

__all__ = ["Place", "Places", "find_offsets"]

Key: TypeAlias = tuple[str, str]


class Place(NamedTuple):
    """A record."""

    topic: str
    partition: int
    offset: int


class Places(NamedTuple):
    """What was found. Records that the log has no more are in none."""

    graded: dict[tuple[str, str, int], Place]
    """Of a revision: episode, interaction, number."""
    outcomes: dict[str, list[Place]]
    """By outcome id; one that was sent again is there more than once."""


class _Graded(msgspec.Struct):
    class _Provenance(msgspec.Struct):
        revision: int

    provenance: _Provenance


class _Outcome(msgspec.Struct):
    outcome_id: Any = None


_GRADED: Final = msgspec.json.Decoder(_Graded)
_OUTCOME: Final = msgspec.json.Decoder(_Outcome)


def find_offsets(
    servers: str, workspace: str, revisions: Mapping[Key, Collection[int]], outcome_ids: Collection[str]
) -> Places:
    """The records of `.graded` that are these revisions, and those of `.outcomes` with these ids. Raises LogError."""
    counts = Admin(servers).partitions()
    graded: dict[tuple[str, str, int], Place] = {}
    outcomes: dict[str, list[Place]] = defaultdict(list)
    name = topic(workspace, "graded")
    for record in read(servers, name, counts.get(name, 0)) if revisions else ():
        headers = header_map(record.headers)
        if headers.get("ce_type") != GRADED.encode() or record.value is None:
            continue
        try:
            key = decode_key(headers.get("row_id", b""))
            revision = _GRADED.decode(record.value).provenance.revision if key in revisions else 0
        except (ContractError, msgspec.DecodeError, ValueError, TypeError):
            continue  # no corpus took it
        if revision in revisions.get(key, ()):
            graded[*key, revision] = Place(record.topic, record.partition, record.offset)
    name = topic(workspace, "outcomes")
    for record in read(servers, name, counts.get(name, 0)) if outcome_ids else ():
        if header_map(record.headers).get("ce_type") != OUTCOME.encode() or record.value is None:
            continue
        try:
            found = _OUTCOME.decode(record.value).outcome_id
        except msgspec.DecodeError:
            continue  # a dead letter
        if isinstance(found, str) and found in outcome_ids:
            outcomes[found].append(Place(record.topic, record.partition, record.offset))
    return Places(graded, dict(outcomes))
