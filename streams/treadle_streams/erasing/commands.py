"""`treadle erase`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
from treadle.cli.support import (
    DURATION,
    confirmed,
    echo_json,
    json_option,
    pass_settings,
    workspace_of,
    yes_option,
)
from treadle.settings import Settings
from treadle_corpus import StoreError, resolve_target, versions

if TYPE_CHECKING:
    from treadle_streams.erasing._run import Erased

__all__ = ["command"]


@click.command("erase")
@click.argument("name", metavar="[WORKSPACE]", required=False)
@click.option("--subject", required=True, metavar="ID", help="Whose work. In a workspace that hashes subjects too.")
@click.option("--reason", default="asked for by the subject", show_default=True, help="Kept in the log, and shown.")
@click.option(
    "--corpus",
    "corpora",
    multiple=True,
    metavar="TARGET",
    help="One more corpus that was made of the workspace: a folder, deeplake://ORG/NAME or s3://BUCKET/PREFIX. Repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@click.option(
    "--wait", "wait_s", type=DURATION, default="5m", show_default=True, help="For the join, and for each store."
)
@yes_option
@json_option
@pass_settings
def command(
    settings: Settings,
    name: str | None,
    subject: str,
    reason: str,
    corpora: tuple[str, ...],
    dry_run: bool,
    wait_s: float,
    yes: bool,
    as_json: bool,
) -> int:
    """Erase everything recorded of a subject so far: in the join's state, the live index, all versions of all corpora, and what else this
    machine keeps of it. Whole episodes in which the subject occurs go.

    Prints a line a store. Exits 0 when no text is left anywhere, 1 when some is: without encryption topics keep what was written until
    their retention ends, and each topic is listed with partitions and offsets. Safe to repeat; a run that was cut off is completed by the
    next.
    """
    from treadle_streams.erasing import erase

    others = [_corpus(text, settings) for text in corpora]
    workspace = workspace_of(settings, name)
    question = f"Erase everything recorded of subject {subject} in workspace {workspace}, for good?"
    if not dry_run and not confirmed(question, yes):
        return 1
    done = erase(
        settings,
        workspace,
        subject,
        reason=reason,
        corpora=others,
        dry_run=dry_run,
        wait_s=wait_s,
        tell=lambda line: click.echo(line, err=True),
    )
    if as_json:
        echo_json(_plain(done))
    else:
        _print(done)
    return 1 if done.remains else 0


def _corpus(text: str, settings: Settings) -> Path:
    """Raises TargetError, CorpusMissing where nothing is there; a store that cannot be reached now is reported with the others."""
    path = resolve_target(text, settings.corpus_root)
    with suppress(StoreError):
        versions(path)
    return path


def _plain(done: Erased) -> dict[str, object]:
    return {
        "workspace": done.workspace,
        "erased_at": done.erased_at,
        "dry_run": done.dry_run,
        "episodes": done.episodes,
        "interactions": done.rows,
        "of_others": done.foreign,
        "remains": done.remains,
        "stores": [
            {
                "store": report.store,
                "place": report.place,
                "rows": report.rows,
                "bytes": report.bytes,
                "remains": list(report.remains),
                "notes": list(report.notes),
            }
            for report in done.reports
        ],
    }


def _print(done: Erased) -> None:
    verb = "would be erased" if done.dry_run else "erased"
    click.echo(f"{done.workspace}: {done.rows} interactions of {done.episodes} episodes {verb}")
    if done.foreign:
        click.echo(f"  {done.foreign} of them are of other subjects: episodes go as a whole")
    for report in done.reports:
        parts = [f"{report.rows} rows" if report.rows else "", f"{report.bytes} bytes" if report.bytes else ""]
        counts = "  ".join(part for part in parts if part)
        click.echo(f"{report.store:<11} {report.place}{'  ' + counts if counts else ''}")
        for line in report.notes:
            click.echo(f"            {line}")
        for line in report.remains:
            click.echo(f"  remains   {line}")
    if done.remains:
        click.echo("text remains, see above" if not done.dry_run else "text would remain, see above")
