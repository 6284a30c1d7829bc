"""The state of one row, and its bytes.

    type (1 byte) | deadline in ms (8 bytes, big endian) | length of the header (4 bytes) | header (JSON) | body

The body is the interaction exactly as it came, so an outcome rewrites the header only and copies the body. Local index keys (timers, rows
parked by an import) are derived from these bytes alone, so the changelog need not carry them: `index_keys`.

Row keys are `r`, the length of the episode id in two bytes, the episode id, the interaction id: injective for any ids. Parts have two
records, `n` (what is known of it, rewritten) and `c` (its content, written once) with the episode id and its hash. Episodes of several
steps, and those of which something was said as a whole, have a record `e` with the episode id: episode_state. Other first bytes are free:
`\\0m` is the partition's META, `\\0t`, `\\0i` and `\\0d` (what depends on a part) are index keys.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
import orjson
from treadle_schemas.calls import vitals
from treadle_schemas.canonical import loads
from treadle_schemas.errors import FieldError, KeyErased
from treadle_schemas.events import Interaction, OutcomeValue, view
from treadle_schemas.moments import from_micros, to_micros
from treadle_schemas.parts import HASH_DIGITS
from treadle_schemas.split import Side

from treadle_streams.join.errors import StateError
from treadle_streams.join.sealed import open_state, open_text, seal_state, seal_text

__all__ = [
    "ERASED",
    "ERASED_AGENT",
    "ERASED_GROUP",
    "META_KEY",
    "NEVER_MS",
    "PARKED_PREFIX",
    "TAINTED",
    "TIMER_PREFIX",
    "WAITING",
    "WHOLE",
    "Captured",
    "Node",
    "RowState",
    "Seen",
    "content_key",
    "decode",
    "decode_node",
    "dependents_prefix",
    "encode",
    "encode_node",
    "episode_key",
    "index_keys",
    "is_part_key",
    "json_bytes",
    "name_key",
    "nothing_of",
    "parked_prefix",
    "part_key",
    "parts_prefix",
    "row_key",
    "row_prefix",
    "sealed_by",
    "state_prefixes",
    "timer_bound",
]

META_KEY: Final = b"\0m"
TIMER_PREFIX: Final = b"\0t"
PARKED_PREFIX: Final = b"\0i"
NEVER_MS: Final = (1 << 63) - 1

ROWS: Final = b"r"
"""First byte of the keys of rows."""
EPISODES: Final = b"e"
"""First byte of the keys of episodes."""
NAMES: Final = b"a"
"""First byte of the keys of names (references and interaction ids), see `references`."""
TOMBSTONES: Final = b"x"
KEPT_PARTS: Final = b"k"
"""First bytes of the keys of what is left of a row, and of when the parts of an episode end, see `retention`."""
_FIXED = struct.Struct(">cQI")
_DEADLINE = struct.Struct(">Q")
_PLAIN, _PARKED, _ORPHAN = b"R", b"P", b"O"
# the same of rows that name parts: only their headers are read for index keys
_PLAIN_PARTS, _PARKED_PARTS = b"r", b"p"
_PART_KEYS: Final = b"n"
_CONTENT_KEYS: Final = b"c"
DEPENDENT_PREFIX: Final = b"\0d"


class Captured(msgspec.Struct, frozen=True):
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
    parts: tuple[str, ...] = ()
    """The parts of the episode that it names, the head of its transcript first."""
    messages: int = 0
    """Messages that its transcript has; 0: it names none."""
    denied: tuple[str, ...] = ()
    """The rights that the interaction itself denies."""
    grouped: bool = True
    """Was `group` known at once? Without task_id it is that of messages which may have to be put together from parts first: until then,
    and when one of them is erased, the name of its first part stands in."""
    step: int = 0
    started_us: int = 0
    vitals: tuple[int, int, float | None] = (0, 0, None)
    """Did it fail, how many of its tool calls are invalid, its cost."""
    key_id: str = ""
    """The key that sealed it; empty: it came in clear."""


class Seen(msgspec.Struct, frozen=True):
    """An outcome that arrived, as kept: the value as its metric keeps it, and the event itself as `raw` JSON text."""

    outcome_id: str
    name: str
    value: OutcomeValue
    observed_us: int
    append_ms: int
    offset: int
    raw: str
    kind: Literal["metric", "comment", "preference", "demonstration"] = "metric"
    fits: bool = True
    """Does the value fit its metric as it is declared now? One that does not counts for nothing, until a declaration fits it again."""
    partition: int = -1
    """Of a re-keyed outcome, where `offset` lies; else that of the row."""
    key_id: str = ""
    """As of Captured."""


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
    rights: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By right, what was said of it last: observed time (microseconds), allow or deny."""
    complained: bool = False
    """A dead letter says that its time was up while a part was missing."""
    waiting: bool = False
    """As of the last evaluation: a part that it names is not there."""
    settled: bool = False
    """As of the last evaluation."""
    version: int = 1
    """The grading version by which `outcomes` hold their values."""
    after: int = 0
    """Steps of the episode that come after it, as last counted. Outcomes that are discounted by it keep it up to date."""
    said_ms: int = 0
    """Append time of the newest retract or right: without interaction they are kept so long."""
    parked: bool = False
    """Held by an import while a metric is pending: it is found again by the import, not by a timer."""
    deadline_ms: int = NEVER_MS
    """When its grade changes next by time alone."""
    lost: bool = False
    """As it was read: its key was destroyed, so it is empty, and its episode is to be erased."""

    @property
    def key(self) -> bytes:
        """The row's key inside its partition."""
        return row_key(self.episode_id, self.interaction_id)


ERASED_AGENT: Final = "erased"
"""The `agent` of what is left of an erased row: a row has one."""
ERASED_GROUP: Final = "erased"
"""The split group of what is left: that of its text would be a hash of the text. Such a row is in no version, so its side means nothing."""


def nothing_of(captured: Captured, episode_id: str, interaction_id: str) -> Captured:
    """What is left of an interaction that is erased: that it was there."""
    at = from_micros(captured.ended_us)
    body = json_bytes(
        {
            "interaction_id": interaction_id,
            "episode_id": episode_id,
            "agent": ERASED_AGENT,
            "messages": [],
            "started_at": at,
            "ended_at": at,
        }
    )
    return Captured(
        body=body,
        offset=captured.offset,
        append_ms=captured.append_ms,
        ended_us=captured.ended_us,
        ended_at=at,
        task_id=None,
        agent=ERASED_AGENT,
        slot="main",
        release=None,
        side="train",
        group=ERASED_GROUP,
        started_us=captured.ended_us,
    )


def row_key(episode_id: str, interaction_id: str) -> bytes:
    """The key of a row inside its partition, injective over any pair of ids."""
    episode, interaction = episode_id.encode(), interaction_id.encode()
    return b"%b%b%b%b" % (ROWS, len(episode).to_bytes(2), episode, interaction)


def row_prefix(episode_id: str) -> bytes:
    """What the keys of all rows of an episode, and no others, begin with."""
    episode = episode_id.encode()
    return b"".join((ROWS, len(episode).to_bytes(2), episode))


def state_prefixes(episode_id: str) -> list[bytes]:
    """What the keys of all that is kept of an episode's text begin with: rows, contents of parts, what was said of it, its id as a name."""
    episode = episode_id.encode()
    sized = b"".join((len(episode).to_bytes(2), episode))
    return [ROWS + sized, _CONTENT_KEYS + sized, episode_key(episode_id), name_key("interaction", episode_id)]


def name_key(kind: Literal["reference", "interaction"], name: str) -> bytes:
    """The key of what is kept of a name."""
    return NAMES + kind[:1].encode() + name.encode()


def episode_key(episode_id: str) -> bytes:
    """The key of what is kept of an episode as a whole."""
    return EPISODES + episode_id.encode()


def json_bytes(value: Any) -> bytes:
    """Compact JSON of plain values that were checked before, lone surrogates included."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode()


def encode(row: RowState) -> bytes:
    """The bytes of a row. Raises KeyErased where the key that is to seal it was destroyed."""
    c = row.captured
    key, key_id = row.key, sealed_by(row)
    outcomes = pack_outcomes(row.outcomes)
    if key_id:
        outcomes = seal_text(outcomes, json_bytes(outcomes), key_id, key)
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
                c.parts,
                c.messages,
                c.denied,
                c.grouped,
                c.step,
                c.started_us,
                c.vitals,
                *((c.key_id,) if c.key_id else ()),
            ],
            outcomes,
            sorted(row.retracted_ids) if row.retracted_ids else (),
            row.retracted_until,
            row.outcome_bytes,
            sorted(row.imports) if row.imports else (),
            row.lapsed_ms,
            row.revision,
            row.graded_hash,
            row.progress_hash,
            row.settled,
            row.rights,
            row.complained,
            row.waiting,
            row.version,
            row.after,
            row.said_ms,
        ]
    )
    kind = _ORPHAN if c is None else _PARKED if row.parked else _PLAIN
    if c is not None and c.parts:
        kind = kind.lower()
    fixed = _FIXED.pack(kind, min(row.deadline_ms, NEVER_MS), len(header))
    body = b"" if c is None else seal_state(c.body, key_id, key) if key_id else c.body
    return b"".join((fixed, header, body))


def sealed_by(row: RowState) -> str:
    """The key that seals what is kept of a row, and what is said of it; empty: none does."""
    if row.captured is not None and row.captured.key_id:
        return row.captured.key_id
    return next((seen.key_id for seen in row.outcomes.values() if seen.key_id), "")


def decode(data: bytes) -> RowState:
    """The row of `encode`. Raises StateError for other bytes."""
    try:
        kind, deadline_ms, length = _FIXED.unpack_from(data)
        start = _FIXED.size
        h = loads(data[start : start + length])
        if h[0] != 1 or kind not in (_PLAIN, _PARKED, _ORPHAN, _PLAIN_PARTS, _PARKED_PARTS):
            raise StateError(f"join state of layout {h[0]!r}, type {kind!r}: this treadle reads layout 1")
        captured = None
        if h[4] is not None:
            said = list(h[4])
            if len(said) > 11:  # fewer were written by 0.1
                said[11], said[13] = tuple(said[11]), tuple(said[13])
            if len(said) > 17:
                said[17] = tuple(said[17])
            captured = Captured(data[start + length :], *said)
            if len(said) < 18:  # written before episodes were joined, or the guard looked at vitals
                captured = _placed(captured)
        lost, outcomes = False, h[5]
        if isinstance(outcomes, str):  # sealed
            key = row_key(h[1], h[2])
            try:
                outcomes = open_text(outcomes, key)
                if captured is not None:
                    captured = msgspec.structs.replace(captured, body=open_state(captured.body, key))
            except KeyErased:
                lost, outcomes = True, []
                captured = None if captured is None else nothing_of(captured, h[1], h[2])
        return RowState(
            episode_id=h[1],
            interaction_id=h[2],
            append_ms=h[3],
            captured=captured,
            outcomes=unpack_outcomes(outcomes),
            lost=lost,
            retracted_ids={(name, outcome_id) for name, outcome_id in h[6]},
            retracted_until=h[7],
            outcome_bytes=h[8],
            imports=set(h[9]),
            lapsed_ms=h[10],
            revision=h[11],
            graded_hash=h[12],
            progress_hash=h[13],
            settled=h[14],
            rights={name: (at, said) for name, (at, said) in h[15].items()} if len(h) > 15 else {},
            complained=len(h) > 16 and h[16],
            waiting=len(h) > 17 and h[17],
            version=h[18] if len(h) > 18 else 1,
            after=h[19] if len(h) > 19 else 0,
            said_ms=h[20] if len(h) > 20 else 0,
            parked=kind in (_PARKED, _PARKED_PARTS),
            deadline_ms=deadline_ms,
        )
    except (struct.error, FieldError, IndexError, TypeError, KeyError) as err:
        raise StateError(f"{data[:40]!r}... is no row of the join: {err}") from err


def _placed(captured: Captured) -> Captured:
    said = loads(captured.body)
    return msgspec.structs.replace(
        captured,
        step=said.get("step", 0),
        started_us=to_micros(said["started_at"], "$.started_at"),
        vitals=vitals(view(said, Interaction)),
    )


def pack_outcomes(outcomes: Mapping[str, Seen]) -> list[list[Any]]:
    """Outcomes as plain lists; what most of them have is left out."""
    return [
        [o.outcome_id, o.name, o.value, o.observed_us, o.append_ms, o.offset, o.raw]
        + (
            [o.kind, o.fits, o.partition, o.key_id]
            if o.key_id
            else [o.kind, o.fits, o.partition]
            if o.partition >= 0
            else []
            if o.kind == "metric" and o.fits
            else [o.kind, o.fits]
        )
        for o in outcomes.values()
    ]


def unpack_outcomes(packed: list[list[Any]]) -> dict[str, Seen]:
    """The outcomes of `pack_outcomes`, by id."""
    return {o[0]: Seen(*o) for o in packed}


def index_keys(key: bytes, value: bytes) -> list[bytes]:
    """The local index keys of a row, an episode or a part: its timer, or the imports that parked it, and the parts that it depends on.

    None for META, for the content of a part and for a row that only waits.
    """
    if key.startswith(_PART_KEYS):
        return [dependents_prefix(need) + key for need in decode_node(value).needs(key)]
    if key[:1] in _TIMED:
        return _timer_keys(key, value)
    if not key.startswith(ROWS):
        return []
    kind = value[:1]
    if kind in (_PLAIN, _ORPHAN):
        return _timer_keys(key, value)
    _, _, length = _FIXED.unpack_from(value)
    header = loads(value[_FIXED.size : _FIXED.size + length])
    keys = (
        _timer_keys(key, value) if kind == _PLAIN_PARTS else [parked_prefix(import_id) + key for import_id in header[9]]
    )
    if kind in (_PLAIN_PARTS, _PARKED_PARTS):
        keys += [dependents_prefix(part_key(header[1], name)) + key for name in dict.fromkeys(header[4][11])]
    return keys


_TIMED: Final = frozenset((EPISODES, NAMES, TOMBSTONES, KEPT_PARTS))


def _timer_keys(key: bytes, value: bytes) -> list[bytes]:
    deadline = value[1:9]
    return [] if _DEADLINE.unpack(deadline)[0] >= NEVER_MS else [TIMER_PREFIX + deadline + key]


class Node(msgspec.Struct, array_like=True):
    """What is known of a part, without its content."""

    state: int
    """WAITING for a part that it needs, WHOLE, TAINTED (a part that it needs was erased) or ERASED."""
    kind: Literal["message", "value", "erased"]
    prev: bytes | None = None
    claims: dict[str, str] = {}
    count: int = 0
    """Of a whole message: messages up to and with it."""
    assistant: bool = False
    """Did the model say it?"""
    emitted: bool = False
    """Is it on `.graded`, with all that it needs?"""
    group: bytes | None = None
    """Of a whole message with an assistant turn up to it: the split group of its transcript."""

    def needs(self, key: bytes) -> list[bytes]:
        """The keys of the parts that it needs, itself having `key`."""
        stem = key[:-_HASH_BYTES]
        before = [] if self.prev is None else [stem + self.prev]
        return before + [stem + bytes.fromhex(name) for name in self.claims.values()]


WAITING, WHOLE, TAINTED, ERASED = range(4)
_HASH_BYTES = HASH_DIGITS // 2
_NODE_ENCODER = msgspec.msgpack.Encoder()
_NODE_DECODER = msgspec.msgpack.Decoder(Node)
_NODE = b"N\1"


def part_key(episode_id: str, name: str) -> bytes:
    """The key of what is known of a part."""
    episode = episode_id.encode()
    return b"".join((_PART_KEYS, len(episode).to_bytes(2), episode, bytes.fromhex(name)))


def parts_prefix(episode_id: str) -> bytes:
    """What the keys of what is known of an episode's parts, and no others, begin with."""
    episode = episode_id.encode()
    return b"".join((_PART_KEYS, len(episode).to_bytes(2), episode))


def content_key(key: bytes) -> bytes:
    """The key of a part's content, from its `part_key`."""
    return _CONTENT_KEYS + key[1:]


def is_part_key(key: bytes) -> bool:
    """Does the key stand for what is known of a part?"""
    return key.startswith(_PART_KEYS)


def encode_node(node: Node) -> bytes:
    """The bytes of a node."""
    return _NODE + _NODE_ENCODER.encode(node)


def decode_node(data: bytes) -> Node:
    """The node of `encode_node`. Raises StateError for other bytes."""
    if not data.startswith(_NODE):
        raise StateError(f"{data[:40]!r} is no part of the join")
    try:
        return _NODE_DECODER.decode(data[len(_NODE) :])
    except msgspec.DecodeError as err:
        raise StateError(f"{data[:40]!r} is no part of the join: {err}") from err


def dependents_prefix(key: bytes) -> bytes:
    """What the index keys of rows and parts that need a part begin with; their own key follows."""
    return DEPENDENT_PREFIX + hashlib.sha256(key).digest()[:16]


def parked_prefix(import_id: str) -> bytes:
    """What the index keys of rows parked by an import begin with; the row's key follows."""
    return PARKED_PREFIX + hashlib.sha256(import_id.encode(errors="surrogatepass")).digest()[:16]


def timer_bound(clock_ms: int) -> bytes:
    """Timer keys below this one are due: their deadline is passed by the clock."""
    return TIMER_PREFIX + _DEADLINE.pack(max(clock_ms, 0))
