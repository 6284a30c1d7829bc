"""Turns by stage as a table of text."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from treadle_trainer.cycle.turns import STAGES, Stage, Turn

__all__ = ["SHOWN_FROM_S", "shown_stages", "stage_table"]

SHOWN_FROM_S = 0.05
"""A stage below this in every turn has no column."""
_TEXT = ("turn", "corpus", "slot", "decision")


def shown_stages(turns: Sequence[Turn]) -> list[Stage]:
    """The stages that took any time to speak of in one of the turns."""
    return [stage for stage in STAGES if any(abs(turn.seconds.get(stage, 0.0)) >= SHOWN_FROM_S for turn in turns)]


def stage_table(
    turns: Sequence[Turn],
    before: Sequence[tuple[str, Sequence[str]]],
    after: Sequence[tuple[str, Sequence[str]]] = (),
    *,
    title: str | None = None,
) -> Table:
    """A row a turn: columns of the caller's, seconds by stage, the cycle, more columns. A column has a name and a text for each turn."""
    middle = [(str(stage), [_seconds(turn, stage) for turn in turns]) for stage in shown_stages(turns)]
    cycle = ["" if turn.cycle_s is None else f"{turn.cycle_s:.1f}" for turn in turns]
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    columns = [*before, *middle, ("cycle", cycle), *after]
    for name, _ in columns:
        table.add_column(name, justify="left" if name in _TEXT else "right", no_wrap=name in _TEXT)
    for n in range(len(turns)):
        table.add_row(*(texts[n] for _, texts in columns))
    return table


def _seconds(turn: Turn, stage: Stage) -> str:
    return f"{turn.seconds[stage]:.1f}" if stage in turn.seconds else ""
