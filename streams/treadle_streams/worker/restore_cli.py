"""`treadle restore`."""

from __future__ import annotations

import click
from treadle.cli.support import confirmed, echo_json, json_option, pass_settings, workspace_of, yes_option
from treadle.settings import Settings

__all__ = ["command"]


@click.command("restore")
@click.argument("name", metavar="WORKSPACE", required=False)
@click.option(
    "--from-log", is_flag=True, required=True, help="Rebuild from the inputs and .graded: the only way there is."
)
@click.option(
    "--archive",
    "archives",
    metavar="TARGET",
    multiple=True,
    help="Read what .graded has no more from here, beside the archives that the workspace names. Repeatable.",
)
@yes_option
@json_option
@pass_settings
def command(
    settings: Settings, name: str | None, from_log: bool, archives: tuple[str, ...], yes: bool, as_json: bool
) -> int:
    """Rebuild the join's lost state of a workspace from what Kafka keeps.

    For a worker that refuses to run (StateLost): its changelog topic is gone, or older than its inputs. The changelog is made anew,
    and the next worker reads the inputs again from their start. Rows keep their revisions, and what is as .graded has it is not
    written again. Stop the workspace's workers first. Safe to repeat.
    """
    from treadle_streams import workspaces
    from treadle_streams.worker._restore import restore

    workspace = workspaces.get(settings.bootstrap_servers, workspace_of(settings, name))
    question = f"Throw away the join's state of workspace {workspace.workspace}, and rebuild it from the log?"
    if not confirmed(question, yes):
        return 1
    done = restore(
        settings.bootstrap_servers, workspace, tell=lambda line: click.echo(line, err=True), archives=archives
    )
    if as_json:
        echo_json({"workspace": workspace.workspace, "rows": done.rows, "records": done.records})
    else:
        click.echo(
            f"restored {workspace.workspace}: {done.rows} rows keep their revisions; "
            f"the next worker reads {done.records} records of the inputs again"
        )
    return 0
