"""The episodes of one batch: what their steps have in common, and which steps a change makes the join grade anew.

An episode of one step, of which nothing was said as a whole, has no record: its rows are found by their keys when another step comes. What
changes for the other steps goes through a durable list in the episode's record, MAX_ROWS and MAX_BYTES a transaction; the rest follows by a
timer that is due at once. Of an episode that changes all the time the rows that have waited longest come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

from treadle_schemas.errors import KeyErased

from treadle_streams.join.arrivals import Arrival, EpisodeEvent, Refused
from treadle_streams.join.credit import ended_by_word, idle_ms
from treadle_streams.join.episode_state import EpisodeState, Step, decode_episode, encode_episode, step_of
from treadle_streams.join.grading import Grading
from treadle_streams.join.kept import surviving
from treadle_streams.join.ledger import Taken, kept_arrival, take_outcome, take_retract, take_right
from treadle_streams.join.state import NEVER_MS, RowState, Seen, episode_key, index_keys, row_key, row_prefix
from treadle_streams.join.working import Rows

__all__ = ["MAX_BYTES", "MAX_ROWS", "MAX_STEPS", "Episodes"]

MAX_STEPS: Final = 10_000
"""Most interactions of one episode; what comes then is a dead letter `episode_full`."""
MAX_ROWS: Final = 500
MAX_BYTES: Final = 16 * 1024 * 1024
"""Most rows, and bytes of them, that changes of episodes bring into one transaction."""
_CHUNK: Final = 50
_DUE_AT_ONCE_MS: Final = 0


class EpisodeReader(Protocol):
    """What is read of the partition's state."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The records of keys, None where there is none."""
        ...


class Changes(Protocol):
    """What a plan writes."""

    partition: int
    puts: dict[bytes, bytes]
    deletes: list[bytes]
    drop_index: list[bytes]
    more: bool


class Counter(Protocol):
    """What META counts."""

    def count(self, name: str, by: int = 1) -> None:
        """Add to a count."""
        ...


class _Facts(NamedTuple):
    """What the rows of an episode depend on."""

    steps: int = 0
    last: Step | None = None
    first: Step | None = None
    group: str = ""
    taskless: bool = False
    ended: bool = False
    idle_ms: int = NEVER_MS
    said: tuple[Seen, ...] = ()
    rights: tuple[tuple[str, tuple[int, str]], ...] = ()
    erased: bool = False


@dataclass(slots=True)
class _Entry:
    state: EpisodeState | None
    before: bytes | None
    was: _Facts
    """As the batch found it."""
    changed: bool = False
    recount: bool = False
    drained: bool = False
    again_ms: int = 0
    """When to see next whether it is over, although its time is."""


class Episodes:
    """The working set. `group_of` gives the split group of a row by its own messages."""

    def __init__(
        self,
        reader: EpisodeReader,
        rows: Rows,
        out: Changes,
        meta: Counter,
        grading: Grading,
        group_of: Callable[[RowState], str],
    ) -> None:
        self._reader = reader
        self._rows = rows
        self._out = out
        self._meta = meta
        self._grading = grading
        self._group_of = group_of
        self._entries: dict[str, _Entry] = {}
        self.lost: list[str] = []
        """Episodes that were read and whose key was destroyed: they are to be erased."""
        self._of_episodes = {m.name for m in grading.metrics if m.level == "episode"}
        self._spread_rows = self._spread_bytes = 0

    def load(self, episode_ids: Iterable[str]) -> None:
        """Read what is kept of episodes."""
        missing = [name for name in dict.fromkeys(episode_ids) if name not in self._entries]
        if missing:
            found = self._reader.get_many([episode_key(name) for name in missing])
            for name, data in zip(missing, found, strict=True):
                state = None if data is None else decode_episode(data)
                if state is not None and state.version != self._grading.settings.grading_version:
                    self._grading.refit(state.outcomes)
                self._entries[name] = _Entry(state, data, _facts(state))
                if state is not None and state.lost and not state.erased:
                    self.lost.append(name)

    def of(self, row: RowState) -> EpisodeState | None:
        """The episode of a row; None where the row is alone and nothing was said of it as a whole."""
        return self._get(row.episode_id).state

    def erased(self, episode_id: str) -> bool:
        """Is the episode erased?"""
        state = self._get(episode_id).state
        return state is not None and state.erased

    def erase(self, episode_id: str, append_ms: int) -> bool:
        """Erase an episode. False: it was erased before."""
        entry = self._get(episode_id)
        if entry.state is None:
            self._make(entry, episode_id, self._rows.keys_of(episode_id))
        assert entry.state is not None
        changed = entry.state.erase()
        first_ms = min(entry.state.append_ms, append_ms)
        entry.changed = entry.changed or changed or first_ms != entry.state.append_ms
        entry.state.append_ms = first_ms
        return changed

    def full(self, episode_id: str, arrival: Arrival) -> Refused | None:
        """Has the episode all the interactions that it may have?"""
        state = self._get(episode_id).state
        if state is None or state.steps < MAX_STEPS or state.erased:
            return None
        return Refused(arrival, "episode_full", f"the episode has {state.steps} interactions; it takes no more")

    def captured(self, row: RowState) -> None:
        """A row has its interaction, and had none before. It is in the working set."""
        entry = self._get(row.episode_id)
        if entry.state is None:
            own = row.key
            others = [key for key in self._rows.keys_of(row.episode_id) if key != own]
            if not any(other.captured is not None for other in self._rows.each(others)):
                return
            self._make(entry, row.episode_id, others)
        assert entry.state is not None
        entry.state.take_step(row)
        entry.changed = True

    def moved(self, row: RowState) -> None:
        """A row has another interaction than before, or an earlier first copy."""
        entry = self._get(row.episode_id)
        if entry.state is not None:
            entry.changed = entry.recount = True

    def fold(self, event: EpisodeEvent, workspace: str) -> Taken:
        """Take in what is said of an episode as a whole."""
        entry = self._get(event.episode_id)
        if entry.state is None:
            self._make(entry, event.episode_id, self._rows.keys_of(event.episode_id))
        state = entry.state
        assert state is not None
        taken = _take(state, event, workspace)
        first_ms = min(state.append_ms, event.arrival.append_ms)
        if taken.changed and event.import_id is not None:
            state.imports.add(event.import_id)
        entry.changed = entry.changed or taken.changed or first_ms != state.append_ms
        state.append_ms = first_ms
        return taken

    def spread(self, clock_ms: int, import_open: Callable[[str], bool]) -> None:
        """Touch the rows for which this batch changed something, as many as go into one transaction."""
        for entry in list(self._entries.values()):
            self._spread(entry, clock_ms, import_open)

    def refresh(self, key: bytes, clock_ms: int, import_open: Callable[[str], bool]) -> list[bytes]:
        """Bring a kept episode to the present grading version: the keys of rows that are to be graded now."""
        entry = self._get(key[1:].decode())
        if entry.state is None or entry.state.version == self._grading.settings.grading_version:
            return []
        return self._spread(entry, clock_ms, import_open)

    def resume(self, key: bytes) -> list[bytes]:
        """The timer of an episode: the next rows of its list, touched; their keys. Nothing where this batch has been there."""
        episode_id = key[1:].decode()
        entry = self._get(episode_id)
        if entry.state is None or entry.drained or not entry.state.todo:
            return []
        entry.changed = True
        return self._drain(entry)

    def end(self, key: bytes, clock_ms: int, ended: Callable[[bytes], int | None]) -> list[Refused]:
        """The timer of an episode: end it with its last row. What was said of one that never had a row ends as an orphan."""
        episode_id = key[1:].decode()
        entry = self._get(episode_id)
        state = entry.state
        if state is None or entry.before is None or state.todo or clock_ms <= self._ends_ms(state):
            return []
        if entry.changed or any(ended(row) is None for row in self._rows.keys_of(episode_id)):
            entry.changed = True
            entry.again_ms = clock_ms + self._grading.keep_ms
            return []
        self._meta.count("episodes", -1)
        self._meta.count("orphans", -_waits(entry.was))
        self._out.deletes.append(key)
        self._out.drop_index.extend(index_keys(key, entry.before))
        entry.state = None
        if state.steps:
            return []
        workspace, detail = (
            self._grading.settings.workspace,
            f"no interaction of episode {episode_id!r} came in its time",
        )
        said = (kept_arrival(seen, self._out.partition, workspace) for seen in state.outcomes.values())
        return [Refused(arrival, "orphan", detail) for arrival in said]

    def spent(self) -> bool:
        """Has this transaction all the rows that changes of episodes may bring?"""
        return self._spread_rows >= MAX_ROWS or self._spread_bytes >= MAX_BYTES

    def write(self) -> None:
        """Put what changed."""
        for name, entry in self._entries.items():
            if entry.state is None or not entry.changed:
                continue
            if not entry.state.todo:
                entry.state.deadline_ms = max(self._ends_ms(entry.state), entry.again_ms)
            key, value = episode_key(name), _encoded(entry.state)
            self._meta.count("episodes", int(entry.before is None))
            waited = entry.before is not None and _waits(entry.was)
            self._meta.count("orphans", _waits(_facts(entry.state)) - waited)
            # the timer that was found is dropped, also where the transaction was full before it came to this list
            if value != entry.before or entry.state.todo:
                self._out.puts[key] = value
                if entry.before is not None:
                    kept = index_keys(key, value)
                    self._out.drop_index.extend(k for k in index_keys(key, entry.before) if k not in kept)

    def _ends_ms(self, state: EpisodeState) -> int:
        """The clock after which it ends: just behind its latest row, or what was said of it last."""
        said_ms = 0 if state.append_ms == NEVER_MS else state.append_ms
        newest_ms = max([state.appended_ms, said_ms, *(seen.append_ms for seen in state.outcomes.values())])
        return min(newest_ms + self._grading.keep_ms + 1, NEVER_MS)

    def _get(self, episode_id: str) -> _Entry:
        if episode_id not in self._entries:
            self.load([episode_id])
        return self._entries[episode_id]

    def _make(self, entry: _Entry, episode_id: str, rows: Sequence[bytes]) -> None:
        """The record of an episode that had none, from its rows so far."""
        state = EpisodeState(episode_id, version=self._grading.settings.grading_version)
        for row in self._rows.each(rows):
            if row.captured is not None:
                state.take_step(row)
        entry.state = state
        self._regroup(state, _Facts())
        entry.was = _facts(state)

    def _first_has_parts(self, state: EpisodeState) -> bool:
        """Did parts come or go that decide the split group of the episode?"""
        if not state.taskless or state.first is None or state.erased:
            return False
        entry = self._rows.entries.get(row_key(state.episode_id, state.first.interaction_id))
        if entry is None or not entry.touched or entry.row is None or entry.row.captured is None:
            return False
        return bool(entry.row.captured.parts)

    def _regroup(self, state: EpisodeState, was: _Facts) -> None:
        if not state.taskless or state.first is None or state.erased:
            state.group = ""
        elif not state.group or state.first != was.first or self._first_has_parts(state):
            for first in self._rows.each([row_key(state.episode_id, state.first.interaction_id)]):
                state.group = self._group_of(first)

    def _list(self, entry: _Entry, state: EpisodeState, clock_ms: int) -> None:
        """Put the rows to be graded anew on the episode's list."""
        after: dict[str, int] = {}
        match self._changed(entry, state, clock_ms):
            case "none":
                return
            case "ends":
                after = {step.interaction_id: 0 for step in (entry.was.last, state.last) if step is not None}
            case "all":
                keys = self._rows.keys_of(state.episode_id)
                start = len(row_prefix(state.episode_id))
                after = {key[start:].decode(): 0 for key in keys}
                if self._grading.settings.credit.rule == "discounted":
                    steps = sorted(step_of(r, r.captured) for r in self._rows.each(keys) if r.captured is not None)
                    after |= {step.interaction_id: n for n, step in enumerate(reversed(steps))}
        listed = dict(state.todo)
        state.todo = list((listed | after).items())

    def _changed(self, entry: _Entry, state: EpisodeState, clock_ms: int) -> Literal["none", "ends", "all"]:
        """Which of the other rows may now be graded otherwise."""
        was, now = entry.was, _facts(state)
        if was.erased:  # what comes to it is empty, and changes no other row
            return "none"
        if state.erased or state.version != self._grading.settings.grading_version or was.rights != now.rights:
            return "all"
        if was.taskless and was.group != now.group:
            return "all"
        if self._of_episodes:
            if was.ended != now.ended:
                return "all"
            # a later end by idleness needs no word: a row's timer finds that it is not over yet
            if not now.ended and was.idle_ms != now.idle_ms and (clock_ms > was.idle_ms or now.idle_ms < was.idle_ms):
                return "all"
        if not (was.said or now.said):
            return "none"
        said_anew = was.said != now.said
        if self._grading.settings.credit.rule == "last":
            names = {s.name for s in was.said} ^ {s.name for s in now.said}
            if names & self._of_episodes:
                return "all"
        elif said_anew or (
            self._grading.settings.credit.rule == "discounted" and (was.steps != now.steps or entry.recount)
        ):
            return "all"
        return "ends" if said_anew or was.last != now.last else "none"

    def _spread(self, entry: _Entry, clock_ms: int, import_open: Callable[[str], bool]) -> list[bytes]:
        version = self._grading.settings.grading_version
        state = entry.state
        if state is None or not (entry.changed or state.version != version or self._first_has_parts(state)):
            return []
        if entry.recount:
            first = state.first
            state.forget_steps()
            state.group = ""  # the first step may say something else now
            for row in self._rows.each(self._rows.keys_of(state.episode_id)):
                if row.captured is not None:
                    state.take_step(row)
            if first is not None and self._rows.get(row_key(state.episode_id, first.interaction_id)).row is None:
                # it ended, and stays the first
                state.first = first if state.first is None else min(first, state.first)
        state.imports = {name for name in state.imports if import_open(name)}
        self._regroup(state, entry.was)
        self._list(entry, state, clock_ms)
        state.version = version
        entry.changed = True
        return self._drain(entry)

    def _drain(self, entry: _Entry) -> list[bytes]:
        """Touch the next rows of the list, within what one transaction may bring."""
        state = entry.state
        assert state is not None
        entry.drained = True
        done = 0
        touched: list[bytes] = []
        while done < len(state.todo) and not self.spent():
            chunk = state.todo[done : done + min(_CHUNK, MAX_ROWS - self._spread_rows)]
            keys = [row_key(state.episode_id, name) for name, _ in chunk]
            self._rows.load(keys)
            for key, (_, after) in zip(keys, chunk, strict=True):
                if self.spent():
                    break
                done += 1
                found = self._rows.entries[key]
                if found.row is None or (found.row.captured is None and not state.erased):
                    continue
                found.row.after = after
                if not found.touched:
                    found.touched = True
                    touched.append(key)
                    self._spread_rows += 1
                    self._spread_bytes += len(found.before or b"")
        state.todo = state.todo[done:]
        state.deadline_ms = _DUE_AT_ONCE_MS if state.todo else NEVER_MS
        self._out.more = self._out.more or bool(state.todo)
        return touched


def _encoded(state: EpisodeState) -> bytes:
    try:
        return encode_episode(state)
    except KeyErased:  # destroyed while this batch was planned
        state.erase()
        return encode_episode(state)


def _take(state: EpisodeState, event: EpisodeEvent, workspace: str) -> Taken:
    arrival = event.arrival
    match event.op:
        case "end":
            ended_us = min(event.observed_us, arrival.append_ms * 1000 + 999)
            changed = ended_us > state.end_us
            state.end_us = max(state.end_us, ended_us)
            return Taken(changed)
        case "erase":
            return Taken(state.erase())
        case "right":
            return take_right(state, event.right, event.observed_us, event.value)
        case "retract":
            assert event.seen is not None
            return take_retract(state, event.seen.name, event.seen.outcome_id, event.observed_us, arrival)
        case "set":
            assert event.seen is not None
            return take_outcome(state, event.seen, arrival, workspace)


def _facts(state: EpisodeState | None) -> _Facts:
    if state is None:
        return _Facts()
    if state.erased:
        return _Facts(state.steps, erased=True)
    said = tuple(surviving(state)) if state.outcomes else ()
    rights = tuple(sorted(state.rights.items()))
    ended = ended_by_word(state)
    return _Facts(
        state.steps, state.last, state.first, state.group, state.taskless, ended, idle_ms(state), said, rights
    )


def _waits(facts: _Facts) -> bool:
    """Do outcomes wait for the episode's first interaction?"""
    return not facts.steps and bool(facts.said)
