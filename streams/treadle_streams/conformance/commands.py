"""`treadle check-producer`."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Final

import click
from treadle.cli.support import DURATION, echo_json, json_option, pass_settings, workspace_of
from treadle.settings import Settings
from treadle_schemas.codec import header_map
from treadle_schemas.conformance import SentRecord
from treadle_schemas.errors import FieldError
from treadle_schemas.ids import check_workspace
from treadle_schemas.pii import built_in
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import workspaces
from treadle_streams.conformance._check import Check, Found, json_of
from treadle_streams.conformance._sources import from_file, from_topics

__all__ = ["check_producer"]

SHOWN: Final = 50
"""Findings printed as they come; the rest are counted, and `--json` has more."""
_UNKNOWN: Final = "unknown"
"""Stands in where no record of a file names its workspace, which is what the check then says."""
_WHERE: Final = "docs/contract.md says what each reason means and what to do"


@click.command("check-producer")
@click.argument("workspace", required=False)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Check the records of FILE (JSON lines in the form of the golden examples) instead of a workspace's; no broker is needed.",
)
@click.option(
    "--partitions", type=click.IntRange(1, 1024), default=8, show_default=True, help="With --file: of each topic."
)
@click.option("--from-end", is_flag=True, help="Check what is sent from now on, until nothing has come for --idle.")
@click.option("--idle", type=DURATION, default=10.0, show_default=True, help="See --from-end.")
@click.option("--since", type=DURATION, metavar="DURATION", help="Only what arrived in the last 10m, 2h, 7d.")
@click.option("--max-messages", type=click.IntRange(min=1), metavar="N", help="At most N records.")
@click.option(
    "--source", metavar="S", help="Only records whose ce_source is S; those that name none are checked in any case."
)
@json_option
@pass_settings
def check_producer(
    settings: Settings,
    workspace: str | None,
    file: Path | None,
    partitions: int,
    from_end: bool,
    idle: float,
    since: float | None,
    max_messages: int | None,
    source: str | None,
    as_json: bool,
) -> int:
    """Check what a producer in any language wrote to WORKSPACE, or would write, against the contract.

    Each record goes through the code by which the join takes or refuses it; beyond that: headers, misspelt fields, one id with two
    contents, clocks, missing parts and import markers, private content. Errors and warnings are printed as they are found, with field,
    value and the way out, then counts by kind. Exits 0 where the producer conforms, 1 where it does not or sent nothing.

    Nothing is written. Use a workspace made for the test: what is wrong in it lies in its dead letters too.
    """
    if file is not None:
        if from_end or since is not None or source is not None:
            raise click.UsageError("--file is read as it is: --from-end, --since and --source are for a workspace")
        check = _of_file(file, workspace, partitions, max_messages, as_json)
    else:
        if from_end and since is not None:
            raise click.UsageError("--from-end and --since exclude each other")
        name = check_workspace(workspace_of(settings, workspace))
        found = workspaces.get(settings.bootstrap_servers, name)
        check = Check(found)
        records = from_topics(
            settings.bootstrap_servers,
            name,
            found.partitions,
            since_ms=None if since is None else int((time.time() - since) * 1000),
            follow_idle_s=idle if from_end else None,
            source=source,
        )
        for place, record in islice(records, max_messages):
            _show(check, check.add(record, place), as_json)
        # a part or marker that is not among the records may have come before them, or from somebody else
        whole = not from_end and since is None and source is None and max_messages is None
        _show(check, check.finish(whole=whole), as_json)
    _tell(check, as_json)
    return 0 if check.conforming else 1


def _of_file(file: Path, workspace: str | None, partitions: int, limit: int | None, as_json: bool) -> Check:
    named = (_workspace_in(record) for _, record in from_file(file) if isinstance(record, SentRecord))
    check = _offline(workspace or next((name for name in named if name), None) or _UNKNOWN, partitions)
    for place, record in islice(from_file(file), limit):
        new = check.unread(place, record) if isinstance(record, str) else check.add(record, place)
        _show(check, new, as_json)
    # markers stand on every partition, which a file need not repeat
    _show(check, check.finish(whole=False), as_json)
    return check


def _offline(workspace: str, partitions: int) -> Check:
    made = WorkspaceSettings(workspace=workspace, partitions=partitions, pii=built_in("off"))
    return Check(made.checked(), workspace_policy=False)


def _workspace_in(record: SentRecord) -> str | None:
    raw = header_map(record.headers).get("ce_workspace")
    try:
        return None if raw is None else check_workspace(raw.decode(errors="replace"))
    except FieldError:
        return None


def _show(check: Check, new: list[Found], as_json: bool) -> None:
    if as_json:
        return
    before = sum(check.errors.values()) + sum(check.warnings.values()) - len(new)
    for found in new[: max(0, SHOWN - before)]:
        level, reason, detail = found.finding
        click.echo(f"{found.place}  {level}  {reason}  {detail}")


def _tell(check: Check, as_json: bool) -> None:
    if as_json:
        for found in check.found:
            click.echo(json_of(found))
        echo_json(
            {
                "conforming": check.conforming,
                "records": check.records,
                "kinds": dict(check.kinds),
                "repeats": check.repeats,
                "errors": dict(check.errors),
                "warnings": dict(check.warnings),
            }
        )
        return
    more = sum(check.errors.values()) + sum(check.warnings.values()) - SHOWN
    if more > 0:
        click.echo(f"... and {more:,} more findings")
    kinds = "  ".join(f"{kind} {count:,}" for kind, count in check.kinds.most_common())
    click.echo(f"checked {check.records:,}  {kinds}  repeats {check.repeats:,}")
    for level, counts in (("errors", check.errors), ("warnings", check.warnings)):
        if counts:
            click.echo(f"{level}: {', '.join(f'{reason} {count:,}' for reason, count in counts.most_common())}")
    if check.conforming:
        click.echo("conforming")
    else:
        click.echo(f"not conforming: {_WHERE}" if check.records else "not conforming: nothing was sent")
