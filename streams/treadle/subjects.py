"""Finding what was recorded of a subject, in the topics of a workspace."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from treadle_schemas.canonical import loads
from treadle_schemas.codec import GRADED, INTERACTION, header_map
from treadle_schemas.errors import ContractError
from treadle_schemas.sealing import is_sealed, key_id_of
from treadle_schemas.topics import topic

from treadle.errors import TopicMissing
from treadle.keys import ring_of
from treadle.log import Admin, Record, read
from treadle.policies import hash_key
from treadle.redaction import subject_hash
from treadle.settings import Settings

__all__ = ["Found", "keys_of", "names_of", "recorded_of", "rows_of"]


class Found(NamedTuple):
    """One interaction of a subject."""

    episode_id: str
    interaction_id: str
    started_at: str
    """As the interaction says it; empty where it says none."""


def keys_of(settings: Settings, workspace: str, subjects: Collection[str]) -> list[str]:
    """The ids of the keys that the subjects ever had, in a workspace that encrypts; destroyed ones too."""
    store = ring_of(workspace, settings).store
    return [key_id for subject in sorted(subjects) for key_id in store.of(subject)]


class _Said(msgspec.Struct):
    """What is looked at first: most interactions are of somebody else."""

    subject: Any = None


class _Row(msgspec.Struct):
    interaction: _Said


_SAID: Final[Mapping[bytes, msgspec.json.Decoder[_Said] | msgspec.json.Decoder[_Row]]] = {
    INTERACTION.encode(): msgspec.json.Decoder(_Said),
    GRADED.encode(): msgspec.json.Decoder(_Row),
}


def names_of(settings: Settings, subject: str) -> frozenset[str]:
    """How records may name the subject: as it is, and as a workspace that hashes subjects writes it. Raises SettingError."""
    key = hash_key(settings)
    return frozenset({subject} if key is None else {subject, subject_hash(key, subject)})


def rows_of(servers: str, workspace: str, subjects: Collection[str]) -> Iterator[Found]:
    """Every row of the subjects that a topic still holds: what is not settled yet, and what inputs no longer keep. Rows come repeatedly.

    Raises TopicMissing, LogError.
    """
    known = Admin(servers).partitions()
    if topic(workspace, "interactions") not in known:
        raise TopicMissing(f"workspace {workspace} does not exist; `treadle workspace list` shows those that do")
    for kind in ("interactions", "graded"):
        name = topic(workspace, kind)
        for record in read(servers, name, known[name]):
            found = recorded_of(record, subjects)
            if found is not None:
                yield found


def recorded_of(record: Record, subjects: Collection[str], keys: Collection[str] = ()) -> Found | None:
    """The interaction that a record of `.interactions` or `.graded` tells of, if it is one of the subjects'.

    A sealed record is theirs if one of `keys` sealed it; it needs not be opened for that.
    """
    if record.value is not None and is_sealed(record.value):
        headers = header_map(record.headers)
        if key_id_of(record.value) not in keys or headers.get("ce_type") != INTERACTION.encode() or not record.key:
            return None
        ids = (record.key, headers.get("ce_id", b""), headers.get("ce_time", b""))
        return Found(*(raw.decode(errors="replace") for raw in ids))
    kind = header_map(record.headers).get("ce_type", b"")
    decoder = _SAID.get(kind)
    if decoder is None or record.value is None:
        return None
    try:
        first = decoder.decode(record.value)
        said = first.interaction if isinstance(first, _Row) else first
        if not isinstance(said.subject, str) or said.subject not in subjects:
            return None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # escaped lone surrogates, which JSON allows
    try:
        value = loads(record.value)
    except ContractError:
        return None  # a dead letter: it is in no row
    interaction = value.get("interaction") if kind == GRADED.encode() and isinstance(value, dict) else value
    if not isinstance(interaction, dict) or interaction.get("subject") not in subjects:
        return None
    own = interaction.get("interaction_id")
    return Found(str(interaction.get("episode_id") or own), str(own), str(interaction.get("started_at") or ""))
