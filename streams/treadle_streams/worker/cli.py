"""`treadle worker`."""

from __future__ import annotations

import logging
import os
import sys

import click
from treadle.cli.support import pass_settings
from treadle.settings import Settings

__all__ = ["command"]


@click.command("worker")
@click.option(
    "--workspace",
    "-w",
    help="Workspace to join; without it all, as they come and go: small ones in one process, others in one each.",
)
@click.option(
    "--small", is_flag=True, help="Join all workspaces of one partition, as they come and go, in this process."
)
@click.option(
    "--app",
    "apps",
    multiple=True,
    metavar="MODULE",
    help="Run this module's Faust app beside the join, in a process of its own; may be given several times.",
)
@click.option("--once-caught-up", is_flag=True, help="End with 0 as soon as everything that is there is joined.")
@click.option(
    "--standby",
    "standbys",
    type=click.IntRange(0, 8),
    help="Other workers that keep a warm copy of each partition (TREADLE_STANDBY); default: 0. Not in a shared process.",
)
@click.option("--parent-pid", type=int, hidden=True, help="End when this process is no longer the parent.")
@click.option("--verbose", "-v", is_flag=True, help="Say more on stderr.")
@pass_settings
def command(
    settings: Settings,
    workspace: str | None,
    small: bool,
    apps: tuple[str, ...],
    once_caught_up: bool,
    standbys: int | None,
    parent_pid: int | None,
    verbose: bool,
) -> None:
    """Join interactions with their outcomes: grade rows, write .graded, .progress and .dead-letter.

    Runs until SIGTERM. Any number of workers may run for a workspace; they share its partitions. Exit codes: 0 ended in order, 1 failed
    (state is rebuilt from the log at the next start), 2 usage, 5 Kafka not reachable or a batch not taken.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    if not verbose:
        # while the broker is away it writes tens of lines a second; the clockwork says so once
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    if standbys is not None and (small or not (workspace or settings.workspace)):
        raise click.UsageError("--standby needs --workspace; for all workers that are started set TREADLE_STANDBY")
    if apps and (small or once_caught_up or not (workspace or settings.workspace)):
        raise click.UsageError("--app needs --workspace, and goes with neither --small nor --once-caught-up")
    if small:
        if workspace or once_caught_up:
            raise click.UsageError("--small goes with neither --workspace nor --once-caught-up")
        from treadle_streams.worker._pool import run_pool

        sys.exit(run_pool(settings.bootstrap_servers, settings.home, parent_pid))
    named = workspace or settings.workspace
    if named is None:
        if once_caught_up:
            raise click.UsageError("--once-caught-up needs --workspace")
        from treadle_streams.worker._children import run_all

        sys.exit(run_all(settings.bootstrap_servers))
    from treadle_streams.worker import WorkerSettings, run_worker
    from treadle_streams.worker._settings import wanted_standbys

    wanted = WorkerSettings(
        workspace=named,
        servers=settings.bootstrap_servers,
        home=settings.home,
        once_caught_up=once_caught_up,
        parent_pid=parent_pid,
        standbys=wanted_standbys(os.environ) if standbys is None else standbys,
    )
    if not apps:
        sys.exit(run_worker(wanted))
    from treadle_streams.apps._run import beside

    with beside(apps, servers=wanted.servers, workspace=named, home=wanted.home):
        code = run_worker(wanted)
    sys.exit(code)
