"""What the log of a workspace says of erased episodes: their rows, and the records that still hold text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from treadle.log import Admin, Record, open_record, read
from treadle.subjects import recorded_of
from treadle_schemas import codec
from treadle_schemas.canonical import loads
from treadle_schemas.errors import ContractError
from treadle_schemas.moments import to_micros
from treadle_schemas.sealing import is_sealed, key_id_of
from treadle_schemas.topics import group, topic

from treadle_streams import workspaces
from treadle_streams.archive.history import History
from treadle_streams.erasing._offsets import Places
from treadle_streams.join import decode
from treadle_streams.join.episode_state import decode_episode
from treadle_streams.join.erasing import is_empty
from treadle_streams.join.errors import StateError

__all__ = ["Finding", "Held", "find", "held"]

_SPOKEN: Final = ("comment", "preference", "demonstration")
"""Kinds of outcomes that have text."""


@dataclass(slots=True)
class Finding:
    """The episodes in which a subject occurs, as far as the log was read."""

    episodes: set[str] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    """Episodes of which the log says that they are erased."""
    newest_us: int = 0
    """When the latest interaction of the subject started."""
    ends: dict[str, dict[int, int]] = field(default_factory=dict)
    """By topic, how far it was read."""


def find(servers: str, workspace: str, subjects: Collection[str], known: Finding, keys: Collection[str] = ()) -> int:
    """Read on where `known` ends, up to the present ends; how many episodes of the subjects, or sealed with `keys`, came to it."""
    before, admin = len(known.episodes), Admin(servers)
    history = History(servers, workspaces.get(servers, workspace))
    partitions = admin.partitions()
    for kind in ("interactions", "graded"):
        name = topic(workspace, kind)
        start = known.ends.get(name)
        places = [(name, number) for number in range(partitions[name])]
        until = {number: offset for (_, number), offset in admin.stable_offsets(places).items()}
        # what was archived is looked through too, also where Kafka has it no more
        for record in history.read(kind, start=start, until=until, raw=True, gaps=True):
            found = recorded_of(record, subjects, keys)
            if found is not None:
                known.episodes.add(found.episode_id)
                known.newest_us = max(known.newest_us, _micros(found.started_at))
            elif codec.header_map(record.headers).get("ce_type") == codec.ERASURE.encode() and record.key:
                known.said.add(record.key.decode(errors="replace"))
        known.ends[name] = until
    return len(known.episodes) - before


@dataclass(slots=True)
class Held:
    """What the log holds of episodes."""

    rows: set[tuple[str, str]] = field(default_factory=set)
    text: Places = field(default_factory=Places)
    """Records of topics that hold text of them."""
    state: Places = field(default_factory=Places)
    """Records of the join's changelog that do. Kafka compacts them away in its own time."""
    foreign: int = 0
    """Interactions of other subjects in the same episodes."""


def held(
    servers: str, workspace: str, episodes: Collection[str], subjects: Collection[str], gone: Collection[str] = ()
) -> Held:
    """Read all topics that may hold text, up to their present ends. `gone` are keys that were, or will be, destroyed."""
    out = Held()
    if not episodes:
        return out
    keys = {episode.encode() for episode in episodes}
    for one in _records(servers, workspace, "interactions", keys, gone):
        if one.type == codec.INTERACTION:
            out.rows.add((one.episode, one.interaction))
            subject = one.data.get("subject")
            out.foreign += subject is not None and subject not in subjects
        if one.type in (codec.INTERACTION, codec.PART) and "erased" not in one.data:
            one.put(out.text)
    origins: set[tuple[int, int]] = set()
    for one in _records(servers, workspace, "references", keys, gone):
        if one.type == codec.OUTCOME:
            origin = one.headers.get("origin", b"").split(b"/")
            if len(origin) == 3:
                origins.add((int(origin[0]), int(origin[1])))
            if _has_text(one.data):
                one.put(out.text)
    ids = {interaction.encode() for _, interaction in out.rows}
    for one in _records(servers, workspace, "outcomes", keys | ids, gone, origins):
        if one.type == codec.OUTCOME and _has_text(one.data):
            one.put(out.text)
    for one in _records(servers, workspace, "graded", keys, gone):
        if one.type == codec.GRADED:
            out.rows.add((one.episode, one.interaction))
        if one.type in (codec.GRADED, codec.PART) and not one.data.get("erased"):
            one.put(out.text)
    for record in _read(servers, topic(workspace, "dead-letter")):
        if record.key in keys and record.value is not None and not _sealed_by(record.value, gone):
            out.text.add(record.topic, record.partition, record.offset)
    for record in _read(servers, f"{group(workspace, 'join')}-rows-changelog"):
        if record.key is not None and record.value is not None and _state_has_text(record.key, record.value, keys):
            out.state.add(record.topic, record.partition, record.offset)
    return out


@dataclass(frozen=True, slots=True)
class _One:
    """A record of one of the episodes."""

    record: Record
    type: str
    headers: Mapping[str, bytes]
    data: dict[str, Any]
    """Empty where its key was destroyed."""
    gone: bool

    @property
    def episode(self) -> str:
        return (self.record.key or b"").decode(errors="replace")

    @property
    def interaction(self) -> str:
        """Of an interaction or a graded row; the headers of a sealed one say it too."""
        if self.data:
            return str(self.data.get("interaction_id"))
        if self.type == codec.GRADED:
            return str(loads(self.headers.get("row_id", b"[null, null]"))[1])
        return self.headers.get("ce_id", b"").decode(errors="replace")

    def put(self, places: Places) -> None:
        """Count it to the places where text is, unless nobody can read it."""
        if not self.gone:
            places.add(self.record.topic, self.record.partition, self.record.offset)


def _records(
    servers: str,
    workspace: str,
    kind: str,
    keys: Collection[bytes],
    gone: Collection[str],
    places: Collection[tuple[int, int]] = (),
) -> Iterator[_One]:
    for record in _read(servers, topic(workspace, kind)):
        if record.key not in keys and (record.partition, record.offset) not in places:
            continue
        headers = codec.header_map(record.headers)
        event_type = headers.get("ce_type", b"").decode(errors="replace")
        if record.value is not None and _sealed_by(record.value, gone):
            yield _One(record, event_type, headers, {}, True)
            continue
        opened = open_record(record)
        if opened is None:  # of somebody who was erased before
            yield _One(record, event_type, headers, {}, True)
            continue
        try:
            yield _One(record, event_type, headers, codec.decode(opened.value, record.headers).data, False)
        except ContractError:
            continue  # the join made it a dead letter


def _read(servers: str, name: str) -> Iterator[Record]:
    count = Admin(servers).partitions().get(name)
    return iter(()) if count is None else read(servers, name, count, raw=True)


def _sealed_by(value: bytes, keys: Collection[str]) -> bool:
    return is_sealed(value) and key_id_of(value) in keys


def _has_text(outcome: dict[str, Any]) -> bool:
    return outcome.get("kind") in _SPOKEN or isinstance(outcome.get("value"), str)


def _state_has_text(key: bytes, value: bytes, episodes: Collection[bytes]) -> bool:
    """Does a record of the join's changelog hold text of one of the episodes?"""
    kind, length = key[:1], int.from_bytes(key[1:3])
    try:
        match kind:
            case b"r" if key[3 : 3 + length] in episodes:
                row = decode(value)
                said = any(_has_text(loads(seen.raw)) for seen in row.outcomes.values())
                return said or (row.captured is not None and not is_empty(row.captured))
            case b"c" if key[3 : 3 + length] in episodes:
                return not is_sealed(value[1:])
            case b"e" if key[1:] in episodes:
                return any(_has_text(loads(seen.raw)) for seen in decode_episode(value).outcomes.values())
    except StateError:
        return True
    return False


def _micros(text: str) -> int:
    try:
        return to_micros(text, "$.started_at")
    except ContractError:
        return 0
