"""`treadle eval`: a release on held-out rows, whether that foretells live rewards, and what all promotions together are worth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import msgspec
from treadle.cli.support import SuggestingGroup, echo_json, json_option, pass_settings, workspace_of
from treadle.settings import Settings
from treadle_schemas import SettingError

from treadle_trainer.commands._common import slot_option
from treadle_trainer.commands._releases import registry_of
from treadle_trainer.commands.evaluate import evaluate

__all__ = ["evaluation"]


class _Evaluations(SuggestingGroup):
    """`treadle eval RELEASE` is `treadle eval run RELEASE`: what is no command names a release."""

    default = "run"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `run` before what is no command of this group."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


@click.group(name="eval", cls=_Evaluations)
def evaluation() -> None:
    """What held-out rows and live traffic say of releases. `treadle eval RELEASE` is short for `treadle eval run RELEASE`."""


evaluation.add_command(evaluate, "run")


@evaluation.command()
@click.argument("workspace", required=False)
@slot_option
@click.option("--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with a plot.")
@json_option
@pass_settings
def calibration(settings: Settings, workspace: str | None, slot: str, page: Path | None, as_json: bool) -> None:
    """Set the offline difference of every canary of WORKSPACE beside its live difference."""
    from treadle_trainer.evaluate.calibration import as_html, as_text, points

    registry = registry_of(settings, workspace_of(settings, workspace), slot)
    found = points(registry)
    if page is not None:
        page.write_text(as_html(found, f"Calibration of {registry.workspace}/{registry.slot}"), encoding="utf-8")
    if as_json:
        echo_json([asdict(point) for point in found])
        return
    if not found:
        click.echo("no canary was judged by live rewards yet", err=True)
    else:
        click.echo(as_text(found))
    if page is not None:
        click.echo(f"written: {page}", err=True)


@evaluation.command()
@click.argument("workspace", required=False)
@slot_option
@json_option
@pass_settings
def live(settings: Settings, workspace: str | None, slot: str, as_json: bool) -> None:
    """Show what the guard knows of WORKSPACE now: the canary's trial and the lift over the control, with their intervals."""
    registry = registry_of(settings, workspace_of(settings, workspace), slot)
    path = registry.path / "live.json"
    try:
        report = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise SettingError(f"{path}: is not there; `treadle guard` writes it every few seconds while it runs") from None
    except msgspec.MsgspecError as err:
        raise SettingError(f"{path}: not a report of the guard: {err}") from err
    if as_json:
        echo_json(report)
        return
    click.echo(f"{report['metric']} at {report['age_s']:g} s of age, scaled to [0, 1]")
    for name, release in report["releases"].items():
        mean = "-" if release["mean"] is None else f"{release['mean']:.3f}"
        click.echo(f"  {name:<24} {release['rows']:>8} episodes  newest mean {mean}")
    trial, lift = report["trial"], report["lift"]
    if trial is not None:
        click.echo(f"canary {trial['canary']} against {trial['champion']}")
        for name, effect in trial["effects"].items():
            click.echo(f"  {name:<24} {_interval(effect)}")
    if lift is not None:
        click.echo(f"lift over the control {lift['control']}")
        click.echo(f"  {'since it began':<24} {_interval(lift['total'])}")
        click.echo(f"  {lift['champion']:<24} {_interval(lift['now'])}")


def _interval(effect: dict[str, float]) -> str:
    level = 100 * (1 - effect["alpha"])
    return (
        f"{effect['effect']:+.3f}  {level:g} % [{effect['low']:+.3f}, {effect['high']:+.3f}] over {effect['n']} pairs"
    )
