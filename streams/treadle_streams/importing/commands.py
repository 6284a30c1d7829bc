"""`treadle import`."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from treadle.cli.support import console, echo_json, json_option, pass_settings
from treadle.policies import hash_key
from treadle.settings import Settings

from treadle_streams.importing._export import PASSES, Export
from treadle_streams.importing._lines import BadLine
from treadle_streams.importing._run import ImportReport, run_import
from treadle_streams.importing.formats import FORMATS

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["import_"]

SHOWN_BAD_LINES: Final = 100
"""Bad lines printed as they come; the rest are counted, and `--json` has more."""

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("import")
@click.argument("workspace")
@click.argument("files", nargs=-1, type=_FILE, metavar="[FILE]...")
@click.option("--from", "product", type=click.Choice(sorted(FORMATS)), help="The product whose export the FILEs are.")
@click.option("--agent", metavar="NAME", help="The agent's name where an export has none; default: the product's.")
@click.option(
    "--interactions", multiple=True, type=_FILE, metavar="FILE", help="JSON lines of interactions. Repeatable."
)
@click.option("--outcomes", multiple=True, type=_FILE, metavar="FILE", help="JSON lines of outcomes. Repeatable.")
@click.option("--import-id", help="Id of this import; default: a new one.")
@click.option("--dry-run", is_flag=True, help="Send nothing; show counts and the first rows as they would be sent.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most N events a second.")
@json_option
@pass_settings
def import_(
    settings: Settings,
    workspace: str,
    files: tuple[Path, ...],
    product: str | None,
    agent: str | None,
    interactions: tuple[Path, ...],
    outcomes: tuple[Path, ...],
    import_id: str | None,
    dry_run: bool,
    rate: float | None,
    as_json: bool,
) -> int:
    """Bring logs into WORKSPACE. Event times are kept; importing twice changes nothing. The workspace's PII policy is carried out here.

    Either --interactions and --outcomes with treadle's own lines, or --from with the FILEs of another product's export: JSON lines or
    JSON. Give all files of an export at once: traces, spans, scores.

    An interaction has interaction_id, agent, messages (OpenAI chat), started_at, ended_at, and optionally task_id, model, episode_id,
    subject, tags and more; an outcome has interaction_id (or episode_id), name, value, observed_at, and optionally outcome_id and op.
    Times are RFC 3339. A bad line is reported with its reason while the good ones go on; the exit code is then 1.

    Live traffic is spared only by a bound on events in flight and by --rate: nothing watches the live lag yet.
    """
    if not interactions and not outcomes and not files:
        raise click.UsageError(
            "nothing to import: give --interactions FILE, --outcomes FILE or both, or --from PRODUCT FILE"
        )
    if bool(files) != (product is not None):
        raise click.UsageError("--from PRODUCT and the FILEs of its export go together")
    progress = _progress()
    with progress, ExitStack() as stack:
        export = stack.enter_context(Export(product, files, agent)) if product is not None else None
        total = sum(path.stat().st_size for path in (*interactions, *outcomes, *files * PASSES))
        bar = progress.add_task(f"import into {workspace}", total=total)
        printed = 0

        def show(line: BadLine) -> None:
            nonlocal printed
            printed += 1
            if printed <= SHOWN_BAD_LINES:
                text = f"bad line {line.file}:{line.line}: {line.reason}"
                progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

        report = run_import(
            settings.bootstrap_servers,
            workspace,
            interactions,
            outcomes,
            export=export,
            import_id=import_id,
            rate=rate,
            pii_key=hash_key(settings),
            dry_run=dry_run,
            on_progress=lambda read: progress.update(bar, completed=read),
            on_bad_line=show,
        )
    _tell(report, as_json)
    return 1 if report.bad_lines else 0


def _tell(report: ImportReport, as_json: bool) -> None:
    if report.bad_lines > SHOWN_BAD_LINES:
        click.echo(f"... and {report.bad_lines - SHOWN_BAD_LINES} more bad lines", err=True)
    if as_json:
        echo_json(report.to_json())
        return
    for row in report.rows:
        click.echo(json.dumps(row))
    passed = "".join(f"  {what} {count:,}" for what, count in report.passed.items())
    if passed:
        click.echo(f"read, with nothing to import:{passed}")
    click.echo(
        f"{report.workspace}  {'dry run' if report.dry_run else f'import {report.import_id}'}  interactions {report.interactions:,}  "
        f"outcomes {report.outcomes:,}  bad lines {report.bad_lines:,}  {report.seconds:.1f} s"
    )


def _progress() -> Progress:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    output = console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=output,
        disable=not output.is_terminal,
    )
