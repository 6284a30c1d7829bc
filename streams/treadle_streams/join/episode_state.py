"""The state of an episode as a whole, and its bytes: what was said of it, where its steps begin and end, and the steps left to grade anew.

    E (1 byte) | deadline in ms (8 bytes, big endian) | JSON

Only episodes of more than one step, and those with an outcome, a right or an end of their own, have one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from treadle_schemas.canonical import loads
from treadle_schemas.errors import FieldError, KeyErased

from treadle_streams.join.errors import StateError
from treadle_streams.join.sealed import open_text, seal_text
from treadle_streams.join.state import (
    EPISODES,
    NEVER_MS,
    Captured,
    RowState,
    Seen,
    episode_key,
    json_bytes,
    pack_outcomes,
    unpack_outcomes,
)

__all__ = ["EpisodeState", "Step", "decode_episode", "encode_episode", "is_erased_episode", "started_us", "step_of"]

_HEAD = struct.Struct(">cQ")
_KIND: Final = b"E"


class Step(NamedTuple):
    """A step's place in its episode: they are ordered so."""

    step: int
    started_us: int
    interaction_id: str


@dataclass(slots=True)
class EpisodeState:
    """Everything kept of an episode beside its rows. `first`, `last` and what follows them say what its rows say, in short."""

    episode_id: str
    steps: int = 0
    """Its interactions."""
    first: Step | None = None
    last: Step | None = None
    group: str = ""
    """The split group of its rows without task: that of the first step's messages. Empty while all rows have one."""
    taskless: bool = False
    """Has any of its rows no task?"""
    started_us: int = -NEVER_MS
    """When its latest interaction started, by a clock that is not ahead of the broker's."""
    appended_ms: int = 0
    """Append time of the latest interaction's first copy."""
    end_us: int = -NEVER_MS
    """When it ended, by the latest word."""
    append_ms: int = NEVER_MS
    """Append time of the first thing that was said of it as a whole."""
    outcomes: dict[str, Seen] = field(default_factory=dict)
    retracted_ids: set[tuple[str, str]] = field(default_factory=set)
    retracted_until: dict[str, int] = field(default_factory=dict)
    outcome_bytes: int = 0
    rights: dict[str, tuple[int, str]] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)
    """Imports that said something of it and were not known to be over."""
    version: int = 1
    """The grading version by which its rows have what falls to them."""
    todo: list[tuple[str, int]] = field(default_factory=list)
    """Rows still to be graded anew, and the steps after each."""
    deadline_ms: int = NEVER_MS
    erased: bool = False
    """For good: its rows are empty, and whatever is said in it or of it is not kept."""
    lost: bool = False
    """As it was read: the key of what was said of it was destroyed, so it is to be erased."""

    @property
    def key(self) -> bytes:
        """Its key inside its partition."""
        return episode_key(self.episode_id)

    def take_step(self, row: RowState) -> None:
        """Count an interaction in. The order in which they come does not matter."""
        captured = row.captured
        assert captured is not None
        step = step_of(row, captured)
        self.steps += 1
        self.first = step if self.first is None else min(self.first, step)
        self.last = step if self.last is None else max(self.last, step)
        self.taskless = self.taskless or captured.task_id is None
        self.started_us = max(self.started_us, started_us(row, captured))
        self.appended_ms = max(self.appended_ms, row.append_ms)

    def erase(self) -> bool:
        """Nothing that was said of it is kept. False: it was erased before."""
        if self.erased:
            return False
        self.erased = True
        _nothing_said(self)
        return True

    def forget_steps(self) -> None:
        """Before all of them are counted anew."""
        self.steps, self.first, self.last, self.taskless = 0, None, None, False
        self.started_us, self.appended_ms = -NEVER_MS, 0


def _nothing_said(state: EpisodeState) -> None:
    state.outcomes.clear()
    state.retracted_ids.clear()
    state.retracted_until.clear()
    state.rights.clear()
    state.imports.clear()
    state.outcome_bytes, state.group, state.end_us = 0, "", -NEVER_MS


def step_of(row: RowState, captured: Captured) -> Step:
    """Where a row stands in its episode."""
    return Step(captured.step, captured.started_us, row.interaction_id)


def started_us(row: RowState, captured: Captured) -> int:
    """When it started; never after it was appended, whatever its maker's clock says."""
    return min(captured.started_us, row.append_ms * 1000 + 999)


def encode_episode(state: EpisodeState) -> bytes:
    """The bytes of an episode. Raises KeyErased where the key that is to seal it was destroyed."""
    outcomes: Any = pack_outcomes(state.outcomes)
    key_id = next((seen.key_id for seen in state.outcomes.values() if seen.key_id), "")
    if key_id:
        outcomes = seal_text(outcomes, json_bytes(outcomes), key_id, state.key)
    return _HEAD.pack(_KIND, min(state.deadline_ms, NEVER_MS)) + json_bytes(
        [
            1,  # version of this layout
            state.episode_id,
            state.steps,
            None if state.first is None else tuple(state.first),  # orjson writes no named tuples
            None if state.last is None else tuple(state.last),
            state.group,
            state.taskless,
            state.started_us,
            state.appended_ms,
            state.end_us,
            state.append_ms,
            outcomes,
            sorted(state.retracted_ids),
            state.retracted_until,
            state.outcome_bytes,
            state.rights,
            sorted(state.imports),
            state.version,
            state.todo,
            *((True,) if state.erased else ()),
        ]
    )


def is_erased_episode(key: bytes, value: bytes) -> bool:
    """Is it the record of an erased episode? Without decoding it: the mark is the last element."""
    return key.startswith(EPISODES) and value.endswith(b",true]")


def decode_episode(data: bytes) -> EpisodeState:
    """The episode of `encode_episode`. Raises StateError for other bytes."""
    try:
        kind, deadline_ms = _HEAD.unpack_from(data)
        h = loads(data[_HEAD.size :])
        if kind != _KIND or h[0] != 1:
            raise StateError(f"an episode of layout {h[0]!r}, type {kind!r}: this treadle reads layout 1")
        lost, outcomes = False, h[11]
        if isinstance(outcomes, str):  # sealed
            try:
                outcomes = open_text(outcomes, episode_key(h[1]))
            except KeyErased:
                lost, outcomes = True, []
        return EpisodeState(
            lost=lost,
            episode_id=h[1],
            steps=h[2],
            first=None if h[3] is None else Step(*h[3]),
            last=None if h[4] is None else Step(*h[4]),
            group=h[5],
            taskless=h[6],
            started_us=h[7],
            appended_ms=h[8],
            end_us=h[9],
            append_ms=h[10],
            outcomes=unpack_outcomes(outcomes),
            retracted_ids={(name, outcome_id) for name, outcome_id in h[12]},
            retracted_until=h[13],
            outcome_bytes=h[14],
            rights={name: (at, said) for name, (at, said) in h[15].items()},
            imports=set(h[16]),
            version=h[17],
            todo=[(name, after) for name, after in h[18]],
            deadline_ms=deadline_ms,
            erased=len(h) > 19 and h[19],
        )
    except (struct.error, FieldError, IndexError, TypeError, KeyError, AttributeError) as err:
        raise StateError(f"{data[:40]!r}... is no episode of the join: {err}") from err
