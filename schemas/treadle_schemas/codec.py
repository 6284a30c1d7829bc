"""Events on the wire: CloudEvents 1.0 in Kafka binary mode (`ce_*` headers), the value JSON.

A reader ignores unknown fields but keeps them: `Event.data` is the whole decoded value. It refuses an unknown type or major version.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from treadle_schemas.canonical import dumps, loads
from treadle_schemas.errors import FieldError, UnknownType, shown
from treadle_schemas.events import MAX_EVENT_BYTES
from treadle_schemas.moments import now

__all__ = [
    "CLOCK",
    "DEAD_LETTER",
    "EPISODE_END",
    "ERASURE",
    "GRADED",
    "IMPORT_MARKER",
    "INTERACTION",
    "OUTCOME",
    "PART",
    "PROGRESS",
    "REFERENCE",
    "REGRADED",
    "RELEASE",
    "SETTINGS",
    "SNAPSHOT",
    "TYPES",
    "WORKSPACE",
    "Event",
    "Headers",
    "decode",
    "encode",
    "header_map",
    "make_headers",
    "to_json",
]

INTERACTION: Final = "dev.treadle.interaction.v1"
OUTCOME: Final = "dev.treadle.outcome.v1"
PART: Final = "dev.treadle.part.v1"
"""Content that interactions of one episode share, stored once; on `.interactions`, and once more on `.graded`."""
EPISODE_END: Final = "dev.treadle.episode-end.v1"
"""On `.interactions`, behind those of the episode."""
ERASURE: Final = "dev.treadle.erasure.v1"
"""On `.interactions`: an episode is taken away, with all that was or will be said in it."""
REFERENCE: Final = "dev.treadle.reference.v1"
"""On `.references`, written by the join: which row a name stands for."""
IMPORT_MARKER: Final = "dev.treadle.import-marker.v1"
CLOCK: Final = "dev.treadle.clock.v1"
PROGRESS: Final = "dev.treadle.progress.v1"
GRADED: Final = "dev.treadle.graded.v1"
REGRADED: Final = "dev.treadle.regraded.v1"
"""On every partition of `.graded` and `.progress`: its rows are graded by a new grading version."""
DEAD_LETTER: Final = "dev.treadle.dead-letter.v1"
SNAPSHOT: Final = "dev.treadle.snapshot.v1"
RELEASE: Final = "dev.treadle.release.v1"
SETTINGS: Final = "dev.treadle.settings.v1"
WORKSPACE: Final = "dev.treadle.workspace.v1"
"""On the control topic: that a workspace exists."""
TYPES: Final = frozenset(
    {
        INTERACTION,
        OUTCOME,
        PART,
        REFERENCE,
        EPISODE_END,
        ERASURE,
        IMPORT_MARKER,
        CLOCK,
        PROGRESS,
        GRADED,
        REGRADED,
        DEAD_LETTER,
        SNAPSHOT,
        RELEASE,
        SETTINGS,
        WORKSPACE,
    }
)

Headers = list[tuple[str, bytes]]
_NO_DATA: Final[dict[str, Any]] = {}
_BYTES: Final = {bytes}


class Event(msgspec.Struct, frozen=True):
    """A decoded event: its type, the whole value, and the headers by name (bytes)."""

    type: str
    data: dict[str, Any]
    headers: Mapping[str, bytes]

    @property
    def import_id(self) -> str | None:
        """The import that brought this event, if one did."""
        raw = self.headers.get("ce_importid")
        return raw.decode(errors="replace") if raw else None


def make_headers(
    event_type: str,
    workspace: str,
    *,
    source: str,
    event_id: str | None = None,
    import_id: str | None = None,
    pii: str = "off",
) -> Headers:
    """The CloudEvents headers of a new event. `event_id` identifies the event for tracing; identity lies in the value."""
    headers: Headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", (event_id or uuid.uuid4().hex).encode()),
        ("ce_source", source.encode()),
        ("ce_type", event_type.encode()),
        ("ce_time", now().encode()),
        ("ce_dataschema", f"urn:treadle:schema:{event_type}".encode()),
        ("ce_workspace", workspace.encode()),
        ("ce_pii", pii.encode()),
        ("content-type", b"application/json"),
    ]
    if import_id is not None:
        headers.append(("ce_importid", import_id.encode()))
    return headers


def header_map(headers: Sequence[tuple[str, bytes | str | None]] | None) -> dict[str, bytes]:
    """Headers by name; of a repeated name the last one counts."""
    by_name: dict[str, Any] = dict(headers or ())
    if set(map(type, by_name.values())) <= _BYTES:
        return by_name
    return {k: (v.encode() if isinstance(v, str) else v) for k, v in headers or () if v is not None}


def encode(data: Any) -> bytes:
    """The value of an event. Raises FieldError naming the field for what JSON cannot carry, and for too large a value."""
    value = dumps(data)
    if len(value) > MAX_EVENT_BYTES:
        raise FieldError("$", f"is {len(value)} bytes long; an event has at most {MAX_EVENT_BYTES}")
    return value


def to_json(record: msgspec.Struct) -> dict[str, Any]:
    """The JSON form of a record struct as plain dicts and lists."""
    plain = msgspec.to_builtins(record)
    assert isinstance(plain, dict)
    return plain


def decode(value: bytes | None, headers: Sequence[tuple[str, bytes | str | None]] | None) -> Event:
    """Decode one record. Raises UnknownType or FieldError; the caller turns those into dead letters."""
    by_name = header_map(headers)
    raw_type = by_name.get("ce_type")
    if raw_type is None:
        raise FieldError("headers.ce_type", "is missing: this is no CloudEvent in Kafka binary mode")
    event_type = raw_type.decode(errors="replace")
    if event_type not in TYPES:
        raise UnknownType(f"headers.ce_type: {shown(event_type)} is no type or major version that this reader knows")
    if value is None:
        raise FieldError("$", "is null")
    if event_type == CLOCK:
        return Event(event_type, _NO_DATA, by_name)
    data = loads(value)
    if not isinstance(data, dict):
        raise FieldError("$", f"is a {type(data).__name__}, not an object")
    return Event(event_type, data, by_name)
