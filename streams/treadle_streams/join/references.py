"""Names: references such as `pr:org/repo#12`, and interaction ids whose episode is another id. Outcomes may know no more than a name.

    interaction  ->  announcement, keyed by the name       in the transaction that stores the interaction
    outcome      ->  the name                              keyed by the name too, so both meet on one partition
    the name     ->  the outcome, re-keyed to the episode  once for each pair of them, whichever came first

What a name keeps is a set of events, verbatim, and a set of rows: every event goes to every row, now or later, and the row's own fold
decides what it means there. So nothing here depends on order. Both copies travel on `.references`, which only the join writes: an
announcement is of type REFERENCE, a re-keyed event keeps its bytes and its type, with the row in the header `target` and the place that
it comes from in the header `origin`.

An event waits for rows, and an announcement for events, as long as the state of a row is kept, each counted from its own append. A pair
whose appends lie further apart does not meet, whatever the order of reading. An event that met nothing ends as a dead letter `orphan`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import msgspec
from treadle_schemas import codec
from treadle_schemas.canonical import canonical_json, loads
from treadle_schemas.errors import KeyErased
from treadle_schemas.partitioner import partition_of
from treadle_schemas.records import Announcement

from treadle_streams.join.arrivals import (
    AnnouncementEvent,
    Arrival,
    InteractionEvent,
    OutcomeEvent,
    Refused,
    RightsEvent,
    RowEvent,
    understand,
)
from treadle_streams.join.emissions import Emission
from treadle_streams.join.errors import StateError
from treadle_streams.join.grading import Grading
from treadle_streams.join.ledger import known_headers
from treadle_streams.join.meta import Meta
from treadle_streams.join.retention import Endings
from treadle_streams.join.sealed import seal_event
from treadle_streams.join.state import NEVER_MS, ROWS, Captured, RowState, Seen, index_keys

__all__ = ["MAX_TARGETS", "ByName", "NameState", "Names", "announcements", "decode_name", "encode_name"]

MAX_TARGETS: Final = 10_000
"""Most rows that one name stands for."""
MAX_EVENTS: Final = 10_000
MAX_EVENT_BYTES: Final = 3 * 1024 * 1024
"""Most events, and bytes of them, that one name keeps: as a row."""
MAX_SENT_BYTES: Final = 8 * 1024 * 1024
MAX_SENT: Final = 5_000
"""Most bytes and records that one transaction re-keys; the rest follows in the next ones."""
_DUE_AT_ONCE_MS: Final = 0
_HEAD = struct.Struct(">cQ")
_TYPE: Final = b"A"


class Waiting(msgspec.Struct, array_like=True):
    """An event that was keyed by the name, verbatim."""

    number: int
    """Its place among the events of the name."""
    digest: bytes
    append_ms: int
    partition: int
    offset: int
    raw: bytes
    import_id: str | None = None
    met: bool = False
    """Did it reach a row?"""


class Target(msgspec.Struct, array_like=True):
    """A row that the name stands for."""

    episode_id: str
    interaction_id: str
    append_ms: int
    """Append time of the announcement."""
    sent: int = 0
    """Events below this number were re-keyed to it."""
    offset: int = -1
    """Of the announcement."""


class NameState(msgspec.Struct, array_like=True):
    """Everything kept of one name."""

    kind: Literal["reference", "interaction"]
    name: str
    next_number: int = 0
    events: list[Waiting] = []
    targets: list[Target] = []


class NameReader(Protocol):
    """What is read of the partition's state."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The records of keys, None where there is none."""
        ...


class Changes(Protocol):
    """What a plan writes."""

    puts: dict[bytes, bytes]
    deletes: list[bytes]
    drop_index: list[bytes]
    outputs: list[Emission]
    more: bool


def announcements(event: InteractionEvent, partitions: int) -> list[Emission]:
    """What the join says of an interaction's names, when it stores it: each copy says its own, also one that loses a conflict."""
    said: list[tuple[Literal["reference", "interaction"], str]] = [("reference", name) for name in event.references]
    if event.episode_id != event.interaction_id:
        said.append(("interaction", event.interaction_id))
    out = []
    for kind, name in said:
        value = Announcement(name=name, kind=kind, episode_id=event.episode_id, interaction_id=event.interaction_id)
        key = name.encode()
        out.append(
            Emission("announcement", key, codec.encode(codec.to_json(value)), partition=partition_of(key, partitions))
        )
    return out


@dataclass(slots=True)
class _Entry:
    state: NameState | None
    before: bytes | None
    orphans: int


class Names:
    """The names of one batch. What is re-keyed goes out at once within bounds, and later by a timer that is due at once."""

    def __init__(self, reader: NameReader, out: Changes, meta: Meta, grading: Grading) -> None:
        self._reader = reader
        self._out = out
        self._meta = meta
        self._workspace = grading.settings.workspace
        self._partitions = grading.settings.partitions
        self._keep_ms = grading.keep_ms
        self._restore = meta.restore
        self._entries: dict[bytes, _Entry] = {}
        self._touched: dict[bytes, None] = {}
        self._sent = self._sent_bytes = 0

    def load(self, keys: Iterable[bytes]) -> None:
        """Read what is kept of names."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._entries]
        if missing:
            for key, data in zip(missing, self._reader.get_many(missing), strict=True):
                state = None if data is None else decode_name(data)
                self._entries[key] = _Entry(state, data, _orphans(state))

    def known(self, key: bytes) -> bool:
        """Is something kept of the name?"""
        return self._entries[key].state is not None

    def hold(self, event: OutcomeEvent | RightsEvent, *, met: bool) -> Refused | None:
        """Keep an event for the rows of its name. `met`: it reached a row already. Refused when the name keeps no more."""
        arrival = event.arrival
        raw = arrival.value or b""
        return self._hold(event.named, raw, arrival, event.import_id, met=met)

    def announce(self, event: AnnouncementEvent, own: RowState | None) -> Refused | None:
        """Take in a row of a name. `own` is the row of that very id: what it keeps that was keyed by the id alone is for this one too."""
        entry = self._entry(event.named, event.announcement.kind, event.announcement.name)
        state = entry.state
        assert state is not None
        said = event.announcement
        if any((t.episode_id, t.interaction_id) == (said.episode_id, said.interaction_id) for t in state.targets):
            self._meta.count("duplicates")
            return None
        if len(state.targets) >= MAX_TARGETS:
            detail = f"the name stands for {MAX_TARGETS} rows; outcomes that are keyed by it do not reach this one"
            return Refused(event.arrival, "row_full", detail)
        if said.kind == "interaction" and (state.targets or (own is not None and own.captured is not None)):
            self._meta.count("shared_ids")
        for seen in () if own is None else own.outcomes.values():
            source = loads(seen.raw)
            if source.get("episode_id") is None and source.get("interaction_id") == said.name:
                partition = event.arrival.partition if seen.partition < 0 else seen.partition
                raw = as_sent(seen, self._workspace)
                if raw is None:
                    continue
                written = Arrival("outcomes", partition, seen.offset, seen.append_ms, said.name.encode(), raw, [])
                self._hold(event.named, raw, written, None, met=True)
        state.targets.append(
            Target(said.episode_id, said.interaction_id, event.arrival.append_ms, 0, event.arrival.offset)
        )
        return None

    def take_over(self, key: bytes) -> list[Arrival]:
        """The events of an interaction id whose own row has come."""
        state = self._entries[key].state
        if state is None:
            return []
        self._touched[key] = None
        for waiting in state.events:
            waiting.met = True
        self._meta.count("shared_ids", int(bool(state.targets)))
        return [self._arrival(state.name, waiting) for waiting in state.events]

    def forget(self, key: bytes, raws: set[bytes | None]) -> None:
        """Give up events that a row keeps verbatim, while the name stands for no other row."""
        state = self._entries[key].state
        if state is not None and not state.targets:
            state.events = [waiting for waiting in state.events if waiting.raw not in raws]

    def erase(self, key: bytes) -> None:
        """Forget what waits for an interaction id whose own episode was erased, while the name stands for no other row."""
        self.load([key])
        state = self._entries[key].state
        if state is not None and not state.targets:
            state.events = []
            self._touched[key] = None

    def serve(self) -> None:
        """Re-key what the touched names have to say."""
        for key in self._touched:
            self._serve(key)

    def due(self, key: bytes, clock_ms: int) -> tuple[int, list[Refused]]:
        """The timer of a name: go on re-keying, end what is over. Bytes read, and the orphans that ended."""
        self.load([key])
        entry = self._entries[key]
        state = entry.state
        if state is None or entry.before is None:
            return 0, []
        self._touched[key] = None
        self._serve(key)
        bound = clock_ms - self._keep_ms
        ended = [
            Refused(self._arrival(state.name, w), "orphan", f"nothing was recorded as {state.name!r} in its time")
            for w in state.events
            if w.append_ms < bound and not w.met
        ]
        if not _unsent(state):
            state.events = [w for w in state.events if w.append_ms >= bound]
            state.targets = [t for t in state.targets if t.append_ms >= bound]
        else:
            ended = []  # what is due to go out goes out first
        return len(entry.before), ended

    def write(self) -> None:
        """Put what changed, end what is empty."""
        for key in self._touched:
            entry = self._entries[key]
            state = entry.state
            assert state is not None
            gone = not state.events and not state.targets
            self._meta.count("orphans", (0 if gone else _orphans(state)) - entry.orphans)
            self._meta.count("names", int(not gone) - int(entry.before is not None))
            old = [] if entry.before is None else index_keys(key, entry.before)
            if gone:
                if entry.before is not None:
                    self._out.deletes.append(key)
                    self._out.drop_index.extend(old)
                continue
            value = encode_name(state, self._deadline_ms(state))
            # the timer that was found is dropped, also where the transaction was full before it came to this name
            if value != entry.before or _unsent(state):
                self._out.puts[key] = value
                new = index_keys(key, value)
                self._out.drop_index.extend(k for k in old if k not in new)

    def _hold(self, key: bytes, raw: bytes, arrival: Arrival, import_id: str | None, *, met: bool) -> Refused | None:
        kind: Literal["reference", "interaction"] = "interaction" if key[1:2] == b"i" else "reference"
        entry = self._entry(key, kind, (arrival.key or b"").decode())
        state = entry.state
        assert state is not None
        digest = hashlib.sha256(raw).digest()[:16]
        for waiting in state.events:
            if waiting.digest == digest:
                waiting.met = waiting.met or met
                self._meta.count("duplicates")
                return None
        if len(state.events) >= MAX_EVENTS or sum(len(w.raw) for w in state.events) + len(raw) > MAX_EVENT_BYTES:
            detail = f"{state.name!r} keeps {len(state.events)} outcomes; it takes no more"
            return Refused(arrival, "row_full", detail)
        state.events.append(
            Waiting(
                state.next_number, digest, arrival.append_ms, arrival.partition, arrival.offset, raw, import_id, met
            )
        )
        state.next_number += 1
        return None

    def _entry(self, key: bytes, kind: Literal["reference", "interaction"], name: str) -> _Entry:
        entry = self._entries[key]
        if entry.state is None:
            entry.state = NameState(kind, name)
        self._touched[key] = None
        return entry

    def _serve(self, key: bytes) -> None:
        state = self._entries[key].state
        assert state is not None
        for target in state.targets:
            for waiting in state.events:
                if waiting.number < target.sent:
                    continue
                if self._sent >= MAX_SENT or self._sent_bytes >= MAX_SENT_BYTES:
                    self._out.more = True
                    return
                target.sent = waiting.number + 1
                if abs(waiting.append_ms - target.append_ms) > self._keep_ms:
                    continue
                waiting.met = True
                if self._on_log(waiting, target):
                    continue
                self._sent += 1
                self._sent_bytes += len(waiting.raw)
                self._out.outputs.append(_rekeyed(target, waiting, self._partitions))
                self._meta.count("rekeyed")

    def _on_log(self, waiting: Waiting, target: Target) -> bool:
        """Did the state that is being rebuilt re-key this already?"""
        lost = self._restore
        return lost is not None and lost.known("outcomes", waiting.offset) and lost.known("references", target.offset)

    def _arrival(self, name: str, waiting: Waiting) -> Arrival:
        headers = known_headers(codec.OUTCOME, self._workspace, waiting.import_id)
        return Arrival(
            "outcomes", waiting.partition, waiting.offset, waiting.append_ms, name.encode(), waiting.raw, headers
        )

    def _deadline_ms(self, state: NameState) -> int:
        if _unsent(state):
            return _DUE_AT_ONCE_MS
        times = [w.append_ms for w in state.events[:1]] + [t.append_ms for t in state.targets]
        return min(min(times) + self._keep_ms, NEVER_MS)


class ByName:
    """What a batch does with events that tell or use names. `row` gives what is kept of a row, `fold` takes an event into its row."""

    def __init__(
        self,
        names: Names,
        grading: Grading,
        row: Callable[[bytes], RowState | None],
        endings: Endings,
        fold: Callable[[RowEvent], None],
        refuse: Callable[[Refused], None],
    ) -> None:
        self._names = names
        self._grading = grading
        self._row = row
        self._endings = endings
        self._fold = fold
        self._refuse = refuse

    def interaction(self, event: InteractionEvent) -> list[Emission]:
        """Take in an interaction, with what waits under its id. Returns what it announces: a copy that is known says nothing again."""
        before = self._captured(event.key)
        self._fold(event)
        kept = self._row(event.key)
        if kept is None or (before is not None and before.body == event.captured.body):
            return []
        if before is None and event.named and self._names.known(event.named):
            for arrival in self._names.take_over(event.named):
                said = understand(arrival, self._grading)
                if isinstance(said, OutcomeEvent | RightsEvent):
                    self._fold(said)
                elif isinstance(said, Refused):  # by settings that are newer than the event
                    self._refuse(said)
            workspace = self._grading.settings.workspace
            self._names.forget(event.named, {as_sent(seen, workspace) for seen in kept.outcomes.values()})
        return announcements(event, self._grading.settings.partitions)

    def outcome(self, event: OutcomeEvent | RightsEvent) -> None:
        """Take in what is keyed by a name: for the row of that very id, and for every row of the name, now or later."""
        if self._endings.ended(event.key) is not None and not self._names.known(event.named):
            self._fold(event)  # which says that it came too late
            return
        met = event.key.startswith(ROWS) and self._captured(event.key) is not None
        if met:
            self._fold(event)
            kept = self._row(event.key)
            # the row keeps it verbatim, should the name ever stand for another row
            if kept is not None and not self._names.known(event.named) and _keeps(kept, event):
                return
        refused = self._names.hold(event, met=met)
        if refused is not None:
            self._refuse(refused)

    def announced(self, event: AnnouncementEvent) -> None:
        """Take in a row that a name stands for."""
        refused = self._names.announce(event, self._row(event.key) if event.key else None)
        if refused is not None:
            self._refuse(refused)

    def _captured(self, key: bytes) -> Captured | None:
        row = self._row(key)
        return None if row is None else row.captured


def _keeps(row: RowState, event: OutcomeEvent | RightsEvent) -> bool:
    if not isinstance(event, OutcomeEvent) or event.op != "set":
        return False
    seen = row.outcomes.get(event.seen.outcome_id)
    return seen is not None and seen.raw == event.seen.raw


def encode_name(state: NameState, deadline_ms: int) -> bytes:
    """The bytes of a name."""
    return _HEAD.pack(_TYPE, deadline_ms) + _ENCODER.encode(state)


def decode_name(data: bytes) -> NameState:
    """The name of `encode_name`. Raises StateError for other bytes."""
    try:
        if data[:1] != _TYPE:
            raise StateError(f"{data[:40]!r} is no name of the join")
        return _DECODER.decode(data[_HEAD.size :])
    except msgspec.DecodeError as err:
        raise StateError(f"{data[:40]!r} is no name of the join: {err}") from err


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(NameState)


def as_sent(seen: Seen, workspace: str) -> bytes | None:
    """An outcome as its maker sent it. None: its key was destroyed, so nobody shall have it again."""
    try:
        return seal_event(seen.raw.encode(), seen.key_id, workspace, codec.OUTCOME, None)
    except KeyErased:  # the row that keeps it is sealed by another key
        return None


def _orphans(state: NameState | None) -> int:
    return 0 if state is None else int(any(not waiting.met for waiting in state.events))


def _unsent(state: NameState) -> bool:
    return bool(state.events) and any(target.sent <= state.events[-1].number for target in state.targets)


def _rekeyed(target: Target, waiting: Waiting, partitions: int) -> Emission:
    key = target.episode_id.encode()
    headers: list[tuple[str, bytes]] = [
        ("target", canonical_json([target.episode_id, target.interaction_id])),
        ("origin", b"%d/%d/%d" % (waiting.partition, waiting.offset, waiting.append_ms)),
    ]
    return Emission("rekeyed", key, waiting.raw, headers, partition_of(key, partitions))
