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
@click.option("--slot", help="Turns of this slot only.")
@click.option(
    "--prices",
    "price_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help='JSON file of prices, for example {"gpu_second": 0.0011, "judge_1k_prompt": 0.002}.',
)
@json_option
@pass_settings
def cycle(
    settings: Settings, workspace: str | None, last: int, slot: str | None, price_file: Path | None, as_json: bool
) -> None:
    """Show the newest turns of WORKSPACE by stage, in seconds, from an interaction's append to the first one that the release it led to
    served.

    Below it stands which stage took most, and what the turns used. With --prices or --json the interactions and outcomes of those turns are
    read too, for what was captured and what graders spent. All of it comes from the topics.
    """
    from treadle_trainer.cycle import Prices, read_turns

    name = workspace_of(settings, workspace)
    prices = None if price_file is None else Prices.load(price_file)
    turns = read_turns(settings.bootstrap_servers, name, last, slot=slot, inputs=as_json or prices is not None)
    if as_json:
        echo_json(_data(turns, prices))
        return
    if not turns:
        where = name if slot is None else f"{name}/{slot}"
        click.echo(f"{where}: no corpus version has led to a decision yet")
        return
    _show(turns, prices)


def _data(turns: Sequence[Turn], prices: Prices | None) -> dict[str, Any]:
    import msgspec

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
                "reason": turn.reason,
                "fate": turn.fate,
                "seconds": {stage: round(value, 3) for stage, value in turn.seconds.items()},
                "cycle_s": turn.cycle_s,
                "overhead_s": None if turn.overhead_s is None else round(turn.overhead_s, 3),
                "lift": turn.lift,
                "cost": msgspec.to_builtins(costs(turn, prices)),
            }
            for turn in turns
        ],
        "bottleneck": None if found is None else {"stage": found[0], "share": round(found[1], 4)},
    }


def _show(turns: Sequence[Turn], prices: Prices | None) -> None:
    from treadle_trainer.cycle import costs
    from treadle_trainer.cycle.table import stage_columns, turn_table

    several = len({turn.slot for turn in turns}) > 1
    names = [
        ("corpus", [f"{turn.corpus.rstrip('/').rsplit('/', 1)[-1]}@v{turn.version}" for turn in turns]),
        *([("slot", [turn.slot for turn in turns])] if several else []),
    ]
    fates = [
        ("rows", [f"{turn.rows:,}" for turn in turns]),
        ("release", [(turn.release or "").rsplit("/", 1)[-1] for turn in turns]),
        ("decision", [_decision(turn) for turn in turns]),
        ("lift", ["" if turn.lift is None else f"{turn.lift:+.3f}" for turn in turns]),
    ]
    if prices is not None:
        found = [costs(turn, prices) for turn in turns]
        fates += [
            (prices.currency, [f"{cost.money:.4f}" for cost in found]),
            ("a point", ["" if cost.per_point is None else f"{cost.per_point:.4f}" for cost in found]),
        ]
    console().print(turn_table([*names, *fates]))
    console().print(turn_table([*names, *stage_columns(turns)], "seconds by stage"))
    failed = [f"{turn.corpus}@v{turn.version} failed: {turn.reason}" for turn in turns if turn.decision == "failed"]
    for line in (*failed, *_bottleneck(turns), *_used(turns, prices)):
        click.echo(line)


def _decision(turn: Turn) -> str:
    return ", ".join(word.replace("_", " ") for word in (turn.decision, *turn.fate))


def _bottleneck(turns: Sequence[Turn]) -> list[str]:
    from treadle_trainer.cycle import bottleneck

    found = bottleneck(turns)
    if found is None:
        return ["no release of these turns has served an interaction yet"]
    overheads = [turn.overhead_s for turn in turns if turn.overhead_s is not None]
    return [
        f"bottleneck: {found[0]}, {found[1]:.0%} of the time from append to the new release",
        f"beside settling, training, evaluation and approval: {sum(overheads) / len(overheads):.1f} s a turn",
    ]


def _used(turns: Sequence[Turn], prices: Prices | None) -> list[str]:
    """What all of them used, as far as it is known."""
    from treadle_trainer.cycle import costs

    found = [costs(turn, prices) for turn in turns]
    jobs, gpu = sum(cost.job_seconds for cost in found), sum(cost.gpu_seconds for cost in found)
    said = [f"jobs {jobs:.1f} s"]
    if gpu:
        said.append(f"GPU {gpu:.1f} s")
    calls = sum(cost.judged.calls for cost in found)
    if calls:
        tokens = sum(cost.judged.prompt_tokens + cost.judged.completion_tokens for cost in found)
        said.append(f"judges {calls:,} call{'s'[: calls != 1]}, {tokens:,} tokens")
    for kind in ("captured", "corpus", "columns", "release"):
        known = [size for cost in found if (size := getattr(cost.bytes, kind)) is not None]
        if known:
            said.append(f"{kind} {sum(known) / 1e6:.1f} MB")
    lines = [f"used: {'; '.join(said)}"]
    if prices is not None:
        parts = {part: sum(cost.parts[part] for cost in found) for part in found[0].parts}
        money = "; ".join(f"{part} {value:.4f}" for part, value in parts.items())
        lines.append(f"{prices.currency}: {sum(parts.values()):.4f} in all ({money})")
    return lines
