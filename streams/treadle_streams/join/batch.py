"""The steps of planning one batch: arrivals into rows, what this and time have changed graded, all of it into one Plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, Literal

import msgspec
from treadle_schemas.errors import KeyErased

from treadle_streams.join.arrivals import (
    AnnouncementEvent,
    Arrival,
    EpisodeEvent,
    GoneEvent,
    InteractionEvent,
    MarkerEvent,
    OutcomeEvent,
    PartsEvent,
    Refused,
    RightsEvent,
    RowEvent,
    as_written,
    understand,
)
from treadle_streams.join.clock import IMPORT_PATIENCE_MS, ImportState
from treadle_streams.join.contents import Availability, Contents
from treadle_streams.join.emissions import dead_letter
from treadle_streams.join.episodes import Episodes
from treadle_streams.join.erasing import forget
from treadle_streams.join.fold import evaluate, fold, unsettled
from treadle_streams.join.grading import Grading
from treadle_streams.join.grouping import Grouping
from treadle_streams.join.ledger import kept_arrival
from treadle_streams.join.meta import Meta
from treadle_streams.join.planned import Plan, StateReader
from treadle_streams.join.references import ByName, Names
from treadle_streams.join.regrade import go_on
from treadle_streams.join.retention import Endings, late, row_ends_ms, take_orphans
from treadle_streams.join.state import (
    EPISODES,
    KEPT_PARTS,
    NAMES,
    NEVER_MS,
    ROWS,
    TOMBSTONES,
    RowState,
    encode,
    index_keys,
    name_key,
    nothing_of,
    parked_prefix,
)
from treadle_streams.join.working import GAUGES, Entry, Rows, gauges_of

__all__ = ["Batch"]

MAX_ROWS_BY_TIME: Final = 500
"""Most rows that timers and ended imports bring into one transaction; the rest follow in the next."""
MAX_BYTES_BY_TIME: Final = 16 * 1024 * 1024
MAX_PART_BYTES: Final = 32 * 1024 * 1024
"""Most bytes of parts that the rows of a batch bring to `.graded` in its transaction: two thousand outcomes may settle as many long
episodes at once. The rows beyond it follow in the next transactions, as rows whose time is up."""
_CHUNK: Final = 50
_DEFERRED_MS: Final = 0
"""A deadline that every clock has passed."""


class Batch:
    """One batch of one partition while it is planned: each method is a step of `plan`, `out` what has come of them."""

    def __init__(self, partition: int, meta: Meta, reader: StateReader, grading: Grading, graded_at: str) -> None:
        self.meta = meta
        self.out = Plan(partition, meta)
        self._reader = reader
        self._grading = grading
        self._graded_at = graded_at
        self._rows = Rows(reader)
        self.contents = Contents(reader, self.out.puts)
        self._grouping = Grouping(self.contents, grading.settings.split)
        self.episodes = Episodes(reader, self._rows, self.out, meta, grading, self._grouping.of_messages)
        self.names = Names(reader, self.out, meta, grading)
        self.endings = Endings(reader, self.out, meta, grading.keep_ms)
        self._by_name = ByName(self.names, grading, self._row, self.endings, self._fold, self._refuse)
        self._emitted_bytes = 0
        self._replaying = meta.restore is not None and meta.restore.replaying(meta.offsets)
        """Is lost state being rebuilt? Then nothing is graded before all of it is there."""
        self._known = False
        """Had the lost state taken the present event in? Then what it has to say is on the log."""

    def close(self) -> None:
        """Let go of what refers back to it. Else all records of the batch wait for a garbage collection."""
        del self._by_name

    def take(self, arrivals: Iterable[Arrival]) -> None:
        """Fold everything that arrived into rows, import states and dead letters."""
        events = []
        for arrival in arrivals:
            if arrival.offset < self.meta.offsets.get(arrival.kind, 0):
                continue
            self.meta.offsets[arrival.kind] = arrival.offset + 1
            self.meta.appended[arrival.kind] = max(self.meta.appended.get(arrival.kind, 0), arrival.append_ms)
            events.append(understand(arrival, self._grading))
        named = [e for e in events if isinstance(e, AnnouncementEvent | InteractionEvent | OutcomeEvent | RightsEvent)]
        self.names.load(e.named for e in named if e.named)
        about_rows = [e for e in named if e.key.startswith(ROWS)]
        self._rows.load(e.key for e in about_rows)
        self.endings.load(e.key for e in about_rows if self._rows.entries[e.key].row is None)
        self.episodes.load(
            e.episode_id
            for e in events
            if isinstance(e, InteractionEvent | OutcomeEvent | RightsEvent | EpisodeEvent)
            and not e.key.startswith(NAMES)
        )
        for name in self.episodes.lost:
            self._erase(name, self.meta.clock_ms)
        for row in list(self._rows.lost):
            self._erase(row.episode_id, row.append_ms)
        restore = self.meta.restore
        for event in events:
            self._known = restore is not None and restore.known(event.arrival.kind, event.arrival.offset)
            match event:
                case Refused():
                    self._refuse(event)
                case MarkerEvent():
                    self._import(event.marker.import_id).see(
                        event.arrival.kind, event.arrival.append_ms, event.marker.phase
                    )
                case PartsEvent():
                    self._parts(event)
                case GoneEvent():
                    self.meta.count("came_erased")
                case EpisodeEvent():
                    self._said_of_episode(event)
                case AnnouncementEvent():
                    self._by_name.announced(event)
                case _:
                    self._take(event)
        self._known = False
        self.names.serve()
        # an index key may be left over from before a row named other parts; then grading it again says nothing new
        self._rows.touch(self.contents.spread())
        self._flush_contents()

    def _flush_contents(self) -> None:
        self.out.outputs += self.contents.emissions
        self.contents.emissions.clear()

    def evaluate_touched(self) -> None:
        """Grade what this batch changed."""
        self.episodes.load(entry.row.episode_id for entry in self._rows.entries.values() if entry.touched and entry.row)
        self.episodes.spread(self.meta.clock_ms, self._import_open)
        for key, entry in list(self._rows.entries.items()):
            self._forget_erased(entry)
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

    def sweep(self) -> None:
        """Grade all rows, some in each transaction, when lost state is there again."""
        restore = self.meta.restore
        if restore is None or restore.replaying(self.meta.offsets):
            return
        if self._replaying:
            self.out.more = True
            return
        keys = self._reader.keys(ROWS, restore.cursor, MAX_ROWS_BY_TIME)
        self._rows.load(keys)
        for key in keys:
            entry = self._rows.entries[key]
            if entry.row is not None and not entry.touched:
                entry.touched = True
                self._evaluate(key, entry)
            restore.cursor = key
        if len(keys) < MAX_ROWS_BY_TIME:
            self.meta.restore = None
            self.meta.count("restored")
        else:
            self.out.more = True

    def regrade(self) -> None:
        """Grade some kept rows anew where the grading settings have changed."""
        if self.meta.restore is None:
            version = self._grading.settings.grading_version
            go_on(self.meta, version, self._reader, self._rows, self.out, self._regrade_episode, self._evaluate)

    def _regrade_episode(self, key: bytes) -> None:
        for row_key in self.episodes.refresh(key, self.meta.clock_ms, self._import_open):
            self._evaluate(row_key, self._rows.entries[row_key])

    def _by_time(self, found: Iterator[tuple[bytes, bytes]]) -> bool:
        """Evaluate the rows found; False where some are left for the next batch."""
        size = rows = 0
        while chunk := list(islice(found, min(_CHUNK, MAX_ROWS_BY_TIME - rows))):
            size += self._evaluate_found(chunk)
            rows += len(chunk)
            if rows >= MAX_ROWS_BY_TIME or size >= MAX_BYTES_BY_TIME:
                self.out.more = True
                return False
        return True

    def _evaluate_found(self, chunk: list[tuple[bytes, bytes]]) -> int:
        size, emitted = 0, self._emitted_bytes
        self._rows.load(key for _, key in chunk if key.startswith(ROWS))
        for index_key, key in chunk:
            # a record that moved on leaves its old index key behind when it was rebuilt from the changelog
            self.out.drop_index.append(index_key)
            if not key.startswith(ROWS):
                size += self._due(key)
                continue
            entry = self._rows.entries[key]
            if entry.row is None or entry.touched or entry.before is None:
                continue
            size += len(entry.before)
            if index_key in index_keys(key, entry.before):
                entry.touched = True
                self._evaluate(key, entry)
        # not in the loop: a row may have been found by an old timer and by its own
        for _, key in chunk:
            known = self._rows.entries.get(key)
            if known is not None and not known.touched:
                del self._rows.entries[key]
        return size + self._emitted_bytes - emitted

    def _due(self, key: bytes) -> int:
        """The timer of what is no row; bytes read."""
        size = 0
        if key.startswith(EPISODES):
            size = self._go_on_with_episode(key)
            for orphan in self.episodes.end(key, self.meta.clock_ms, self.endings.ended):
                self._refuse(orphan)
        elif key.startswith(NAMES):
            size, orphans = self.names.due(key, self.meta.clock_ms)
            for orphan in orphans:
                self._refuse(orphan)
        elif key.startswith(TOMBSTONES):
            self.endings.end_tombstone(key)
        elif key.startswith(KEPT_PARTS):
            size = self.endings.parts_due(
                key, self.meta.clock_ms, self._rows.keys_of, self.episodes.erased, self.contents.ended
            )
            episode_id = key[1:].decode()
            self.out.erased += [episode_id] if self.episodes.erased(episode_id) else []
            self._flush_contents()
        return size

    def _go_on_with_episode(self, key: bytes) -> int:
        """Grade the next rows of an episode's list; bytes read."""
        size = 0
        for row_key in self.episodes.resume(key):
            entry = self._rows.entries[row_key]
            size += len(entry.before or b"")
            self._evaluate(row_key, entry)
        return size

    def _parts(self, event: PartsEvent) -> None:
        if event.import_id is not None:
            self._import(event.import_id).see(event.arrival.kind, event.arrival.append_ms)
        if self.episodes.erased(event.episode_id):
            self.meta.count("came_erased")
        elif self.contents.add(event.episode_id, event.parts, event.key_id):
            self.endings.parts_came(event.episode_id, event.arrival.append_ms)
            self.meta.count("parts")
        else:
            self.meta.count("duplicates")

    def _take(self, event: RowEvent) -> None:
        if event.import_id is not None:
            self._import(event.import_id).see(event.arrival.kind, event.arrival.append_ms)
        match event:
            case InteractionEvent():
                observed_us = event.captured.ended_us
            case OutcomeEvent():
                observed_us = event.seen.observed_us
            case RightsEvent():
                observed_us = event.observed_us
        self._see_clock(event.arrival, observed_us)
        if event.key.startswith(ROWS) and self._take_erased(event):
            return
        if isinstance(event, InteractionEvent):
            said = self._by_name.interaction(event)
            self.out.outputs += [] if self._known else said
        elif event.named:
            self._by_name.outcome(event)
        else:
            self._fold(event)

    def _take_erased(self, event: RowEvent) -> bool:
        """Is the event one of an erased episode? Then nothing is kept of it, of an interaction but that there was one."""
        if isinstance(event, InteractionEvent) and event.erased:
            self._erase(event.episode_id, event.arrival.append_ms)
        if not self.episodes.erased(event.episode_id):
            return False
        self.meta.count("came_erased")
        if isinstance(event, InteractionEvent):
            left = nothing_of(event.captured, event.episode_id, event.interaction_id)
            self._fold(msgspec.structs.replace(event, captured=left, import_id=None, references=(), named=b""))
        return True

    def _erase(self, episode_id: str, append_ms: int) -> bool:
        changed = self.episodes.erase(episode_id, append_ms)
        if changed:
            self.meta.count("erased_episodes")
            self.out.erased.append(episode_id)
            self.endings.parts_erased(episode_id)
            self.names.erase(name_key("interaction", episode_id))
        return changed

    def _forget_erased(self, entry: Entry) -> None:
        row = entry.row
        if not entry.touched or row is None:
            return
        if row.lost:
            self._erase(row.episode_id, row.append_ms)
        if not self.episodes.erased(row.episode_id):
            return
        if forget(row):
            self.meta.count("erased")
            self.out.erased.append(row.episode_id)

    def _fold(self, event: RowEvent) -> None:
        """Take an event into its row."""
        entry = self._rows.entries[event.key]
        if self._too_late(event, entry):
            return
        old = None if entry.row is None else entry.row.captured
        first_ms = NEVER_MS if entry.row is None else entry.row.append_ms
        if isinstance(event, InteractionEvent) and old is None:
            refused_as_full = self.episodes.full(event.episode_id, event.arrival)
            if refused_as_full is not None:
                self._refuse(refused_as_full)
                return
        result = fold(entry.row, event, self._grading.settings.workspace)
        for refused in result.refused:
            self._refuse(refused)
        if result.changed:
            if entry.row is None:
                self._rows.made(event.episode_id, event.key)
            entry.row, entry.touched = result.row, True
            if isinstance(event, InteractionEvent):
                if old is None:
                    self.episodes.captured(result.row)
                elif result.row.captured is not old or result.row.append_ms != first_ms:
                    self.episodes.moved(result.row)
        elif not result.refused:
            self.meta.count("duplicates")

    def _too_late(self, event: RowEvent, entry: Entry) -> bool:
        """Is the row's time over for this event? What waited too long for the event ends here as well."""
        keep_ms, row = self._grading.keep_ms, entry.row
        if row is not None and row.captured is None and isinstance(event, InteractionEvent):
            self._end_orphans(row, event.arrival.append_ms - keep_ms)
        ended = self.endings.ended(event.key) is not None
        reason: Literal["row_expired", "orphan"] | None = "row_expired" if ended else None
        if row is not None and reason is None:
            reason = late(row, event.arrival.append_ms, keep_ms)
        if reason is not None:
            detail = f"appended more than {keep_ms / 86_400_000:g} d apart from the interaction's first copy"
            self._refuse(Refused(event.arrival, reason, detail))
        return reason is not None

    def _end_orphans(self, row: RowState, bound_ms: int) -> None:
        for seen in take_orphans(row, bound_ms):
            arrival = kept_arrival(seen, self.out.partition, self._grading.settings.workspace)
            self._refuse(Refused(arrival, "orphan", f"interaction {row.interaction_id!r} did not come in its time"))

    def _row(self, key: bytes) -> RowState | None:
        return self._rows.entries[key].row

    def _said_of_episode(self, event: EpisodeEvent) -> None:
        if event.import_id is not None:
            self._import(event.import_id).see(event.arrival.kind, event.arrival.append_ms)
        self._see_clock(event.arrival, event.observed_us)
        if event.op == "erase":
            self.meta.count("duplicates", int(not self._erase(event.episode_id, event.arrival.append_ms)))
            return
        if self.episodes.erased(event.episode_id):
            self.meta.count("came_erased")
            return
        taken = self.episodes.fold(event, self._grading.settings.workspace)
        for refused in taken.refused:
            self._refuse(refused)
        if not (taken.changed or taken.refused):
            self.meta.count("duplicates")

    def _see_clock(self, arrival: Arrival, observed_us: int) -> None:
        self.meta.count("clock_ahead", int(observed_us > arrival.append_ms * 1000 + 999))

    def _evaluate(self, key: bytes, entry: Entry) -> None:
        row = entry.row
        if row is None:  # it ended in this batch
            return
        self._forget_erased(entry)
        if self._replaying:
            self._keep(key, entry, row)
            return
        if row.captured is None and row.revision:
            # a seed whose interaction is not on the log any more
            self._end(key, entry)
            self.endings.end_row(row, entry.before)
            return
        try:
            self._graded(key, entry, row)
        except KeyErased:  # of a part that it names
            self._erase(row.episode_id, row.append_ms)
            self._forget_erased(entry)
            self._graded(key, entry, row)

    def _graded(self, key: bytes, entry: Entry, row: RowState) -> None:
        episode = self.episodes.of(row)
        gone = episode is not None and episode.erased
        content: Availability = "erased" if gone else self._grouping.prepare(row, episode)
        done = evaluate(
            row,
            self._grading,
            self.meta.clock_ms,
            partition=self.out.partition,
            graded_at=self._graded_at,
            import_open=self._import_open,
            workspace=self._grading.settings.workspace,
            content=content,
            episode=episode,
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
        self._keep(key, entry, row)

    def _keep(self, key: bytes, entry: Entry, row: RowState) -> None:
        """Put the row, or end it when its time is over."""
        keep_ms, clock_ms = self._grading.keep_ms, self.meta.clock_ms
        if row.captured is None and not row.revision:
            self._end_orphans(row, clock_ms - keep_ms)
            ends_ms = row_ends_ms(row, keep_ms)
            if clock_ms > ends_ms:
                self._end(key, entry)
                self.endings.end_orphan(key, entry.before)
                return
        else:
            ends_ms = row_ends_ms(row, keep_ms)
            if clock_ms > ends_ms and row.imports:
                ends_ms = clock_ms + IMPORT_PATIENCE_MS
            elif clock_ms > ends_ms:
                if row.captured is not None and not row.settled and not self._replaying:
                    self._refuse(unsettled(row, row.captured, self.out.partition, self._grading.settings.workspace))
                self._end(key, entry)
                self.endings.end_row(row, entry.before)
                return
        if not row.parked:
            row.deadline_ms = min(row.deadline_ms, ends_ms)
        self._put(key, entry, row)

    def _end(self, key: bytes, entry: Entry) -> None:
        self._gauge(entry, None)
        self.out.puts.pop(key, None)
        entry.row = None

    def _put(self, key: bytes, entry: Entry, row: RowState) -> None:
        self._gauge(entry, row)
        value = self._encoded(row)
        if value == entry.before:
            return
        self.out.puts[key] = value
        if entry.before is not None:
            old, new = index_keys(key, entry.before), index_keys(key, value)
            if old != new:
                self.out.drop_index.extend(k for k in old if k not in new)

    def _encoded(self, row: RowState) -> bytes:
        try:
            return encode(row)
        except KeyErased:
            # destroyed while this batch was planned: what was said of the row a moment ago is erased by its next evaluation
            self._erase(row.episode_id, row.append_ms)
            forget(row)
            self.out.more = True
            return encode(row)

    def _gauge(self, entry: Entry, row: RowState | None) -> None:
        now = gauges_of(row)
        if now != entry.gauges:
            for name, was, value in zip(GAUGES, entry.gauges, now, strict=True):
                self.meta.count(name, value - was)

    def _defer(self, key: bytes, entry: Entry) -> None:
        """Grade the row in the next transaction: its timer is due at once."""
        assert entry.row is not None
        entry.row.deadline_ms, entry.row.parked = _DEFERRED_MS, False
        self.out.more = True
        self._put(key, entry, entry.row)

    def _refuse(self, refused: Refused) -> None:
        if self._known:
            return
        key = refused.arrival.key
        if key and self.episodes.erased(key.decode(errors="replace")):
            self.meta.count("came_erased")
            return
        refused = msgspec.structs.replace(refused, arrival=as_written(refused.arrival))
        self.out.outputs.append(dead_letter(refused, self._grading.settings.workspace))
        self.meta.dead_letters[refused.reason] = self.meta.dead_letters.get(refused.reason, 0) + 1

    def _import(self, import_id: str) -> ImportState:
        return self.meta.imports.setdefault(import_id, ImportState())

    def _import_open(self, import_id: str) -> bool:
        state = self.meta.imports.get(import_id)
        return state is not None and not state.over(self.meta.clock_ms)


def _names_parts(row: RowState | None) -> bool:
    return row is not None and row.captured is not None and bool(row.captured.parts)
