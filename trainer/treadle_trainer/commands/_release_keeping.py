"""`treadle release pin`, `export`, `fetch`, `gc`: what is kept, what is copied out and in, what is deleted."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
from treadle.cli.support import confirmed, echo_json, json_option, pass_settings, workspace_of, yes_option
from treadle.settings import Settings
from treadle_corpus.objects import fetch_folder, is_object_url, publish_folder

from treadle_trainer.commands._common import SIZE, release_of, slot_option, tell
from treadle_trainer.commands._releases import echo_event, reason_option, registry_of
from treadle_trainer.registry import collectable, export, open_release, within_budget

__all__ = ["export_", "fetch", "gc", "pin"]


@click.command()
@click.argument("name", metavar="RELEASE")
@slot_option
@click.option("--off", is_flag=True, help="Unpin it.")
@reason_option
@json_option
@pass_settings
def pin(settings: Settings, name: str, slot: str, off: bool, reason: str, as_json: bool) -> None:
    """Keep the files of RELEASE, whatever `gc` would delete."""
    which = release_of(settings, name, slot)
    registry = registry_of(settings, which.workspace, which.slot)
    event = registry.pin(which, reason=reason, unpin=off)
    tell(settings, registry)
    echo_event(event, as_json)


@click.command(name="export")
@click.argument("name", metavar="RELEASE")
@click.argument("target")
@slot_option
@click.option("--reason", "-r", default="exported", show_default=True, help="Why; kept in the audit log.")
@json_option
@pass_settings
def export_(settings: Settings, name: str, target: str, slot: str, reason: str, as_json: bool) -> None:
    """Copy RELEASE, verified, to the new folder TARGET, manifest included.

    TARGET may be s3://BUCKET/PREFIX: the files are put there with their checksums, and never change; `treadle release fetch` gets them.
    """
    which = release_of(settings, name, slot)
    registry = registry_of(settings, which.workspace, which.slot)
    if is_object_url(target):
        manifest = registry.verify(which)
        with tempfile.TemporaryDirectory(prefix="treadle-release-") as folder:
            export(registry, which, Path(folder) / "release")
            publish_folder(Path(folder) / "release", target, kind="release")
    else:
        target = str(Path(target).absolute())
        manifest = export(registry, which, Path(target))
    registry.note("exported", which, actor="user", reason=reason, evidence={"target": target})
    tell(settings, registry)
    if as_json:
        echo_json({"release": str(which), "target": target, "files": len(manifest.files)})
    else:
        click.echo(f"{which} -> {target} ({len(manifest.files)} files)")


@click.command()
@click.argument("url")
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def fetch(url: str, folder: Path, as_json: bool) -> None:
    """Fetch a release that was exported to URL (s3://BUCKET/PREFIX) to the new FOLDER, and check every file against its manifest."""
    fetch_folder(url, folder.absolute(), kind="release")
    manifest = open_release(folder.absolute())
    if as_json:
        echo_json({"release": manifest.release, "folder": str(folder.absolute()), "files": len(manifest.files)})
    else:
        click.echo(f"{manifest.release} -> {folder} ({len(manifest.files)} files)")


@click.command()
@click.argument("workspace", required=False)
@slot_option
@click.option("--keep", type=click.IntRange(0), default=3, show_default=True, help="Keep at least the newest so many.")
@click.option("--budget", type=SIZE, help="Delete only until the slot's releases fit, for example 20GB.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted.")
@yes_option
@json_option
@pass_settings
def gc(
    settings: Settings,
    workspace: str | None,
    slot: str,
    keep: int,
    budget: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Delete the files of releases in WORKSPACE that nothing needs any more; manifests and audit log stay.

    Needed are champion, canary, control, every release that a rollback may lead to, pins, what nobody has decided about, and the bases of
    adapters among them.
    """
    registry = registry_of(settings, workspace_of(settings, workspace), slot)
    found = within_budget(registry, collectable(registry, keep_newest=keep), budget)
    total = sum(size for _, size in found)
    if not dry_run and found:
        names = ", ".join(f"r{which.number}" for which, _ in found)
        if not confirmed(f"Delete the files of {names} ({total:,} bytes)?", yes):
            return 1
        done = registry.collect([which for which, _ in found], reason="nothing needs its files")
        found = [(which, size) for which, size in found if str(which) in {event.release for event in done}]
        total = sum(size for _, size in found)
        tell(settings, registry)
    if as_json:
        echo_json(
            {
                "deleted": [] if dry_run else [str(r) for r, _ in found],
                "found": [str(r) for r, _ in found],
                "bytes": total,
            }
        )
    else:
        for which, size in found:
            click.echo(f"{which}  {size:,} bytes")
        click.echo(f"{'would delete' if dry_run else 'deleted'} {total:,} bytes of {len(found)} releases")
    return 0
