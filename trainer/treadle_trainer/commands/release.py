"""`treadle release`: what serves, what was, who decided it and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from treadle.cli.support import (
    SuggestingGroup,
    confirmed,
    echo_json,
    json_option,
    pass_settings,
    workspace_of,
    yes_option,
)
from treadle.settings import Settings
from treadle_schemas import ReleaseEvent, ReleaseManifest, SettingError
from treadle_schemas.codec import to_json

from treadle_trainer.commands._common import registry_root, release_of, slot_option, tell
from treadle_trainer.errors import NoChampion, ReleaseRefused
from treadle_trainer.registry import Registry, slots

__all__ = ["release"]

reason_option = click.option("--reason", "-r", required=True, help="Why; kept in the audit log.")
force_option = click.option("--force", is_flag=True, help="Overrule the gate and quarantine.")
DECISIONS = ("promoted", "rejected", "not_enough_evidence", "failed")


@click.group(cls=SuggestingGroup)
def release() -> None:
    """Releases of a slot: an immutable folder each, one of them the champion."""


@release.command("list")
@click.argument("workspace", required=False)
@click.option("--slot", help="Only this slot.")
@json_option
@pass_settings
def list_(settings: Settings, workspace: str | None, slot: str | None, as_json: bool) -> None:
    """List the releases of WORKSPACE (default: all workspaces), newest last."""
    found = []
    for space, name in slots(registry_root(settings), workspace or settings.workspace):
        if slot in (None, name):
            registry = Registry(registry_root(settings), space, name)
            events = registry.events()
            found += [_summary(registry, manifest, events) for manifest in registry.releases()]
    if as_json:
        echo_json(found)
        return
    if not found:
        click.echo(
            "no releases yet; `treadle release register WORKSPACE FOLDER --promote` adds what runs today", err=True
        )
    for entry in found:
        mark = "*" if entry["champion"] else "!" if entry["quarantined"] else " "
        corpus = f"{entry['corpus']}@v{entry['corpus_version']}" if entry["corpus"] else "-"
        click.echo(f"{mark} {entry['release']:<24} {entry['created_at'][:19]}  {entry['decision'] or '-':<20} {corpus}")
    if found:
        click.echo("* champion  ! quarantined", err=True)


@release.command()
@click.argument("name", metavar="RELEASE")
@slot_option
@json_option
@pass_settings
def show(settings: Settings, name: str, slot: str, as_json: bool) -> None:
    """Show RELEASE (workspace/slot/rN): manifest, what was decided and why, and whether its files are intact."""
    which = release_of(settings, name, slot)
    registry = _registry(settings, which.workspace, which.slot)
    manifest = registry.verify(which)
    history = [to_json(e) for e in registry.events() if str(which) in (e.release, e.previous)]
    summary = _summary(registry, manifest, registry.events())
    data = {**to_json(manifest), **summary, "folder": str(registry.folder(which)), "history": history}
    if as_json:
        echo_json(data)
        return
    click.echo(f"{which}  {manifest.kind}{'  champion' if summary['champion'] else ''}")
    for label in (
        "folder",
        "hosted_model",
        "parent",
        "corpus",
        "corpus_version",
        "method",
        "created_at",
        "quarantined",
    ):
        if data.get(label) is not None:
            click.echo(f"  {label:<15} {data[label]}")
    for event in history:
        click.echo(f"  {event['at'][:19]}  {event['event']} by {event['actor']}: {event['reason']}")


@release.command()
@click.argument("workspace")
@click.argument("folder", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@slot_option
@click.option("--hosted", metavar="MODEL", help="Id of a hosted model instead of a folder.")
@click.option("--prompt", type=click.File(), help="File with a system prompt.")
@click.option("--promote", is_flag=True, help="Make it the champion, if the slot has none.")
@click.option("--reason", "-r", default="what runs today", show_default=True, help="Why; kept in the audit log.")
@json_option
@pass_settings
def register(
    settings: Settings,
    workspace: str,
    folder: Path | None,
    slot: str,
    hosted: str | None,
    prompt: Any,
    promote: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Register the model in FOLDER (a copy), a hosted model, or a prompt as a new release of WORKSPACE."""
    if folder is None and hosted is None and prompt is None:
        raise click.UsageError("name a FOLDER, --hosted MODEL or --prompt FILE")
    registry = Registry(registry_root(settings), workspace, slot)
    text = prompt.read() if prompt is not None else None
    which = registry.register(folder, hosted=hosted, prompt=text, reason=reason)
    if promote:
        registry.promote(which, expect=None, reason=reason)
    tell(settings, registry)
    if as_json:
        echo_json({"release": str(which), "champion": promote})
    else:
        click.echo(f"{which}{' is champion' if promote else ''}")


@release.command()
@click.argument("name", metavar="RELEASE")
@slot_option
@reason_option
@force_option
@yes_option
@json_option
@pass_settings
def promote(settings: Settings, name: str, slot: str, reason: str, force: bool, yes: bool, as_json: bool) -> int:
    """Make RELEASE (workspace/slot/rN) the champion. Exits 3 where the gate refused it or it is quarantined, but for --force."""
    which = release_of(settings, name, slot)
    registry = _registry(settings, which.workspace, which.slot)
    registry.folder(which)
    refused = _refusal(registry, str(which))
    if refused is not None and not force:
        raise ReleaseRefused(f"{which} was judged {refused.event}: {refused.reason}; --force promotes it all the same")
    champion = registry.champion
    if not confirmed(f"Replace {champion or 'nobody'} by {which} as champion?", yes):
        return 1
    event = registry.promote(which, expect=champion, reason=reason, force=force)
    tell(settings, registry)
    _echo_event(event, as_json)
    return 0


@release.command()
@click.argument("workspace", required=False)
@slot_option
@reason_option
@click.option("--no-quarantine", is_flag=True, help="Let the present champion be promoted again.")
@yes_option
@json_option
@pass_settings
def rollback(
    settings: Settings, workspace: str | None, slot: str, reason: str, no_quarantine: bool, yes: bool, as_json: bool
) -> int:
    """Go back to the champion's predecessor in WORKSPACE, and quarantine the present champion."""
    registry = _registry(settings, workspace_of(settings, workspace), slot)
    champion = registry.champion
    if champion is None:
        raise NoChampion(f"{registry.workspace}/{registry.slot} has no champion to roll back from")
    if not confirmed(f"Roll back from {champion} to {registry.predecessor or 'nothing'}?", yes):
        return 1
    event = registry.rollback(reason, expect=champion, quarantine=not no_quarantine)
    tell(settings, registry)
    _echo_event(event, as_json)
    return 0


def _registry(settings: Settings, workspace: str, slot: str) -> Registry:
    root = registry_root(settings)
    if (workspace, slot) not in slots(root, workspace):
        known = ", ".join("/".join(s) for s in slots(root)) or "none"
        raise SettingError(f"{workspace}/{slot} has no releases below {root}; slots with releases: {known}")
    return Registry(root, workspace, slot)


def _summary(registry: Registry, manifest: ReleaseManifest, events: list[ReleaseEvent]) -> dict[str, Any]:
    aliases = registry.aliases
    number = manifest.release.rpartition("/r")[2]
    decided = next((e for e in reversed(events) if e.release == manifest.release and e.event in DECISIONS), None)
    return {
        "release": manifest.release,
        "kind": manifest.kind,
        "champion": str(aliases.champion) == number,
        "quarantined": aliases.quarantined.get(number),
        "decision": decided.event if decided else None,
        "reason": decided.reason if decided else None,
        "corpus": manifest.corpus,
        "corpus_version": manifest.corpus_version,
        "parent": manifest.parent,
        "created_at": manifest.created_at,
    }


def _refusal(registry: Registry, name: str) -> ReleaseEvent | None:
    """The gate's last word on a release, where that was no."""
    for event in reversed(registry.events()):
        if event.release == name and event.event in DECISIONS:
            # a turn aside is recorded as rejected although the gate would have promoted
            said = event.evidence.get("gate", {}).get("decision")
            return None if event.event == "promoted" or said == "promote" else event
    return None


def _echo_event(event: ReleaseEvent, as_json: bool) -> None:
    if as_json:
        echo_json(to_json(event))
    else:
        click.echo(f"{event.champion} is champion (was {event.previous or 'nobody'}): {event.reason}")
