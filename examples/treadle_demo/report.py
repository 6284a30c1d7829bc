"""The demo's report: what `--json` writes, and the judgement whether the wheel did its work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from treadle_schemas import SnapshotRecord
from treadle_trainer.cycle import Turn as Timed

from treadle_demo.ledger import Ledger, Stamped

__all__ = ["Drill", "GuardDrill", "Heldout", "Report", "Turn", "draw_chart", "problems", "turn_report"]


class Heldout(msgspec.Struct, frozen=True, kw_only=True):
    """Mean scores on the same held-out tasks, and the one-sided 95 % bounds of candidate minus champion."""

    champion: float
    candidate: float
    low: float
    high: float


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of the wheel. `live_success` is that of the release that played, before this turn's training."""

    turn: int
    release: str | None
    corpus: str
    rows: int
    live_success: float | None
    heldout: Heldout | None
    decision: str
    reason: str
    seconds: dict[str, float]


class Drill(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate said of the candidate that a broken grader made."""

    decision: str
    reason: str
    heldout: Heldout | None = None


class GuardDrill(msgspec.Struct, frozen=True, kw_only=True):
    """What the guard did about a bad release that was forced live. `after_rows` is how many of its rows it needed."""

    rolled_back: bool
    after_rows: int | None
    reason: str = ""


class Report(msgspec.Struct, kw_only=True):
    """Everything the demo found. `cycle_seconds` is the mean over promoted turns, as `treadle cycle` has them."""

    seed: int
    workspace: str
    environment: str
    turns: list[Turn] = []
    final_live_success: float | None = None
    poisoned: Drill | None = None
    guard: GuardDrill | None = None
    cycle_seconds: float | None = None
    wall_seconds: float = 0.0
    places: dict[str, str] = {}

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")


def heldout_of(evidence: dict[str, Any]) -> Heldout | None:
    """The scores in a decision's evidence, None where the candidate was never scored."""
    gate = evidence.get("gate")
    if not isinstance(gate, dict) or gate.get("low") is None:
        return None
    return Heldout(champion=gate["champion"], candidate=gate["candidate"], low=gate["low"], high=gate["high"])


def turn_report(ledger: Ledger, turn: int, snapshot: Stamped, decision: Stamped, timed: Timed | None = None) -> Turn:
    """One turn's numbers from the ledger. `seconds` by stage are those of `treadle cycle`, where `timed` has them, with `cycle` once the
    release has served its first interaction; `capture`, from the turn's first append to its last, lies before the cycle."""
    rows = ledger.of_turn(turn)
    version: SnapshotRecord = snapshot.record
    event = decision.record
    appends = [row.append_ms for row in rows]
    seconds: dict[str, float] = {"capture": (max(appends) - min(appends)) / 1000}
    if timed is not None:
        seconds.update({str(stage): spent for stage, spent in timed.seconds.items()})
        if timed.cycle_s is not None:
            seconds["cycle"] = timed.cycle_s
    return Turn(
        turn=turn,
        release=next((row.release for row in rows), None),
        corpus=f"{version.corpus}@v{version.version}",
        rows=version.rows,
        live_success=ledger.live_success(turn),
        heldout=heldout_of(event.evidence),
        decision=event.event,
        reason=event.reason,
        seconds={name: round(value, 3) for name, value in seconds.items()},
    )


def problems(report: Report, turns: int) -> list[str]:
    """Why this run does not count as a wheel that turned. Empty when it does."""
    found = []
    if len(report.turns) < turns:
        found.append(f"only {len(report.turns)} of {turns} turns were completed")
    if not any(turn.decision == "promoted" for turn in report.turns):
        found.append("no candidate was promoted")
    for turn in report.turns:
        if turn.live_success is None:
            found.append(f"turn {turn.turn}: no outcome reached a row")
        if turn.decision == "failed":
            found.append(f"turn {turn.turn}: training failed: {turn.reason}")
    if report.poisoned is None or report.poisoned.decision in ("promoted", "failed"):
        found.append("the gate did not refuse the candidate of the broken grader")
    if report.guard is None or not report.guard.rolled_back:
        found.append("the guard did not roll the bad release back")
    return found


def draw_chart(report: Report, path: Path) -> Path:
    """Success over turns, live and on held-out tasks, as an image. Returns the file."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    live = [(turn.turn, turn.live_success) for turn in report.turns if turn.live_success is not None]
    if report.final_live_success is not None:
        live.append((len(report.turns) + 1, report.final_live_success))
    axes.plot(*zip(*live, strict=True), marker="o", color="#1f6feb", label="live success of the release that played")
    scored = [(turn.turn, turn.heldout, turn.decision) for turn in report.turns if turn.heldout]
    for n, (turn, held, decision) in enumerate(scored):
        promoted = decision == "promoted"
        bounds = [
            [max(0.0, held.candidate - held.champion - held.low)],
            [max(0.0, held.high - held.candidate + held.champion)],
        ]
        axes.errorbar(
            turn + 0.12,
            held.candidate,
            yerr=bounds,
            fmt="^" if promoted else "x",
            color="#2da44e" if promoted else "#cf222e",
            capsize=3,
            label="candidate on held-out tasks" if n == 0 else None,
        )
    axes.set(
        xlabel="turn",
        ylabel="success",
        ylim=(0, 1),
        title=f"{report.workspace}: success over turns (seed {report.seed})",
    )
    axes.set_xticks(range(1, len(report.turns) + 2))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
