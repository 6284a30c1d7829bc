"""`python -m treadle_streams.apps MODULE`: an app by itself, as `treadle worker --app` starts it.

Workspace and Kafka come from the environment.
"""

from __future__ import annotations

import logging
import sys

import click
from treadle.cli.support import pass_settings, workspace_of
from treadle.settings import Settings
from treadle_schemas.errors import TreadleError

from treadle_streams.apps._run import run_app


@click.command()
@click.argument("module")
@click.option("--parent-pid", type=int, hidden=True)
@pass_settings
def command(settings: Settings, module: str, parent_pid: int | None) -> None:
    """Run the app of MODULE until SIGTERM."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    workspace = workspace_of(settings, None)
    servers = settings.bootstrap_servers
    sys.exit(run_app(module, servers=servers, workspace=workspace, home=settings.home, parent_pid=parent_pid))


if __name__ == "__main__":
    try:
        command()
    except TreadleError as err:
        sys.stderr.write(f"error: {err}\n")
        sys.exit(err.exit_code)
