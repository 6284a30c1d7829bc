"""From a record of an input topic to an event the fold understands, or to the reason why it is a dead letter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from treadle_schemas import codec, topics
from treadle_schemas.canonical import dumps
from treadle_schemas.errors import ContractError, FieldError, UnknownType
from treadle_schemas.events import MAX_EVENT_BYTES, Outcome, OutcomeValue, read_interaction, read_outcome, view
from treadle_schemas.ids import check_id
from treadle_schemas.moments import to_micros
from treadle_schemas.partitioner import partition_of
from treadle_schemas.parts import Part, check_claims, names_parts, read_part
from treadle_schemas.records import ImportMarker
from treadle_schemas.split import split_group

from treadle_streams.join.clock import MARKED, Input
from treadle_streams.join.grading import Grading
from treadle_streams.join.state import Captured, Seen, row_key

__all__ = [
    "MAX_TEXT_VALUE_BYTES",
    "Arrival",
    "InteractionEvent",
    "MarkerEvent",
    "OutcomeEvent",
    "PartsEvent",
    "Refused",
    "RightsEvent",
    "RowEvent",
    "understand",
]

RIGHTS: Final = ("train", "eval", "recall")
MAX_TEXT_VALUE_BYTES: Final = 4_096
"""Longest text that an outcome may have as its value: a category or a label, not a document."""

Reason = Literal[
    "malformed",
    "unknown_type",
    "wrong_workspace",
    "wrong_partition",
    "bad_value",
    "too_large",
    "not_yet_joined",
    "row_full",
    "conflict",
    "part_missing",
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


@dataclass(frozen=True, slots=True)
class InteractionEvent:
    """An interaction that is to be folded into its row."""

    arrival: Arrival
    key: bytes
    episode_id: str
    interaction_id: str
    captured: Captured
    import_id: str | None


@dataclass(frozen=True, slots=True)
class OutcomeEvent:
    """An outcome or a retract that is to be folded into its row. `seen.outcome_id` is empty for a retract that names none."""

    arrival: Arrival
    key: bytes
    episode_id: str
    interaction_id: str
    op: Literal["set", "retract"]
    seen: Seen
    import_id: str | None


@dataclass(frozen=True, slots=True)
class RightsEvent:
    """What may be done with a row, as somebody said it."""

    arrival: Arrival
    key: bytes
    episode_id: str
    interaction_id: str
    right: str
    observed_us: int
    value: Literal["allow", "deny"]
    import_id: str | None


@dataclass(frozen=True, slots=True)
class PartsEvent:
    """Parts of an episode: the messages of a link, a value, or an erasure."""

    arrival: Arrival
    episode_id: str
    parts: list[Part]
    import_id: str | None


@dataclass(frozen=True, slots=True)
class MarkerEvent:
    """Begin or end of an import on this partition."""

    arrival: Arrival
    marker: ImportMarker


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that becomes a dead letter: the first reason found, and the detail that names field and value."""

    arrival: Arrival
    reason: Reason
    detail: str


RowEvent = InteractionEvent | OutcomeEvent | RightsEvent
Understood = RowEvent | PartsEvent | MarkerEvent | Refused


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
    if arrival.kind == "references":
        return Refused(arrival, "not_yet_joined", "references are not joined by this version")
    if arrival.value is not None and len(arrival.value) > MAX_EVENT_BYTES:
        detail = f"$: is {len(arrival.value)} bytes long; an event has at most {MAX_EVENT_BYTES}"
        return Refused(arrival, "too_large", detail)
    event = codec.decode(arrival.value, arrival.headers)
    value = arrival.value
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
    try:
        value.decode()
    except UnicodeDecodeError as err:
        raise FieldError("$", f"is not UTF-8: {err.reason} at byte {err.start}") from None
    dumps(event.data)  # refuses what canonical JSON cannot carry: too deep, infinite
    match event.type, arrival.kind:
        case codec.IMPORT_MARKER, kind if kind in MARKED:
            return _marker(arrival, event.data)
        case codec.INTERACTION, "interactions":
            return _interaction(arrival, value, event, grading)
        case codec.PART, "interactions":
            return _parts(arrival, event, grading)
        case codec.OUTCOME, "outcomes":
            return _outcome(arrival, value, event, grading)
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


def _parts(arrival: Arrival, event: codec.Event, grading: Grading) -> Understood:
    try:
        episode_id, parts = read_part(event.data)
    except FieldError as err:
        raise _BadValue(str(err)) from None
    wrong = _misplaced(arrival, episode_id, grading)
    return PartsEvent(arrival, episode_id, parts, event.import_id) if wrong is None else wrong


def _interaction(arrival: Arrival, value: bytes, event: codec.Event, grading: Grading) -> Understood:
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
    )
    key = row_key(said.episode, said.interaction_id)
    return InteractionEvent(arrival, key, said.episode, said.interaction_id, captured, event.import_id)


def _outcome(arrival: Arrival, value: bytes, event: codec.Event, grading: Grading) -> Understood:
    said = read_outcome(event.data)
    if said.kind not in ("metric", "rights"):
        return Refused(arrival, "not_yet_joined", f"$.kind: {said.kind} outcomes are not joined by this version")
    if said.interaction_id is None:
        target = "whole episodes" if said.episode_id is not None else "references"
        return Refused(arrival, "not_yet_joined", f"outcomes of {target} are not joined by this version")
    wrong = _misplaced(arrival, said.key, grading)
    if wrong is not None:
        return wrong
    episode_id = said.interaction_id if said.episode_id is None else said.episode_id
    key = row_key(episode_id, said.interaction_id)
    if said.kind == "rights":
        right, observed_us = _right(said), to_micros(said.observed_at, "$.observed_at")
        return RightsEvent(
            arrival, key, episode_id, said.interaction_id, said.name, observed_us, right, event.import_id
        )
    seen = Seen(
        outcome_id=said.outcome_id or "",
        name=said.name,
        value=None if said.op == "retract" else _value(said.name, said.value, grading),
        observed_us=to_micros(said.observed_at, "$.observed_at"),
        append_ms=arrival.append_ms,
        offset=arrival.offset,
        raw=value.decode(),
    )
    return OutcomeEvent(arrival, key, episode_id, said.interaction_id, said.op, seen, event.import_id)


def _right(said: Outcome) -> Literal["allow", "deny"]:
    if said.op != "set":
        raise _BadValue("$.op: rights are not retracted; say allow or deny anew")
    return "deny" if said.value == "deny" else "allow"  # read_outcome takes nothing else


def _value(name: str, value: OutcomeValue, grading: Grading) -> OutcomeValue:
    metric = grading.declared.get(name)
    if metric is not None:
        try:
            value = metric.check(value)
        except FieldError as err:
            raise _BadValue(str(err)) from None
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _BadValue("$.value: an undeclared metric keeps integers of 64 bits; declare it as a float")
    if isinstance(value, str) and len(value.encode(errors="surrogatepass")) > MAX_TEXT_VALUE_BYTES:
        raise _BadValue(f"$.value: is a text of more than {MAX_TEXT_VALUE_BYTES} bytes")
    return value + 0.0 if isinstance(value, float) else value  # -0.0 is 0.0, as in canonical JSON
