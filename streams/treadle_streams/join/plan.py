"""One batch of one partition, planned: arrivals, due timers and parked rows in; state, outputs and META out.

Nothing here talks to Kafka or RocksDB: the shell reads through `StateReader`, writes what the plan says in one transaction, and only then
applies it locally. A plan changes nothing that was passed in, so a refused transaction leaves no trace.

Not here yet, and refused as dead letters `not_yet_joined`: outcomes of whole episodes and references, comments, preferences,
demonstrations. Rows, orphans and retracts are kept for good: retention and tombstones come with their own issue. A row without task_id
splits by its own first messages; taking those of its episode's first step comes with episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from treadle_schemas.canonical import loads
from treadle_schemas.parts import resolve
from treadle_schemas.split import split_group

from treadle_streams.join.arrivals import (
    Arrival,
    InteractionEvent,
    MarkerEvent,
    OutcomeEvent,
    PartsEvent,
    Refused,
    RightsEvent,
    RowEvent,
    understand,
)
from treadle_streams.join.clock import ImportState, advanced
from treadle_streams.join.contents import Availability, Contents
from treadle_streams.join.emissions import Emission, dead_letter
from treadle_streams.join.fold import evaluate, fold
from treadle_streams.join.grading import Grading
from treadle_streams.join.meta import Meta
from treadle_streams.join.state import Captured, RowState, decode, encode, index_keys, parked_prefix

__all__ = ["Plan", "StateReader", "plan"]

MAX_ROWS_BY_TIME: Final = 500
"""Most rows that timers and ended imports bring into one transaction; the rest follow in the next."""
MAX_BYTES_BY_TIME: Final = 16 * 1024 * 1024
MAX_PART_BYTES: Final = 32 * 1024 * 1024
"""Most bytes of parts that the rows of a batch bring to `.graded` in its transaction: two thousand outcomes may settle as many long
episodes at once. The rows beyond it follow in the next transactions, as rows whose time is up."""
_CHUNK: Final = 50
_DEFERRED_MS: Final = 0
"""A deadline that every clock has passed."""


class StateReader(Protocol):
    """The partition's state as the last committed batch left it."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The records of row keys, None where there is none."""
        ...

    def due(self, clock_ms: int) -> Iterator[tuple[bytes, bytes]]:
        """(index key, row key) of timers whose deadline the clock has passed, earliest first."""
        ...

    def parked(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(index key, key of a row or part) of what an index prefix stands for: rows parked by an import, dependents of a part."""
        ...


@dataclass(slots=True)
class Plan:
    """What one transaction of one partition writes."""

    partition: int
    meta: Meta
    puts: dict[bytes, bytes] = field(default_factory=dict)
    """Rows and parts to write, to the changelog and then locally with their index keys."""
    deletes: list[bytes] = field(default_factory=list)
    """Keys of records that end: null in the changelog, gone locally. None of them is in `puts`."""
    drop_index: list[bytes] = field(default_factory=list)
    """Local index keys to delete; the changelog knows none."""
    outputs: list[Emission] = field(default_factory=list)
    more: bool = False
    """Rows are left over that time has made due: plan again at once."""
    empty: bool = False
    """Nothing happened that a restart would not find again: no transaction is needed."""


def plan(
    partition: int,
    meta: Meta,
    reader: StateReader,
    arrivals: Iterable[Arrival],
    grading: Grading,
    *,
    graded_at: str,
    positions: Mapping[str, int] | None = None,
    at_end_ms: Mapping[str, int] | None = None,
) -> Plan:
    """Plan a batch.

    `positions` are next offsets by topic kind where those lie past transaction markers, `at_end_ms` the broker time at which a topic was
    known to be at its end. `graded_at` is the present time as text, for provenance only. Arrivals below META's offsets are skipped.
    """
    batch = _Batch(partition, meta.copy(), reader, grading, graded_at)
    known = dict(meta.offsets)
    batch.take(arrivals)
    m = batch.meta
    for kind, position in (positions or {}).items():
        m.offsets[kind] = max(m.offsets.get(kind, 0), position)
    m.clock_ms = advanced(m.clock_ms, m.appended, at_end_ms or {})
    batch.evaluate_touched()
    batch.fire_timers()
    batch.release_imports()
    batch.contents.write()
    out = batch.out
    out.empty = not (out.puts or out.deletes or out.drop_index or out.outputs) and m.offsets == known
    return out


@dataclass(slots=True)
class _Entry:
    """A row in the working set, with the bytes it had."""

    row: RowState | None
    before: bytes | None
    gauges: dict[str, int]
    touched: bool = False


class _Batch:
    def __init__(self, partition: int, meta: Meta, reader: StateReader, grading: Grading, graded_at: str) -> None:
        self.meta = meta
        self.out = Plan(partition, meta)
        self._reader = reader
        self._grading = grading
        self._graded_at = graded_at
        self._rows: dict[bytes, _Entry] = {}
        self.contents = Contents(reader, self.out.puts)
        self._emitted_bytes = 0

    def take(self, arrivals: Iterable[Arrival]) -> None:
        """Fold everything that arrived into rows, import states and dead letters."""
        events = []
        for arrival in arrivals:
            if arrival.offset < self.meta.offsets.get(arrival.kind, 0):
                continue
            self.meta.offsets[arrival.kind] = arrival.offset + 1
            self.meta.appended[arrival.kind] = max(self.meta.appended.get(arrival.kind, 0), arrival.append_ms)
            events.append(understand(arrival, self._grading))
        self._load([e.key for e in events if isinstance(e, InteractionEvent | OutcomeEvent | RightsEvent)])
        for event in events:
            match event:
                case Refused():
                    self._refuse(event)
                case MarkerEvent():
                    self._import(event.marker.import_id).see(
                        event.arrival.kind, event.arrival.append_ms, event.marker.phase
                    )
                case PartsEvent():
                    self._parts(event)
                case _:
                    self._fold(event)
        self._touch(self.contents.spread())
        self.out.outputs += self.contents.emissions

    def evaluate_touched(self) -> None:
        """Grade what this batch changed."""
        for key, entry in self._rows.items():
            if entry.touched and self._emitted_bytes > MAX_PART_BYTES and _names_parts(entry.row):
                self._defer(key, entry)
            elif entry.touched:
                self._evaluate(key, entry)

    def fire_timers(self) -> None:
        """Grade the rows whose deadline the clock has passed."""
        self._by_time(self._reader.due(max(self.meta.clock_ms, _DEFERRED_MS + 1)))

    def release_imports(self) -> None:
        """Grade the rows that imports had parked which are over now, and forget those imports."""
        for import_id, state in list(self.meta.imports.items()):
            if state.over(self.meta.clock_ms) and self._by_time(self._reader.parked(parked_prefix(import_id))):
                del self.meta.imports[import_id]

    def _by_time(self, found: Iterator[tuple[bytes, bytes]]) -> bool:
        """Evaluate the rows found; False where some are left for the next batch."""
        size = 0
        chunk: list[tuple[bytes, bytes]] = []
        for rows, pair in enumerate(found):
            if rows >= MAX_ROWS_BY_TIME or size >= MAX_BYTES_BY_TIME:
                self.out.more = True
                return False
            chunk.append(pair)
            if len(chunk) == _CHUNK:
                size += self._evaluate_found(chunk)
                chunk = []
        self._evaluate_found(chunk)
        return True

    def _evaluate_found(self, chunk: list[tuple[bytes, bytes]]) -> int:
        size, emitted = 0, self._emitted_bytes
        self._load([key for _, key in chunk])
        for index_key, key in chunk:
            entry = self._rows[key]
            # a record that moved on leaves its old index key behind when it was rebuilt from the changelog
            self.out.drop_index.append(index_key)
            if entry.row is None or entry.touched or entry.before is None:
                continue
            size += len(entry.before)
            if index_key in index_keys(key, entry.before):
                entry.touched = True
                self._evaluate(key, entry)
            if not entry.touched:
                del self._rows[key]
        return size + self._emitted_bytes - emitted

    def _load(self, keys: list[bytes]) -> None:
        missing = [key for key in dict.fromkeys(keys) if key not in self._rows]
        if missing:
            for key, data in zip(missing, self._reader.get_many(missing), strict=True):
                row = None if data is None else decode(data)
                self._rows[key] = _Entry(row, data, _gauges(row))

    def _parts(self, event: PartsEvent) -> None:
        if event.import_id is not None:
            self._import(event.import_id).see(event.arrival.kind, event.arrival.append_ms)
        if self.contents.add(event.episode_id, event.parts):
            self.meta.count("parts")
        else:
            self.meta.count("duplicates")

    def _touch(self, keys: list[bytes]) -> None:
        """Rows that a part has made whole, or was erased under, are graded with this batch."""
        self._load(keys)
        for key in keys:
            entry = self._rows[key]
            # an index key may be left over from before the row named other parts; then grading it again says nothing new
            entry.touched = entry.touched or entry.row is not None

    def _content(self, row: RowState) -> Availability:
        """Is all there that the row names? Where the parts decide its split group, that is found here."""
        captured = row.captured
        if captured is None or not captured.parts:
            return "whole"
        found = self.contents.availability(row.episode_id, captured.parts, captured.messages)
        if not captured.grouped:
            group = captured.parts[0]
            if found == "whole":
                group = captured.group if captured.group != group else self._group(row.episode_id, captured)
            if group != captured.group:
                row.captured = replace(captured, group=group, side=self._grading.settings.split.side(group))
        return found

    def _group(self, episode_id: str, captured: Captured) -> str:
        """The split group of a row without task, from its messages."""
        interaction = loads(captured.body)
        if captured.messages and not interaction["messages"]:
            return self.contents.group(episode_id, captured.parts[0])
        whole = resolve(interaction, lambda name: self.contents.part(episode_id, name))
        return split_group(None, whole["messages"])

    def _fold(self, event: RowEvent) -> None:
        if event.import_id is not None:
            self._import(event.import_id).see(event.arrival.kind, event.arrival.append_ms)
        match event:
            case InteractionEvent():
                observed_us = event.captured.ended_us
            case OutcomeEvent():
                observed_us = event.seen.observed_us
            case RightsEvent():
                observed_us = event.observed_us
        self.meta.count("clock_ahead", int(observed_us > event.arrival.append_ms * 1000 + 999))
        entry = self._rows[event.key]
        result = fold(entry.row, event, self._grading.settings.workspace)
        for refused in result.refused:
            self._refuse(refused)
        if result.changed:
            entry.row, entry.touched = result.row, True
        elif not result.refused:
            self.meta.count("duplicates")

    def _evaluate(self, key: bytes, entry: _Entry) -> None:
        row = entry.row
        assert row is not None
        content = self._content(row)
        done = evaluate(
            row,
            self._grading,
            self.meta.clock_ms,
            partition=self.out.partition,
            graded_at=self._graded_at,
            import_open=self._import_open,
            workspace=self._grading.settings.workspace,
            content=content,
        )
        for refused in done.refused:
            self._refuse(refused)
        for emission in done.emissions:
            if emission.stream == "graded":
                if content == "whole" and row.captured is not None:
                    parts = self.contents.emit(row.episode_id, row.captured.parts)
                    self._emitted_bytes += sum(len(part.value or b"") for part in parts)
                    self.out.outputs += parts
                self.meta.count("graded")
                self.meta.count("corrections", int(row.revision > 1))
            self.out.outputs.append(emission)
        self._put(key, entry, row)

    def _put(self, key: bytes, entry: _Entry, row: RowState) -> None:
        for name, now in _gauges(row).items():
            self.meta.count(name, now - entry.gauges[name])
        value = encode(row)
        if value == entry.before:
            return
        self.out.puts[key] = value
        if entry.before is not None:
            kept = set(index_keys(key, value))
            self.out.drop_index.extend(k for k in index_keys(key, entry.before) if k not in kept)

    def _defer(self, key: bytes, entry: _Entry) -> None:
        """Grade the row in the next transaction: its timer is due at once."""
        assert entry.row is not None
        entry.row.deadline_ms, entry.row.parked = _DEFERRED_MS, False
        self.out.more = True
        self._put(key, entry, entry.row)

    def _refuse(self, refused: Refused) -> None:
        self.out.outputs.append(dead_letter(refused, self._grading.settings.workspace))
        self.meta.dead_letters[refused.reason] = self.meta.dead_letters.get(refused.reason, 0) + 1

    def _import(self, import_id: str) -> ImportState:
        return self.meta.imports.setdefault(import_id, ImportState())

    def _import_open(self, import_id: str) -> bool:
        state = self.meta.imports.get(import_id)
        return state is not None and not state.over(self.meta.clock_ms)


def _names_parts(row: RowState | None) -> bool:
    return row is not None and row.captured is not None and bool(row.captured.parts)


def _gauges(row: RowState | None) -> dict[str, int]:
    captured = row is not None and row.captured is not None
    return {
        "captured": int(captured),
        "settled": int(captured and row is not None and row.settled),
        "orphans": int(row is not None and not captured),
        "waiting": int(row is not None and row.waiting),
    }
