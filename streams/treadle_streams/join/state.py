"""The state of one row, and its bytes.

    type (1 byte) | deadline in ms (8 bytes, big endian) | length of the header (4 bytes) | header (JSON) | body

The body is the interaction exactly as it came, so an outcome rewrites the header only and copies the body. Local index keys (timers, rows
parked by an import) are derived from these bytes alone, so the changelog need not carry them: `index_keys`.

Row keys are `r`, the length of the episode id in two bytes, the episode id, the interaction id: injective for any ids. Other first
bytes are free: `\\0m` is the partition's META, `\\0t` and `\\0i` are index keys.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from treadle_schemas.canonical import loads
from treadle_schemas.errors import FieldError
from treadle_schemas.events import OutcomeValue
from treadle_schemas.split import Side

from treadle_streams.join.errors import StateError

__all__ = [
    "META_KEY",
    "NEVER_MS",
    "PARKED_PREFIX",
    "TIMER_PREFIX",
    "Captured",
    "RowState",
    "Seen",
    "decode",
    "encode",
    "index_keys",
    "json_bytes",
    "parked_prefix",
    "row_key",
    "timer_bound",
]

META_KEY: Final = b"\0m"
TIMER_PREFIX: Final = b"\0t"
PARKED_PREFIX: Final = b"\0i"
NEVER_MS: Final = (1 << 63) - 1

_ROW: Final = b"r"
_FIXED = struct.Struct(">cQI")
_DEADLINE = struct.Struct(">Q")
_PLAIN, _PARKED, _ORPHAN = b"R", b"P", b"O"


@dataclass(frozen=True, slots=True)
class Captured:
    """The interaction that a row stands for: what grading and progress need of it, without its body."""

    body: bytes
    """The interaction's JSON, verbatim."""
    offset: int
    append_ms: int
    """Append time of this copy. Windows count from the row's first copy, `RowState.append_ms`."""
    ended_us: int
    ended_at: str
    task_id: str | None
    agent: str
    slot: str
    release: str | None
    side: Side
    group: str
    import_id: str | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """An outcome that arrived, as kept: the value as its metric keeps it, and the event itself as `raw` JSON text."""

    outcome_id: str
    name: str
    value: OutcomeValue
    observed_us: int
    append_ms: int
    offset: int
    raw: str


@dataclass(slots=True)
class RowState:
    """Everything kept of one row. Without `captured` it is an orphan: outcomes that wait for their interaction."""

    episode_id: str
    interaction_id: str
    captured: Captured | None = None
    append_ms: int = NEVER_MS
    """Append time of the interaction's first copy, whichever copy won."""
    outcomes: dict[str, Seen] = field(default_factory=dict)
    """By outcome id, retracted ones too: which of them count is decided at grading, whatever came first."""
    retracted_ids: set[tuple[str, str]] = field(default_factory=set)
    """(name, outcome id) pairs taken back one by one."""
    retracted_until: dict[str, int] = field(default_factory=dict)
    """By name, the latest observed time (microseconds) of a retract without outcome id."""
    outcome_bytes: int = 0
    imports: set[str] = field(default_factory=set)
    """Imports that touched the row and were not known to be over."""
    lapsed_ms: int = 0
    """The clock up to which this row's time has run. It stands still while an import holds the row."""
    revision: int = 0
    """Of the last record on `.graded`; 0: none yet."""
    graded_hash: str = ""
    """Fingerprint of the content of the last record on `.graded`."""
    progress_hash: str = ""
    """Fingerprint of the last record on `.progress`."""
    settled: bool = False
    """As of the last evaluation."""
    parked: bool = False
    """Held by an import while a metric is pending: it is found again by the import, not by a timer."""
    deadline_ms: int = NEVER_MS
    """When its grade changes next by time alone."""

    @property
    def key(self) -> bytes:
        """The row's key inside its partition."""
        return row_key(self.episode_id, self.interaction_id)


def row_key(episode_id: str, interaction_id: str) -> bytes:
    """The key of a row inside its partition, injective over any pair of ids."""
    episode = episode_id.encode()
    return b"".join((_ROW, len(episode).to_bytes(2), episode, interaction_id.encode()))


def json_bytes(value: Any) -> bytes:
    """Compact JSON of plain values that were checked before, lone surrogates included."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()


def encode(row: RowState) -> bytes:
    """The bytes of a row."""
    c = row.captured
    header = json_bytes(
        [
            1,  # version of this layout
            row.episode_id,
            row.interaction_id,
            row.append_ms,
            None
            if c is None
            else [
                c.offset,
                c.append_ms,
                c.ended_us,
                c.ended_at,
                c.task_id,
                c.agent,
                c.slot,
                c.release,
                c.side,
                c.group,
                c.import_id,
            ],
            [
                [o.outcome_id, o.name, o.value, o.observed_us, o.append_ms, o.offset, o.raw]
                for o in row.outcomes.values()
            ],
            sorted(row.retracted_ids),
            row.retracted_until,
            row.outcome_bytes,
            sorted(row.imports),
            row.lapsed_ms,
            row.revision,
            row.graded_hash,
            row.progress_hash,
            row.settled,
        ]
    )
    kind = _ORPHAN if c is None else _PARKED if row.parked else _PLAIN
    fixed = _FIXED.pack(kind, min(row.deadline_ms, NEVER_MS), len(header))
    return b"".join((fixed, header, b"" if c is None else c.body))


def decode(data: bytes) -> RowState:
    """The row of `encode`. Raises StateError for other bytes."""
    try:
        kind, deadline_ms, length = _FIXED.unpack_from(data)
        start = _FIXED.size
        h = loads(data[start : start + length])
        if h[0] != 1 or kind not in (_PLAIN, _PARKED, _ORPHAN):
            raise StateError(f"join state of layout {h[0]!r}, type {kind!r}: this treadle reads layout 1")
        captured = None
        if h[4] is not None:
            captured = Captured(data[start + length :], *h[4])
        return RowState(
            episode_id=h[1],
            interaction_id=h[2],
            append_ms=h[3],
            captured=captured,
            outcomes={o[0]: Seen(*o) for o in h[5]},
            retracted_ids={(name, outcome_id) for name, outcome_id in h[6]},
            retracted_until=h[7],
            outcome_bytes=h[8],
            imports=set(h[9]),
            lapsed_ms=h[10],
            revision=h[11],
            graded_hash=h[12],
            progress_hash=h[13],
            settled=h[14],
            parked=kind == _PARKED,
            deadline_ms=deadline_ms,
        )
    except (struct.error, FieldError, IndexError, TypeError, KeyError) as err:
        raise StateError(f"{data[:40]!r}... is no row of the join: {err}") from err


def index_keys(key: bytes, value: bytes) -> list[bytes]:
    """The local index keys of a record: its timer, or the imports that parked it. None for META and for a row that only waits."""
    if not key.startswith(_ROW):
        return []
    if value[:1] == _PARKED:
        _, _, length = _FIXED.unpack_from(value)
        header = loads(value[_FIXED.size : _FIXED.size + length])
        return [parked_prefix(import_id) + key for import_id in header[9]]
    deadline = value[1:9]
    return [] if _DEADLINE.unpack(deadline)[0] >= NEVER_MS else [TIMER_PREFIX + deadline + key]


def parked_prefix(import_id: str) -> bytes:
    """What the index keys of rows parked by an import begin with; the row's key follows."""
    return PARKED_PREFIX + hashlib.sha256(import_id.encode(errors="surrogatepass")).digest()[:16]


def timer_bound(clock_ms: int) -> bytes:
    """Timer keys below this one are due: their deadline is passed by the clock."""
    return TIMER_PREFIX + _DEADLINE.pack(max(clock_ms, 0))
