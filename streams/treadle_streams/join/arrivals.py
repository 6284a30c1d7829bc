"""From a record of an input topic to an event the fold understands, or to the reason why it is a dead letter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec
from treadle_schemas import codec, topics
from treadle_schemas.calls import vitals
from treadle_schemas.canonical import loads
from treadle_schemas.errors import ContractError, FieldError, KeyErased, UnknownType
from treadle_schemas.events import (
    MAX_EVENT_BYTES,
    Outcome,
    read_episode_end,
    read_erasure,
    read_interaction,
    read_outcome,
    view,
)
from treadle_schemas.ids import check_id
from treadle_schemas.moments import to_micros
from treadle_schemas.partitioner import partition_of
from treadle_schemas.parts import Part, check_claims, names_parts, read_part
from treadle_schemas.records import Announcement, ImportMarker
from treadle_schemas.sealing import about, is_sealed, key_id_of, opened
from treadle_schemas.split import split_group

from treadle_streams.join.clock import MARKED, Input
from treadle_streams.join.grading import MAX_TEXT_VALUE_BYTES, Grading
from treadle_streams.join.sealed import open_event
from treadle_streams.join.state import Captured, Seen, episode_key, name_key, row_key

__all__ = [
    "MAX_REFERENCES",
    "MAX_TEXT_VALUE_BYTES",
    "AnnouncementEvent",
    "Arrival",
    "EpisodeEvent",
    "GoneEvent",
    "InteractionEvent",
    "MarkerEvent",
    "OutcomeEvent",
    "PartsEvent",
    "Refused",
    "RightsEvent",
    "RowEvent",
    "as_written",
    "understand",
]

RIGHTS: Final = ("train", "eval", "recall")
MAX_REFERENCES: Final = 100
"""Most references that one interaction may announce."""

Reason = Literal[
    "malformed",
    "unknown_type",
    "wrong_workspace",
    "wrong_partition",
    "bad_value",
    "too_large",
    "orphan",
    "row_expired",
    "row_full",
    "conflict",
    "part_missing",
    "undeclared",
    "episode_full",
]


class Arrival(NamedTuple):
    """One record of an input topic. `append_ms` is the broker's append time."""

    kind: Input
    partition: int
    offset: int
    append_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | str | None]]
    key_id: str = ""
    """Of a kept event: the key that sealed it, `value` being its text. A record that came has its bytes, sealed or not."""


class InteractionEvent(msgspec.Struct, frozen=True):
    """An interaction that is to be folded into its row."""

    arrival: Arrival
    key: bytes
    episode_id: str
    interaction_id: str
    captured: Captured
    import_id: str | None
    references: tuple[str, ...] = ()
    named: bytes = b""
    """The key of its id as a name, where its episode is the same id."""
    erased: bool = False
    """It is of a subject whose work up to then was erased: its episode is."""


class OutcomeEvent(msgspec.Struct, frozen=True):
    """An outcome or a retract that is to be folded into its row. `seen.outcome_id` is empty for a retract that names none.

    One that is keyed by a reference has no row of its own: its `key` is that of the name.
    """

    arrival: Arrival
    key: bytes
    episode_id: str
    interaction_id: str
    op: Literal["set", "retract"]
    seen: Seen
    import_id: str | None
    named: bytes = b""
    """The key of the name that it is keyed by; empty where its maker knew the episode."""


class RightsEvent(msgspec.Struct, frozen=True):
    """What may be done with a row, as somebody said it."""

    arrival: Arrival
    key: bytes
    episode_id: str
    interaction_id: str
    right: str
    observed_us: int
    value: Literal["allow", "deny"]
    import_id: str | None
    named: bytes = b""
    """As of outcomes."""


class AnnouncementEvent(msgspec.Struct, frozen=True):
    """A row that a name stands for. `key` is that of the id's own row, where the name is an interaction id."""

    arrival: Arrival
    named: bytes
    key: bytes
    announcement: Announcement


class EpisodeEvent(msgspec.Struct, frozen=True):
    """What is said of a whole episode: an outcome or a retract (`seen`), a right (`right`, `value`), that it ended, or is erased."""

    arrival: Arrival
    key: bytes
    episode_id: str
    op: Literal["set", "retract", "right", "end", "erase"]
    observed_us: int
    import_id: str | None
    seen: Seen | None = None
    right: str = ""
    value: str = ""


class PartsEvent(msgspec.Struct, frozen=True):
    """Parts of an episode: the messages of a link, a value, or an erasure."""

    arrival: Arrival
    episode_id: str
    parts: list[Part]
    import_id: str | None
    key_id: str = ""
    """The key that sealed them."""


class MarkerEvent(msgspec.Struct, frozen=True):
    """Begin or end of an import on this partition."""

    arrival: Arrival
    marker: ImportMarker


class GoneEvent(msgspec.Struct, frozen=True):
    """Something whose key was destroyed: it is erased."""

    arrival: Arrival


class Refused(msgspec.Struct, frozen=True):
    """A record that becomes a dead letter: the first reason found, and the detail that names field and value."""

    arrival: Arrival
    reason: Reason
    detail: str


RowEvent = InteractionEvent | OutcomeEvent | RightsEvent
Understood = RowEvent | EpisodeEvent | PartsEvent | AnnouncementEvent | MarkerEvent | GoneEvent | Refused


def understand(arrival: Arrival, grading: Grading) -> Understood:
    """Decode and check one record. Never raises for what the record says."""
    try:
        return _understand(arrival, grading)
    except UnknownType as err:
        return Refused(arrival, "unknown_type", str(err))
    except _BadValue as err:
        return Refused(arrival, "bad_value", str(err))
    except ContractError as err:
        return Refused(arrival, "malformed", str(err))


class _BadValue(ContractError):
    """The value does not fit its metric."""


def _understand(arrival: Arrival, grading: Grading) -> Understood:
    settings = grading.settings
    if arrival.value is not None and len(arrival.value) > MAX_EVENT_BYTES:
        detail = f"$: is {len(arrival.value)} bytes long; an event has at most {MAX_EVENT_BYTES}"
        return Refused(arrival, "too_large", detail)
    value, key_id = arrival.value, ""
    if value is not None and is_sealed(value):
        kind = codec.header_map(arrival.headers).get("ce_type", b"").decode(errors="replace")
        try:
            key_id = key_id_of(value)
            value = opened(value, grading.keys, about(settings.workspace, kind, arrival.key))
        except KeyErased:
            return _gone(arrival, kind, grading)
    event = codec.decode(value, arrival.headers)
    assert value is not None  # decode refuses null
    version = event.headers.get("ce_specversion", b"1.0")
    if version != b"1.0":
        raise FieldError("headers.ce_specversion", f"{version!r} is not 1.0")
    workspace = event.headers.get("ce_workspace")
    if workspace is None:
        raise FieldError("headers.ce_workspace", "is missing")
    if workspace != settings.workspace.encode():
        detail = f"headers.ce_workspace: {workspace.decode(errors='replace')!r}, but this is {settings.workspace!r}"
        return Refused(arrival, "wrong_workspace", detail)
    if event.import_id is not None:
        check_id(event.import_id, "headers.ce_importid")
    match event.type, arrival.kind:
        case codec.IMPORT_MARKER, kind if kind in MARKED:
            return _marker(arrival, event.data)
        case codec.INTERACTION, "interactions":
            return _interaction(arrival, value, event, grading, key_id)
        case codec.PART, "interactions":
            return _parts(arrival, event, grading, key_id)
        case codec.EPISODE_END, "interactions":
            return _episode_end(arrival, event, grading)
        case codec.ERASURE, "interactions":
            return _erasure(arrival, event, grading)
        case codec.OUTCOME, "outcomes" | "references":
            return _outcome(arrival, value, event, grading, key_id)
        case codec.REFERENCE, "references":
            return _announcement(arrival, event.data, grading)
    raise FieldError(
        "headers.ce_type", f"{event.type} does not belong on {topics.topic(settings.workspace, arrival.kind)}"
    )


def _marker(arrival: Arrival, data: dict[str, Any]) -> Understood:
    marker = view(data, ImportMarker)
    check_id(marker.import_id, "$.import_id")
    return MarkerEvent(arrival, marker)


def _misplaced(arrival: Arrival, expected: str, grading: Grading) -> Refused | None:
    key = expected.encode()
    if arrival.key != key:
        return Refused(arrival, "malformed", f"key: {arrival.key!r}, but this event is keyed by {expected!r}")
    partition = partition_of(key, grading.settings.partitions)
    if arrival.partition != partition:
        detail = f"partition: {arrival.partition}, but murmur2 puts {expected!r} into {partition}; set the producer's partitioner"
        return Refused(arrival, "wrong_partition", detail)
    return None


def _gone(arrival: Arrival, event_type: str, grading: Grading) -> Understood:
    """What is left of a record whose key was destroyed: of an interaction its ids, which the headers say too, and when it ended."""
    headers = codec.header_map(arrival.headers)
    if event_type != codec.INTERACTION or arrival.kind != "interactions" or not arrival.key:
        return GoneEvent(arrival)
    episode_id, interaction_id = (
        arrival.key.decode(errors="replace"),
        headers.get("ce_id", b"").decode(errors="replace"),
    )
    check_id(episode_id, "key")
    check_id(interaction_id, "headers.ce_id")
    wrong = _misplaced(arrival, episode_id, grading)
    if wrong is not None:
        return wrong
    ended_us = to_micros(headers.get("ce_time", b"").decode(errors="replace"), "headers.ce_time")
    left = Captured(
        b"", arrival.offset, arrival.append_ms, ended_us, "", None, "", "main", None, "train", "", started_us=ended_us
    )
    key = row_key(episode_id, interaction_id)
    return InteractionEvent(arrival, key, episode_id, interaction_id, left, None, erased=True)


def _parts(arrival: Arrival, event: codec.Event, grading: Grading, key_id: str) -> Understood:
    try:
        episode_id, parts = read_part(event.data)
    except FieldError as err:
        raise _BadValue(str(err)) from None
    wrong = _misplaced(arrival, episode_id, grading)
    return PartsEvent(arrival, episode_id, parts, event.import_id, key_id) if wrong is None else wrong


def _interaction(arrival: Arrival, value: bytes, event: codec.Event, grading: Grading, key_id: str) -> Understood:
    said = read_interaction(event.data)
    wrong = _misplaced(arrival, said.episode, grading)
    if wrong is not None:
        return wrong
    parts: list[str] = []
    if said.transcript is not None or said.claims is not None:
        check_claims(event.data)
        parts = names_parts(event.data)
    # without a task the messages decide, which may lie in parts: until those are there a hash stands in
    grouped = said.task_id is not None or (
        said.transcript is None and not any(pointer.startswith("/messages/") for pointer in said.claims or ())
    )
    group = split_group(said.task_id, said.messages) if grouped else parts[0]
    captured = Captured(
        body=value,
        offset=arrival.offset,
        append_ms=arrival.append_ms,
        ended_us=to_micros(said.ended_at, "$.ended_at"),
        ended_at=said.ended_at,
        task_id=said.task_id,
        agent=said.agent,
        slot=said.slot,
        release=said.release,
        side=grading.settings.split.side(group),
        group=group,
        import_id=event.import_id,
        parts=tuple(parts),
        messages=0 if said.transcript is None else said.transcript.count,
        denied=() if said.rights is None else tuple(n for n in RIGHTS if getattr(said.rights, n) == "deny"),
        grouped=grouped,
        step=said.step,
        started_us=to_micros(said.started_at, "$.started_at"),
        vitals=vitals(said),
        key_id=key_id,
    )
    key = row_key(said.episode, said.interaction_id)
    named = name_key("interaction", said.interaction_id) if said.episode == said.interaction_id else b""
    names = _references(said.references or ())
    gone = grading.covers_erased(said.subject, captured.started_us)
    return InteractionEvent(
        arrival, key, said.episode, said.interaction_id, captured, event.import_id, names, named, gone
    )


def _references(names: Sequence[str]) -> tuple[str, ...]:
    for n, name in enumerate(names):
        check_id(name, f"$.references[{n}]")
    if len(distinct := dict.fromkeys(names)) > MAX_REFERENCES:
        raise FieldError("$.references", f"has {len(distinct)} names; at most {MAX_REFERENCES}")
    return tuple(distinct)


def _announcement(arrival: Arrival, data: dict[str, Any], grading: Grading) -> Understood:
    said = view(data, Announcement)
    for field in ("name", "episode_id", "interaction_id"):
        check_id(getattr(said, field), f"$.{field}")
    wrong = _misplaced(arrival, said.name, grading)
    if wrong is not None:
        return wrong
    key = row_key(said.name, said.name) if said.kind == "interaction" else b""
    return AnnouncementEvent(arrival, name_key(said.kind, said.name), key, said)


def _outcome(arrival: Arrival, value: bytes, event: codec.Event, grading: Grading, key_id: str) -> Understood:
    said = read_outcome(event.data)
    if grading.settings.strict and said.kind == "metric" and said.op == "set" and said.name not in grading.declared:
        known = ", ".join(grading.declared)
        return Refused(
            arrival,
            "undeclared",
            f"$.name: metric {said.name!r} is not declared; the workspace is strict and has {known}",
        )
    if said.interaction_id is None and said.episode_id is not None:
        return _of_episode(arrival, value, said, said.episode_id, event.import_id, grading, key_id)
    written, episode_id, interaction_id, named = arrival, said.episode_id, said.interaction_id, b""
    if arrival.kind == "references":
        written = as_written(arrival)
        if written is arrival:
            raise FieldError("headers.origin", "does not say where a re-keyed outcome comes from: partition/offset/ms")
        episode_id, interaction_id = _target(event)
    elif episode_id is None:
        name = said.interaction_id or said.reference or ""
        named = name_key("reference" if said.interaction_id is None else "interaction", name)
        episode_id, interaction_id = name, name
    wrong = _misplaced(arrival, episode_id, grading)
    if wrong is not None:
        return wrong
    assert interaction_id is not None
    key = named if named and said.interaction_id is None else row_key(episode_id, interaction_id)
    if said.kind == "rights":
        right, observed_us = _right(said), to_micros(said.observed_at, "$.observed_at")
        return RightsEvent(
            arrival, key, episode_id, interaction_id, said.name, observed_us, right, event.import_id, named
        )
    seen = _seen(said, value, written, grading, key_id, partition=-1 if written is arrival else written.partition)
    return OutcomeEvent(arrival, key, episode_id, interaction_id, said.op, seen, event.import_id, named)


def _of_episode(
    arrival: Arrival,
    value: bytes,
    said: Outcome,
    episode_id: str,
    import_id: str | None,
    grading: Grading,
    key_id: str,
) -> Understood:
    wrong = _misplaced(arrival, episode_id, grading)
    if wrong is not None:
        return wrong
    key, observed_us = episode_key(episode_id), to_micros(said.observed_at, "$.observed_at")
    if said.kind == "rights":
        right = _right(said)
        return EpisodeEvent(arrival, key, episode_id, "right", observed_us, import_id, None, said.name, right)
    return EpisodeEvent(
        arrival, key, episode_id, said.op, observed_us, import_id, _seen(said, value, arrival, grading, key_id)
    )


def _episode_end(arrival: Arrival, event: codec.Event, grading: Grading) -> Understood:
    said = read_episode_end(event.data)
    wrong = _misplaced(arrival, said.episode_id, grading)
    if wrong is not None:
        return wrong
    ended_us, key = to_micros(said.ended_at, "$.ended_at"), episode_key(said.episode_id)
    return EpisodeEvent(arrival, key, said.episode_id, "end", ended_us, event.import_id)


def _erasure(arrival: Arrival, event: codec.Event, grading: Grading) -> Understood:
    said = read_erasure(event.data)
    wrong = _misplaced(arrival, said.episode_id, grading)
    if wrong is not None:
        return wrong
    erased_us, key = to_micros(said.erased_at, "$.erased_at"), episode_key(said.episode_id)
    return EpisodeEvent(arrival, key, said.episode_id, "erase", erased_us, event.import_id)


def _seen(said: Outcome, value: bytes, written: Arrival, grading: Grading, key_id: str, partition: int = -1) -> Seen:
    """An outcome or retract as it is kept. `written` is where its maker wrote it."""
    kept = None
    if said.op == "set" and said.kind == "metric":
        try:
            kept = grading.value(said.name, said.value)
        except FieldError as err:
            raise _BadValue(str(err)) from None
        if key_id and isinstance(kept, str) and said.name not in grading.declared:
            # values stand in grades, which are not sealed
            raise _BadValue(
                "$.value: a text that is sealed belongs into a comment; a label's metric is declared as a category"
            )
    return Seen(
        outcome_id=said.outcome_id or "",
        name=said.name,
        value=kept,
        observed_us=to_micros(said.observed_at, "$.observed_at"),
        append_ms=written.append_ms,
        offset=written.offset,
        raw=value.decode(),
        kind="metric" if said.kind == "rights" else said.kind,
        partition=partition,
        key_id=key_id,
    )


def as_written(arrival: Arrival) -> Arrival:
    """The record that a re-keyed one is a copy of; any other, and one that does not say so, as it is."""
    headers = codec.header_map(arrival.headers)
    if arrival.kind != "references" or headers.get("ce_type") != codec.OUTCOME.encode():
        return arrival
    try:
        partition, offset, append_ms = (int(number) for number in headers["origin"].split(b"/"))
        workspace = headers.get("ce_workspace", b"").decode()
        said = loads(open_event(arrival.value or b"", workspace))
        name = said.get("interaction_id") or said.get("reference")
        kept = [(key, value) for key, value in arrival.headers if key not in ("target", "origin")]
        return Arrival("outcomes", partition, offset, append_ms, name.encode(), arrival.value, kept)
    except (KeyError, ValueError, AttributeError, FieldError, KeyErased):
        return arrival


def _target(event: codec.Event) -> tuple[str, str]:
    raw = event.headers.get("target")
    if raw is None:
        raise FieldError("headers.target", "is missing: an outcome on this topic says which row it is about")
    said = loads(raw, "headers.target")
    if not (isinstance(said, list) and len(said) == 2 and all(isinstance(name, str) for name in said)):
        raise FieldError("headers.target", f"{raw[:80]!r} is no pair of episode_id and interaction_id")
    return check_id(said[0], "headers.target[0]"), check_id(said[1], "headers.target[1]")


def _right(said: Outcome) -> Literal["allow", "deny"]:
    if said.op != "set":
        raise _BadValue("$.op: rights are not retracted; say allow or deny anew")
    return "deny" if said.value == "deny" else "allow"  # read_outcome takes nothing else
