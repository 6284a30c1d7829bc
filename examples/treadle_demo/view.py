"""What the demo shows while the wheel turns: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from treadle_schemas import ReleaseEvent, SnapshotRecord
from treadle_trainer.cycle import STAGES
from treadle_trainer.cycle.table import SHOWN_FROM_S

from treadle_demo.ledger import Ledger
from treadle_demo.report import Report, heldout_of

__all__ = ["View"]

_COLOURS = {
    "promoted": "green",
    "rejected": "red",
    "not_enough_evidence": "yellow",
    "rolled_back": "magenta",
    "failed": "red",
}


class View:
    """Shows stage, counts and decisions as they happen."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._stage = ""
        self._turn: int | None = None
        self._since = time.monotonic()
        self._ledger = Ledger()

    def __enter__(self) -> View:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False)

    def stage(self, stage: str, what: str, turn: int | None = None) -> None:
        """A new stage begins."""
        self._stage, self._turn, self._since = f"{stage}: {what}", turn, time.monotonic()
        if self._live:
            self._redraw()
        else:
            self.say(f"{f'turn {turn}  ' if turn else ''}{stage}: {what}")

    def counts(self, ledger: Ledger) -> None:
        """Show rows captured, pending, settled, and live success by release."""
        self._ledger = ledger
        if self._live:
            self._redraw()

    def _counted(self) -> str:
        ledger = self._ledger
        settled = sum(row.settled for row in ledger.rows.values())
        by_release: dict[str, list[float]] = {}
        for row in ledger.rows.values():
            if row.reward is not None and row.release:
                by_release.setdefault(row.release.rsplit("/", 1)[-1], []).append(row.reward)
        live = "  ".join(f"{name} {sum(r) / len(r):.2f}" for name, r in by_release.items())
        return f"captured {len(ledger.rows):,}  pending {len(ledger.rows) - settled:,}  settled {settled:,}" + (
            f"   live success by release: {live}" if live else ""
        )

    def decided(self, turn: int, version: SnapshotRecord, event: ReleaseEvent) -> None:
        """A turn's decision."""
        held = heldout_of(event.evidence)
        score = (
            f"held-out {held.champion:.2f} -> {held.candidate:.2f} (difference {held.low:+.2f} to {held.high:+.2f})  "
            if held
            else ""
        )
        colour = _COLOURS.get(event.event, "white")
        self.say(f"turn {turn}  {self._counted()}")
        self.say(
            f"turn {turn}  corpus@v{version.version}, {version.rows:,} rows  {score}"
            f"[{colour}]{event.event}[/{colour}] {(event.release or '').rsplit('/', 1)[-1]}: {event.reason}"
        )

    def drill(self, name: str, event: str, reason: str) -> None:
        """What a control did about something bad."""
        colour = _COLOURS.get(event, "white")
        self.say(f"drill   {name}: [{colour}]{event}[/{colour}]: {reason}")

    def summary(self, report: Report) -> None:
        """The table at the end, where everything lies, and three commands to look further."""
        table = Table(
            title=f"{report.workspace}: {len(report.turns)} turn{'s'[: len(report.turns) != 1]} in {report.wall_seconds:.0f} s",
            box=box.SIMPLE_HEAD,
        )
        for column in ("turn", "played", "corpus", "rows", "live", "held-out", "decision", "cycle"):
            table.add_column(
                column, justify="left" if column in ("played", "corpus", "decision") else "right", no_wrap=True
            )
        for turn in report.turns:
            held = turn.heldout
            colour = _COLOURS.get(turn.decision, "white")
            table.add_row(
                str(turn.turn),
                (turn.release or "").rsplit("/", 1)[-1],
                f"@{turn.corpus.rsplit('@', 1)[-1]}",
                f"{turn.rows:,}",
                _number(turn.live_success),
                f"{held.champion:.2f} -> {held.candidate:.2f}" if held else "",
                f"[{colour}]{turn.decision.replace('_', ' ')}[/{colour}]",
                f"{turn.seconds['cycle']:.1f} s" if "cycle" in turn.seconds else "",
            )
        self.console.print(table)
        self.say(f"live success after the last turn: {_number(report.final_live_success)}")
        took = [s for s in STAGES if any(turn.seconds.get(s, 0.0) >= SHOWN_FROM_S for turn in report.turns)]
        stages = ("capture", *took, "cycle")
        cycle = Table(title="cycle time by stage, seconds", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
        cycle.add_column("turn", justify="right")
        for stage in stages:
            cycle.add_column(stage, justify="right")
        for turn in report.turns:
            cycle.add_row(str(turn.turn), *(f"{turn.seconds[s]:.1f}" if s in turn.seconds else "" for s in stages))
        self.console.print(cycle)
        if report.poisoned:
            self.say(f"broken grader: {report.poisoned.decision}: {report.poisoned.reason}")
        if report.guard:
            after = f" after {report.guard.after_rows} rows" if report.guard.after_rows is not None else ""
            self.say(f"bad release: {'rolled back' if report.guard.rolled_back else 'NOT rolled back'}{after}")
        for name, place in report.places.items():
            self.say(f"{name:9} {place}")

    def _redraw(self) -> None:
        assert self._live is not None
        turn = f"turn {self._turn}  " if self._turn else ""
        head = Text.assemble((turn, "bold"), (self._stage, "cyan"), f"  {time.monotonic() - self._since:.0f} s")
        self._live.update(Group(head, Text(self._counted(), style="dim")))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
