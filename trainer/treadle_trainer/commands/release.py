"""`treadle release`: what serves, what was, who decided it and why."""

from __future__ import annotations

from dataclasses import asdict
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
from treadle_schemas.codec import to_json

from treadle_trainer.commands._common import deploy, registry_root, release_of, slot_option, tell
from treadle_trainer.commands._release_keeping import export_, fetch, gc, pin
from treadle_trainer.commands._release_moves import approve, canary, control, reject
from treadle_trainer.commands._release_trust import trust_
from treadle_trainer.commands._releases import (
    base_of,
    echo_event,
    force_option,
    json_object,
    mark_of,
    reason_option,
    refusal,
    registry_of,
    summary,
)
from treadle_trainer.errors import NoChampion, ReleaseRefused
from treadle_trainer.registry import Registry, flags, slots

__all__ = ["release"]


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
            found += [summary(registry, manifest, events) for manifest in registry.releases()]
    if as_json:
        echo_json(found)
        return
    if not found:
        click.echo(
            "no releases yet; `treadle release register WORKSPACE FOLDER --promote` adds what runs today", err=True
        )
    for entry in found:
        mark = mark_of(entry)
        corpus = f"{entry['corpus']}@v{entry['corpus_version']}" if entry["corpus"] else "-"
        click.echo(f"{mark} {entry['release']:<24} {entry['created_at'][:19]}  {entry['decision'] or '-':<20} {corpus}")
    if found:
        click.echo("* champion  ~ canary  = control  ! quarantined  - files deleted", err=True)


@release.command()
@click.argument("name", metavar="RELEASE")
@slot_option
@json_option
@pass_settings
def show(settings: Settings, name: str, slot: str, as_json: bool) -> None:
    """Show RELEASE (workspace/slot/rN): manifest, scorecards, what was decided and why, and whether its files are intact."""
    from treadle_trainer.scorecard.run import stored

    which = release_of(settings, name, slot)
    registry = registry_of(settings, which.workspace, which.slot)
    manifest = registry.manifest(which) if registry.collected(which) else registry.verify(which)
    history = [to_json(e) for e in registry.events() if str(which) in (e.release, e.previous)]
    said = summary(registry, manifest, registry.events())
    flagged = [
        flag for flag in flags(registry) if (flag.corpus, flag.version) == (manifest.corpus, manifest.corpus_version)
    ]
    cards = [
        {
            "path": str(path),
            "page": str(path.with_suffix(".html")),
            "against": card.champion,
            "regressed": [f"{part}/{metric.name}" for part, metric in card.regressions],
        }
        for path, card in stored(registry, which)
    ]
    data = {
        **to_json(manifest),
        **said,
        "scorecards": cards,
        "folder": str(registry.folder(which)),
        "history": history,
        "flags": [asdict(flag) for flag in flagged],
    }
    if as_json:
        echo_json(data)
        return
    roles = [role for role in ("champion", "canary", "control") if said[role]]
    click.echo("  ".join([str(which), manifest.kind, *roles]))
    for label in (
        "folder",
        "hosted_model",
        "parent",
        "corpus",
        "corpus_version",
        "method",
        "created_at",
        "pinned",
        "quarantined",
    ):
        if data.get(label) is not None:
            click.echo(f"  {label:<15} {data[label]}")
    for flag in flagged:
        click.echo(f"  flagged         {flag.corpus}@v{flag.version}: {flag.release} was trained on it: {flag.reason}")
    for card in cards:
        worse = f"worse: {', '.join(card['regressed'])}" if card["regressed"] else "nothing shown to be worse"
        click.echo(f"  {'scorecard':<15} against {card['against'] or 'nothing'}, {worse}: {card['page']}")
    for event in history:
        click.echo(f"  {event['at'][:19]}  {event['event']} by {event['actor']}: {event['reason']}")


@release.command()
@click.argument("workspace")
@click.argument("folder", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@slot_option
@click.option("--hosted", metavar="MODEL", help="Id of a hosted model instead of a folder.")
@click.option("--prompt", type=click.File(), help="File with a system prompt.")
@click.option("--adapter", metavar="BASE", help="FOLDER is an adapter of this base model: a release, a folder, an id.")
@click.option("--skill", "skills", multiple=True, metavar="NAME", help="A skill that belongs to it. Repeatable.")
@click.option("--sampling", metavar="JSON", help="Sampling settings, for example '{\"temperature\": 0.2}'.")
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
    adapter: str | None,
    skills: tuple[str, ...],
    sampling: str | None,
    promote: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Register the model in FOLDER (a copy), a hosted model, or a prompt as a new release of WORKSPACE."""
    if folder is None and hosted is None and prompt is None:
        raise click.UsageError("name a FOLDER, --hosted MODEL or --prompt FILE")
    if adapter is not None and folder is None:
        raise click.UsageError("--adapter BASE says of which model FOLDER is an adapter; there is no FOLDER")
    registry = Registry(registry_root(settings), workspace, slot)
    text = prompt.read() if prompt is not None else None
    lineage: dict[str, Any] = {"skills": list(skills), "sampling": json_object(sampling)}
    if adapter is not None:
        lineage |= {"kind": "adapter", "base": base_of(settings, adapter)}
    which = registry.register(folder, hosted=hosted, prompt=text, reason=reason, **lineage)
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
    registry = registry_of(settings, which.workspace, which.slot)
    registry.folder(which)
    refused = refusal(registry, str(which))
    if refused is not None and not force:
        raise ReleaseRefused(f"{which} was judged {refused.event}: {refused.reason}; --force promotes it all the same")
    champion = registry.champion
    if not confirmed(f"Replace {champion or 'nobody'} by {which} as champion?", yes):
        return 1
    deploy(settings, which)
    event = registry.promote(which, expect=champion, reason=reason, force=force)
    tell(settings, registry)
    echo_event(event, as_json)
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
    registry = registry_of(settings, workspace_of(settings, workspace), slot)
    champion = registry.champion
    if champion is None:
        raise NoChampion(f"{registry.workspace}/{registry.slot} has no champion to roll back from")
    if not confirmed(f"Roll back from {champion} to {registry.predecessor or 'nothing'}?", yes):
        return 1
    event = registry.rollback(reason, expect=champion, quarantine=not no_quarantine)
    tell(settings, registry)
    echo_event(event, as_json)
    return 0


for command in (approve, reject, canary, control, trust_, pin, export_, fetch, gc):
    release.add_command(command)
