"""Turns as tables of text: what became of them, and what each stage took."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from treadle_trainer.cycle.turns import STAGES, Stage, Turn

__all__ = ["SHOWN_FROM_S", "shown_stages", "stage_columns", "turn_table"]

SHOWN_FROM_S = 0.05
"""A stage below this in every turn has no column."""
_TEXT = ("turn", "corpus", "slot", "decision")


def shown_stages(turns: Sequence[Turn]) -> list[Stage]:
    """The stages that took any time to speak of in one of the turns."""
    return [stage for stage in STAGES if any(abs(turn.seconds.get(stage, 0.0)) >= SHOWN_FROM_S for turn in turns)]


def turn_table(columns: Sequence[tuple[str, Sequence[str]]], title: str | None = None) -> Table:
    """A row a turn. A column has a name, and a text for each turn."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for name, _ in columns:
        table.add_column(name, justify="left" if name in _TEXT else "right", no_wrap=True)
    for texts in zip(*(texts for _, texts in columns), strict=True):
        table.add_row(*texts)
    return table


def stage_columns(turns: Sequence[Turn]) -> list[tuple[str, list[str]]]:
    """Seconds of each stage that took any time to speak of, and of the cycle, for `turn_table`."""
    stages = [(str(stage), [_seconds(turn, stage) for turn in turns]) for stage in shown_stages(turns)]
    return [*stages, ("cycle", ["" if turn.cycle_s is None else f"{turn.cycle_s:.1f}" for turn in turns])]


def _seconds(turn: Turn, stage: Stage) -> str:
    return f"{turn.seconds[stage]:.1f}" if stage in turn.seconds else ""
