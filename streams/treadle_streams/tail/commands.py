"""`treadle tail`."""

from __future__ import annotations

import os
import sys
from typing import cast

import click
from treadle.cli.support import pass_settings, workspace_of
from treadle.settings import Settings
from treadle_schemas.canonical import dumps
from treadle_schemas.codec import to_json
from treadle_schemas.moments import from_micros
from treadle_schemas.records import GradedRow

from treadle_streams.tail._tail import Kind, Row, tail

__all__ = ["command"]


@click.command("tail")
@click.argument("workspace", required=False)
@click.option(
    "--kind",
    type=click.Choice(["graded", "progress"]),
    default="graded",
    show_default=True,
    help="graded: rows as they settle and are corrected. progress: each change of a grade at once, without messages.",
)
@click.option("--filter", "filter_", metavar="EXPR", help="Only rows for which this is true; as in `treadle snapshot`.")
@click.option("--last", "-n", type=click.IntRange(0), default=10, show_default=True, help="So many that are there now.")
@click.option("--follow", "-f", is_flag=True, help="Then each new one, until it is stopped.")
@click.option("-o", "--output", type=click.Choice(["table", "jsonl"]), default="table", show_default=True)
@pass_settings
def command(
    settings: Settings, workspace: str | None, kind: str, filter_: str | None, last: int, follow: bool, output: str
) -> None:
    """Show the newest graded rows of a workspace, and those that follow.

    A row is shown once for each revision. `now` in a filter is the present.
    """
    name = workspace_of(settings, workspace)
    found = tail(settings.bootstrap_servers, name, cast("Kind", kind), filter_, last=last, follow=follow)
    try:
        for row in found:
            click.echo(dumps(to_json(row)) if output == "jsonl" else _line(row))
    except BrokenPipeError:
        # whoever read has enough; what is buffered still would be written at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _line(row: Row) -> str:
    """`2026-01-01T00:00:00  e1/i1 r2  desk  settled  reward 1  cost 0.5, csat pending`"""
    if isinstance(row, GradedRow):
        at, revision, agent = row.provenance.graded_at, row.provenance.revision, row.interaction.get("agent")
    else:
        at, revision, agent = from_micros(row.append_ms * 1000), row.revision, row.agent
    grade = row.grade
    metrics = ", ".join(
        f"{name} {value if state == 'observed' else state}" for name, (state, value) in grade.metrics.items()
    )
    row_id = row.interaction_id if row.episode_id == row.interaction_id else f"{row.episode_id}/{row.interaction_id}"
    reward = "none" if grade.reward is None else f"{grade.reward:g}"
    state = "settled" if grade.settled else "open"
    return f"{at[:19]}  {row_id} r{revision}  {agent}  {row.split}  {state}  reward {reward}  {metrics}"
