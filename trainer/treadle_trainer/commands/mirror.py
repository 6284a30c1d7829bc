"""`treadle mirror`: the registry shown in MLflow."""

from __future__ import annotations

import click
from treadle.cli.support import pass_settings, workspace_of
from treadle.settings import Settings
from treadle_schemas import SettingError

from treadle_trainer.commands._common import log_to_stderr, registry_root, stop_requested

__all__ = ["mirror"]


@click.command()
@click.argument("workspace", required=False)
@click.option(
    "--to",
    "uri",
    metavar="URI",
    envvar="MLFLOW_TRACKING_URI",
    required=True,
    show_envvar=True,
    help="MLflow's server (http://HOST:PORT) or database (sqlite:////FOLDER/mlflow.db).",
)
@click.option("--slot", help="This slot only. Default: all.")
@click.option("--once", is_flag=True, help="Write what MLflow lacks and exit.")
@pass_settings
def mirror(settings: Settings, workspace: str | None, uri: str, slot: str | None, once: bool) -> None:
    """Show the releases of WORKSPACE in MLflow, and follow what is decided.

    Each release becomes a run (parameters, metrics, tags) in the experiment treadle/WORKSPACE/SLOT, and a version of the model
    WORKSPACE.SLOT with the aliases champion, canary, previous and control. It goes one way: what is changed in MLflow decides nothing here.
    See docs/releases.md.
    """
    from treadle_trainer.mirror import Mirror, checked_uri, follow
    from treadle_trainer.registry import Registry, slots

    name, root = workspace_of(settings, workspace), registry_root(settings)
    checked_uri(uri)
    log_to_stderr()
    with stop_requested() as should_stop:
        if not once:
            follow(root, name, uri, should_stop, slot=slot)
            return
        found = [each for _, each in slots(root, name) if slot in (None, each)]
        if not found:
            raise SettingError(f"{name if slot is None else f'{name}/{slot}'} has no releases below {root}")
        for each in found:
            passed = Mirror(Registry(root, name, each), uri).catch_up(should_stop)
            click.echo(
                f"{name}/{each}: {passed.runs} runs written, {passed.versions} versions made, {passed.aliases} aliases moved"
            )
