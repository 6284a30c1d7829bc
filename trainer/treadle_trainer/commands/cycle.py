"""`treadle cycle`: how long the wheel's turns take, stage by stage, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from treadle.cli.support import console, echo_json, json_option, pass_settings, workspace_of
from treadle.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treadle_trainer.cycle import Prices, Turn

__all__ = ["cycle"]


@click.command()
@click.argument("workspace", required=False)
@click.option("--last", type=click.IntRange(min=1), default=10, show_default=True, help="How many turns, the newest.")
@click.option(
    "--prices",
    "price_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help='JSON file of prices, for example {"gpu_second": 0.0011}.',
)
@json_option
@pass_settings
def cycle(settings: Settings, workspace: str | None, last: int, price_file: Path | None, as_json: bool) -> None:
    """Show the newest turns of WORKSPACE by stage, from an interaction's append to the first one that the release it led to served.

    The last line names the stage that took most. Times come from the topics alone.
    """
    from treadle_trainer.cycle import Prices, read_turns

    name = workspace_of(settings, workspace)
    prices = None if price_file is None else Prices.load(price_file)
    turns = read_turns(settings.bootstrap_servers, name, last)
    if as_json:
        echo_json(_data(turns, prices))
        return
    if not turns:
        click.echo(f"{name}: no corpus version has led to a decision yet")
        return
    _show(turns, prices)


def _data(turns: Sequence[Turn], prices: Prices | None) -> dict[str, Any]:
    from treadle_trainer.cycle import bottleneck, costs

    found = bottleneck(turns)
    return {
        "turns": [
            {
                "corpus": turn.corpus,
                "version": turn.version,
                "slot": turn.slot,
                "rows": turn.rows,
                "new_rows": turn.new_rows,
                "release": turn.release,
                "decision": turn.decision,
                "seconds": {stage: round(value, 3) for stage, value in turn.seconds.items()},
                "cycle_s": turn.cycle_s,
                "overhead_s": None if turn.overhead_s is None else round(turn.overhead_s, 3),
                "lift": turn.lift,
                "cost": {
                    name: getattr(costs(turn, prices), name)
                    for name in ("job_seconds", "gpu_seconds", "money", "per_point")
                },
            }
            for turn in turns
        ],
        "bottleneck": None if found is None else {"stage": found[0], "share": round(found[1], 4)},
    }


def _show(turns: Sequence[Turn], prices: Prices | None) -> None:
    from rich import box
    from rich.table import Table

    from treadle_trainer.cycle import STAGES, bottleneck, costs

    shown = [stage for stage in STAGES if any(turn.seconds.get(stage, 0.0) >= 0.05 for turn in turns)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for column in (
        "corpus",
        "rows",
        "decision",
        *shown,
        "cycle",
        "lift",
        *([] if prices is None else [prices.currency]),
    ):
        table.add_column(column, justify="left" if column in ("corpus", "decision") else "right")
    for turn in turns:
        money = costs(turn, prices).money
        table.add_row(
            f"{turn.corpus.rsplit('/', 1)[-1]}@v{turn.version}",
            f"{turn.rows:,}",
            turn.decision.replace("_", " "),
            *(f"{turn.seconds[stage]:.1f}" if stage in turn.seconds else "" for stage in shown),
            "" if turn.cycle_s is None else f"{turn.cycle_s:.1f} s",
            "" if turn.lift is None else f"{turn.lift:+.3f}",
            *([] if money is None else [f"{money:.4f}"]),
        )
    console().print(table)
    found = bottleneck(turns)
    if found is None:
        click.echo("no release of these turns has served an interaction yet")
    else:
        click.echo(f"bottleneck: {found[0]}, {found[1]:.0%} of the time from append to the new release")
