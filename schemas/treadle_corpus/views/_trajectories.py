"""Steps of an episode that extend one another become one trajectory.

An agent that resends its growing history logs every turn many times. Here each turn belongs to the step that said it first, and each step
to the trajectory that it continues, so a turn is in exactly one trajectory as something to train on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from treadle_schemas.moments import to_micros

from treadle_corpus.reader import CorpusRow
from treadle_corpus.views._examples import Messages, Tools

__all__ = ["Step", "Trajectory", "slot_of", "trajectories"]

RECENT_STEPS = 64
"""A step is compared with so many steps before it: an episode interleaves few conversations, and the search stays linear."""


@dataclass(frozen=True, slots=True)
class Step:
    """One row, and the indices of the messages that it said first: its marks, or without marks its new assistant turns."""

    row: CorpusRow
    own: tuple[int, ...]
    known: int
    """So many messages were there before, in the step that it extends."""

    @property
    def messages(self) -> Messages:
        """The messages of the row."""
        messages: Messages = self.row.interaction["messages"]
        return messages


@dataclass(slots=True)
class Trajectory:
    """Steps of one episode and slot, each extending the one before. A branch off another trajectory has only its own steps."""

    steps: list[Step] = field(default_factory=list)
    said: set[int] = field(default_factory=set)
    """Indices of messages that some step of it, or of what it branched off, said."""

    @property
    def row(self) -> CorpusRow:
        """The last step, whose messages are those of all and whose reward is that of the whole."""
        return self.steps[-1].row

    @property
    def messages(self) -> Messages:
        """The messages of the last step."""
        return self.steps[-1].messages

    @property
    def tools(self) -> Tools:
        """The tools of the last step, equal in all steps."""
        tools: Tools = self.row.interaction.get("tools")
        return tools

    @property
    def own(self) -> list[int]:
        """Indices of what its steps said."""
        return sorted(i for step in self.steps for i in step.own)


def trajectories(rows: Iterable[CorpusRow]) -> list[Trajectory]:
    """Every row in exactly one trajectory; ordered by episode, slot, and the order of first steps."""
    ordered = sorted(rows, key=lambda row: (row.episode_id, slot_of(row), *_step_order(row)))
    out: list[Trajectory] = []
    for _, episode in groupby(ordered, key=lambda row: (row.episode_id, slot_of(row))):
        recent: deque[tuple[Trajectory, Step]] = deque(maxlen=RECENT_STEPS)
        for row in episode:
            found = _extended(recent, row)
            if found is None:
                trajectory, known = Trajectory(), 0
            else:
                trajectory, before = found
                known = len(before.messages)
                if before is not trajectory.steps[-1]:  # another step went on from there already
                    trajectory = Trajectory(said={i for i in trajectory.said if i < known})
            if not trajectory.steps:
                out.append(trajectory)
            step = Step(row, tuple(i for i in _marked(row, known) if i not in trajectory.said), known)
            trajectory.steps.append(step)
            trajectory.said.update(step.own)
            recent.append((trajectory, step))
    return out


def slot_of(row: CorpusRow) -> str:
    """The slot that spoke."""
    slot: str = row.interaction.get("slot") or "main"
    return slot


def _extended(recent: Iterable[tuple[Trajectory, Step]], row: CorpusRow) -> tuple[Trajectory, Step] | None:
    """The longest recent step whose messages the row repeats and goes on from."""
    messages, tools = row.interaction["messages"], row.interaction.get("tools")
    best: tuple[Trajectory, Step] | None = None
    for trajectory, step in reversed(list(recent)):
        length = len(step.messages)
        if length >= len(messages) or (best is not None and length <= len(best[1].messages)):
            continue
        if step.row.interaction.get("tools") == tools and _begins_with(messages, step.messages):
            best = (trajectory, step)
    return best


def _begins_with(messages: Messages, start: Messages) -> bool:
    # rows of an episode share their messages, so most comparisons are of an object with itself
    return all(a is b or a == b or _bare(a) == _bare(b) for a, b in zip(messages, start, strict=False))


def _bare(message: dict[str, Any]) -> dict[str, Any]:
    """Without fields that say nothing: clients send back an answer's `refusal: null` or leave it away."""
    return {name: value for name, value in message.items() if value is not None and value != [] and value != ""}


def _marked(row: CorpusRow, known: int) -> list[int]:
    """Its marks; an assistant's messages only, whatever was marked. Without marks every assistant turn that is new."""
    messages, marks = row.interaction["messages"], row.interaction.get("response")
    candidates = range(known, len(messages)) if marks is None else sorted({int(i) for i in marks})
    return [i for i in candidates if 0 <= i < len(messages) and messages[i].get("role") == "assistant"]


def _step_order(row: CorpusRow) -> tuple[int, int, str]:
    return (
        row.interaction.get("step", 0),
        to_micros(row.interaction["started_at"], "$.started_at"),
        row.interaction_id,
    )
