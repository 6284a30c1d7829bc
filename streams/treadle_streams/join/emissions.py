"""What the join writes: graded rows, progress and dead letters, as keys, values and the headers that are their own.

The shell puts the CloudEvents envelope around them and decides nothing. A graded row is built around the interaction's verbatim bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
import orjson
from treadle_schemas import codec, topics
from treadle_schemas.canonical import canonical_json, loads
from treadle_schemas.records import Grade, Progress, Vitals
from treadle_schemas.sealing import is_sealed

from treadle_streams.join.arrivals import Refused
from treadle_streams.join.sealed import seal_event
from treadle_streams.join.state import Captured, RowState, Seen, json_bytes, sealed_by

__all__ = [
    "Emission",
    "dead_letter",
    "graded",
    "graded_hash",
    "graded_hash_of",
    "graded_tail",
    "progress",
    "progress_hash",
    "sealed",
]

MAX_DEAD_LETTER_BYTES: Final = 15 * 1024 * 1024
"""A record of 16 MiB with our headers around it would not fit the topic: its head is kept, and the offset says where the rest lies."""

Stream = Literal[
    "graded", "part", "progress", "dead-letter", "announcement", "rekeyed", "regraded", "regraded-progress"
]
"""`part` records and `regraded` go to the topic `.graded` too, announcements and re-keyed outcomes to `.references`."""


class Emission(msgspec.Struct, frozen=True):
    """One record to write. `headers` come on top of the CloudEvents envelope."""

    stream: Stream
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] = msgspec.field(default_factory=list)
    partition: int | None = None
    """None: the same as its source's."""
    key_id: str = ""
    """The key that seals its value; empty: none does."""


def graded_hash(captured: Captured, grade: Grade, tail: bytes = b"") -> str:
    """Fingerprint of a graded row's content: interaction, grade, side of the split, and the `tail` (rights, erasure, feedback)."""
    # without task the group is by the interaction alone while it is alone; another step may decide it later
    group = captured.group if captured.task_id is None else ""
    return _fingerprint(_json_of(grade), captured.side, tail, group, captured.body)


def graded_hash_of(value: bytes) -> str:
    """The same fingerprint from a record that `graded` made. Raises msgspec.DecodeError or ValueError for other bytes."""
    row = _WRITTEN.decode(value)
    # the interaction is verbatim: with white space around it, and anything in it
    start = len(_head(row.episode_id, row.interaction_id))
    end = value.index(
        b',"grade":' + bytes(row.grade), value.index(bytes(row.interaction), start) + len(row.interaction)
    )
    body = value[start:end]
    provenance = b',"provenance":' + bytes(row.provenance)
    tail = value[value.index(provenance, end) + len(provenance) : -1]
    group = row.split_group if loads(body).get("task_id") is None else ""
    return _fingerprint(bytes(row.grade), row.split, tail, group, body)


class _Written(msgspec.Struct):
    """A graded row whose parts stay as they were written."""

    episode_id: str
    interaction_id: str
    interaction: msgspec.Raw
    grade: msgspec.Raw
    split: str
    split_group: str
    provenance: msgspec.Raw


_WRITTEN: Final = msgspec.json.Decoder(_Written)
_ENCODER: Final = msgspec.json.Encoder()


def _head(episode_id: str, interaction_id: str) -> bytes:
    ids = json_bytes(episode_id), json_bytes(interaction_id)
    return b'{"episode_id":%b,"interaction_id":%b,"interaction":' % ids


def _fingerprint(grade: bytes, side: str, tail: bytes, group: str, body: bytes) -> str:
    digest = hashlib.sha256(grade)
    digest.update(side.encode() + b"\0" + tail)
    digest.update(group.encode())
    digest.update(body)
    return digest.hexdigest()[:32]


def progress_hash(row: RowState, captured: Captured, grade: Grade, *, erased: bool = False) -> str:
    """Fingerprint of what `.progress` says of a row, its revision aside."""
    return hashlib.sha256(_progress_value(row, captured, grade, 0, erased)).hexdigest()[:32]


def graded_tail(rights: Mapping[str, str], erased: bool, outcomes: Sequence[Seen] = ()) -> bytes:
    """The fields of a graded row that only few rows have, as JSON behind its other fields."""
    said = b',"rights":' + json_bytes(dict(sorted(rights.items()))) if rights else b""
    if erased:
        said += b',"erased":true'
    feedback = [_feedback(seen) for seen in outcomes if seen.kind != "metric"]
    return said + b',"feedback":' + json_bytes(feedback) if feedback else said


def _feedback(seen: Seen) -> dict[str, Any]:
    """What was said, in the fields of treadle_schemas.records.Feedback."""
    event = loads(seen.raw)
    named = ("kind", "name", "outcome_id", "observed_at", "value", "over", "messages", "source")
    return {field: event[field] for field in named if event.get(field) is not None}


def graded(
    row: RowState,
    captured: Captured,
    grade: Grade,
    partition: int,
    graded_at: str,
    outcomes: Sequence[Seen],
    tail: bytes = b"",
) -> Emission:
    """The row's present revision for `.graded`; the interaction's bytes are spliced in as they came, the `tail` of `graded_tail` behind.

    `outcomes` are those that count for it.
    """
    provenance = {
        "revision": row.revision,
        "graded_at": graded_at,
        "append_ms": row.append_ms,
        "interaction_offset": captured.offset,
        "partition": partition,
        "outcome_ids": [o.outcome_id for o in outcomes],
        "last_outcome_append_ms": max((o.append_ms for o in outcomes), default=None),
        "import_id": captured.import_id,
    }
    value = b"".join(
        (
            _head(row.episode_id, row.interaction_id),
            captured.body,
            b',"grade":',
            _json_of(grade),
            b',"split":',
            json_bytes(captured.side),
            b',"split_group":',
            json_bytes(captured.group),
            b',"provenance":',
            json_bytes(provenance),
            tail,
            b"}",
        )
    )
    return Emission("graded", row.episode_id.encode(), value, _row_headers(row), key_id=sealed_by(row))


def progress(row: RowState, captured: Captured, grade: Grade, *, erased: bool = False) -> Emission:
    """The change of a row's grade for `.progress`."""
    value = _progress_value(row, captured, grade, row.revision, erased)
    return Emission("progress", row.episode_id.encode(), value, _row_headers(row))


def dead_letter(refused: Refused, workspace: str) -> Emission:
    """The record as it came, with reason, detail and where it came from in headers of our own."""
    arrival = refused.arrival
    value, detail = arrival.value, refused.detail
    if arrival.key_id or is_sealed(value):  # a detail may quote what it is about
        detail = f"{detail.partition(':')[0]}: what it is about is sealed"
    headers = [
        ("reason", refused.reason.encode()),
        ("detail", detail.encode(errors="replace")[:2_000]),
        ("topic", topics.topic(workspace, arrival.kind).encode()),
        ("partition", b"%d" % arrival.partition),
        ("offset", b"%d" % arrival.offset),
        ("timestamp", b"%d" % arrival.append_ms),
    ]
    if value is not None and len(value) > MAX_DEAD_LETTER_BYTES:
        headers.append(("truncated_from", b"%d" % len(value)))
        value = value[:MAX_DEAD_LETTER_BYTES]
    room = 256 * 1024
    for name, content in arrival.headers:
        raw = b"" if content is None else content.encode(errors="replace") if isinstance(content, str) else content
        room -= len(name) + len(raw)
        if room < 0:
            headers.append(("original_headers_cut", b"1"))
            break
        headers.append((f"original.{name}", raw))
    return Emission("dead-letter", arrival.key, value, headers, key_id=arrival.key_id)


_SEALED_AS: Final = {"graded": codec.GRADED, "part": codec.PART}


def sealed(emission: Emission, workspace: str) -> Emission:
    """The emission as it is written. Raises KeyErased."""
    if not emission.key_id or emission.value is None:
        return emission
    kind = _SEALED_AS.get(emission.stream) or dict(emission.headers).get("original.ce_type", b"").decode()
    value = seal_event(emission.value, emission.key_id, workspace, kind, emission.key)
    return msgspec.structs.replace(emission, value=value, key_id="")


def _progress_value(row: RowState, captured: Captured, grade: Grade, revision: int, erased: bool) -> bytes:
    return _json_of(
        Progress(
            episode_id=row.episode_id,
            interaction_id=row.interaction_id,
            task_id=captured.task_id,
            agent=captured.agent,
            slot=captured.slot,
            release=captured.release,
            grade=grade,
            split=captured.side,
            revision=revision,
            append_ms=row.append_ms,
            ended_at=captured.ended_at,
            vitals=None if erased else _vitals(captured),
            erased=erased,
        )
    )


def _vitals(captured: Captured) -> Vitals:
    failed, invalid_calls, cost = captured.vitals
    # a wrong clock is not the model's slowness
    latency_ms = max(0, (captured.ended_us - captured.started_us) // 1000)
    return Vitals(error=bool(failed), invalid_calls=invalid_calls, latency_ms=latency_ms, cost=cost)


def _json_of(record: msgspec.Struct) -> bytes:
    try:
        return _ENCODER.encode(record)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can carry
        return json_bytes(codec.to_json(record))


def _row_headers(row: RowState) -> list[tuple[str, bytes]]:
    ids = [row.episode_id, row.interaction_id]
    try:
        row_id = orjson.dumps(ids)  # two texts: canonical as they are
    except TypeError:
        row_id = canonical_json(ids)
    return [("row_id", row_id), ("revision", b"%d" % row.revision)]
