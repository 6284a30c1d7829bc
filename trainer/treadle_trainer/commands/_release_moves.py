"""`treadle release approve`, `reject`, `canary`, `control`: what a person decides beside promotion and rollback."""

from __future__ import annotations

import click
from treadle.cli.support import json_option, pass_settings, workspace_of
from treadle.settings import Settings
from treadle_schemas import ReleaseId

from treadle_trainer.commands._common import deploy, release_of, slot_option, tell
from treadle_trainer.commands._releases import decision, echo_event, force_option, reason_option, refusal, registry_of
from treadle_trainer.errors import RegistryError, ReleaseRefused

__all__ = ["approve", "canary", "control", "reject"]


@click.command()
@click.argument("name", metavar="RELEASE")
@slot_option
@reason_option
@force_option
@json_option
@pass_settings
def approve(settings: Settings, name: str, slot: str, reason: str, force: bool, as_json: bool) -> None:
    """Agree to RELEASE, which the gate proposed: it becomes the champion in place of the one that it was compared with."""
    which = release_of(settings, name, slot)
    registry = registry_of(settings, which.workspace, which.slot)
    registry.folder(which)
    proposed = decision(registry, str(which))
    if (proposed is None or proposed.event != "awaiting_approval") and not force:
        said = (
            f"its last decision is {proposed.event}: {proposed.reason}" if proposed else "nothing was decided about it"
        )
        raise ReleaseRefused(f"{which} does not wait for approval; {said}. `treadle release promote` promotes it")
    against = proposed.evidence.get("evaluation", {}).get("against") if proposed is not None else None
    expect = registry.champion if force or against is None else ReleaseId.parse(against)
    deploy(settings, which)
    event = registry.promote(which, expect=expect, reason=reason, force=force, approval=True)
    tell(settings, registry)
    echo_event(event, as_json)


@click.command()
@click.argument("name", metavar="RELEASE")
@slot_option
@reason_option
@click.option("--quarantine", is_flag=True, help="Keep it from ever being promoted without --force.")
@json_option
@pass_settings
def reject(settings: Settings, name: str, slot: str, reason: str, quarantine: bool, as_json: bool) -> None:
    """Say no to RELEASE: one that waits for approval, or the canary, whose trial ends. Exits 1 for the champion: roll that back."""
    which = release_of(settings, name, slot)
    registry = registry_of(settings, which.workspace, which.slot)
    registry.folder(which)
    if which == registry.champion:
        raise RegistryError(f"{which} is the champion; `treadle release rollback` goes back to the one before")
    if which == registry.canary:
        event = registry.withdraw(reason, expect=which, quarantine=quarantine)
    else:
        event = registry.reject(which, reason=reason, quarantine=quarantine)
    tell(settings, registry)
    echo_event(event, as_json)


@click.command()
@click.argument("name", metavar="RELEASE")
@slot_option
@click.option("--share", type=click.FloatRange(0, 0.5, min_open=True), default=0.1, show_default=True)
@reason_option
@force_option
@json_option
@pass_settings
def canary(settings: Settings, name: str, slot: str, share: float, reason: str, force: bool, as_json: bool) -> None:
    """Try RELEASE on a share of the episodes, beside the champion. The guard promotes or withdraws it by its live rewards."""
    which = release_of(settings, name, slot)
    registry = registry_of(settings, which.workspace, which.slot)
    registry.folder(which)
    refused = refusal(registry, str(which), ("promote", "canary"))
    if refused is not None and not force:
        raise ReleaseRefused(f"{which} was judged {refused.event}: {refused.reason}; --force tries it all the same")
    deploy(settings, which)
    event = registry.admit(which, share=share, expect=registry.champion, reason=reason, force=force)
    tell(settings, registry)
    echo_event(event, as_json)


@click.command()
@click.argument("name", metavar="[RELEASE]", required=False)
@click.option("--workspace", "-w", metavar="NAME", help="With --off: the workspace.")
@slot_option
@click.option("--share", type=click.FloatRange(0, 0.5, min_open=True), default=0.02, show_default=True)
@click.option("--off", is_flag=True, help="End the control instead.")
@reason_option
@json_option
@pass_settings
def control(
    settings: Settings,
    name: str | None,
    workspace: str | None,
    slot: str,
    share: float,
    off: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Let RELEASE serve a small share of the episodes for good: what all later releases are measured against."""
    if off == (name is not None):
        raise click.UsageError("name a RELEASE, or --off")
    which = release_of(settings, name, slot) if name is not None else None
    space = which.workspace if which is not None else workspace_of(settings, workspace)
    registry = registry_of(settings, space, which.slot if which is not None else slot)
    if which is not None:
        deploy(settings, which)
    event = registry.set_control(which, share=share, reason=reason)
    tell(settings, registry)
    echo_event(event, as_json)
