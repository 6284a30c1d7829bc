"""`treadle corpus prune`: removing old versions."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import click
from treadle.cli.support import DURATION, echo_json, json_option, pass_settings
from treadle.settings import Settings
from treadle_corpus import Corpus, name_of, parse_ref, prune_versions
from treadle_schemas.codec import to_json
from treadle_schemas.moments import from_micros

__all__ = ["prune"]


@click.command()
@click.argument("ref", metavar="PATH")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Keep the newest N versions.")
@click.option(
    "--older-than", "older_than_s", type=DURATION, help="Keep the versions that are younger, for example 30d."
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@json_option
@pass_settings
def prune(
    settings: Settings, ref: str, keep: int | None, older_than_s: float | None, dry_run: bool, as_json: bool
) -> None:
    """Remove old versions of a corpus. With both options a version goes when neither keeps it.

    The newest version stays, and so do those with a tag, those that releases of this machine were trained on, and those that a process
    here is reading; each is named with the reason. Rows are not lost: `.graded` has them.
    """
    if keep is None and older_than_s is None:
        raise click.UsageError("say --keep N, --older-than TIME, or both")
    parsed = parse_ref(ref, settings.corpus_root)
    if parsed.version is not None:
        raise click.UsageError(f"{ref}: name the corpus, not one of its versions")
    path = parsed.path
    before = None if older_than_s is None else from_micros(int((time.time() - older_than_s) * 1e6))
    made = prune_versions(path, keep=keep, before=before, held=_of_releases(settings, path), dry_run=dry_run)
    if as_json:
        echo_json({"corpus": name_of(path), "dry_run": dry_run, **to_json(made)})
        return
    said = "would be removed" if dry_run else "removed"
    click.echo(f"{name_of(path)}: {len(made.removed):,} versions {said}, {made.left:,} left")
    for number in made.removed if dry_run else []:
        click.echo(f"  v{number}")
    for one in made.kept:
        click.echo(f"  v{one.version} stays: {one.reason}")


def _of_releases(settings: Settings, path: Path) -> dict[int, str]:
    """Versions that releases were trained on, with the first of these. Raises RegistryError."""
    with Corpus.open(path) as newest:
        workspace = newest.manifest.workspace
    # the registry is the trainer's, which is not below this package
    releases = importlib.import_module("treadle_trainer.lineage").Releases(
        settings.home / "registry", workspace, settings.corpus_root
    )
    held: dict[int, str] = {}
    for manifest in releases.manifests.values():
        for found in releases.refs(manifest):
            if found.path == path.resolve() and found.version is not None:
                held.setdefault(found.version, f"release {manifest.release} was trained on it")
    return held
