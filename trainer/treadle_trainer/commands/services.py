"""`treadle trainer` and `treadle guard`: the long-running processes."""

from __future__ import annotations

import click
from treadle.cli.support import echo_json, pass_settings, workspace_of
from treadle.settings import Settings
from treadle_schemas.codec import to_json

from treadle_trainer.commands._common import (
    changes_of,
    jobs_root,
    log_to_stderr,
    registry_root,
    slot_option,
    stop_requested,
)
from treadle_trainer.policy import TrainingPolicy

__all__ = ["guard", "trainer"]


@click.command()
@click.option("--workspace", "-w", metavar="NAME", help="Serve this workspace only. Default: every one with a policy.")
@slot_option
@click.option(
    "--set", "changes", multiple=True, metavar="NAME=VALUE", help="Write a setting of the slot's policy and exit."
)
@click.option("--policy", "show", is_flag=True, help="Print the slot's policy as JSON and exit.")
@click.option("--once", is_flag=True, help="Do what is due now and exit.")
@pass_settings
def trainer(
    settings: Settings, workspace: str | None, slot: str, changes: tuple[str, ...], show: bool, once: bool
) -> None:
    """Train on new corpus versions, evaluate, and promote what the gate finds better.

    A slot is served once it has a policy: `treadle trainer -w shop --set environment=pkg.module:Class` writes one. Settings have dotted
    names (gate.alpha, guard.age_s); the defaults are those of the policy's documentation.
    """
    root = registry_root(settings)
    if changes or show:
        name = workspace_of(settings, workspace)
        policy = TrainingPolicy.load(root, name, slot) or TrainingPolicy()
        if changes:
            policy = policy.changed(changes_of(changes))
            policy.save(root, name, slot)
        echo_json(to_json(policy))
        return
    from treadle_trainer.jobs import JobRunner
    from treadle_trainer.reporting import report_path
    from treadle_trainer.service import TrainerService
    from treadle_trainer.storage import Storage

    log_to_stderr()
    storage = Storage(root, jobs_root(settings), settings.corpus_root, settings.trainer_bytes)
    with JobRunner(jobs_root(settings)) as runner, stop_requested() as should_stop:
        service = TrainerService(
            root, runner, settings.bootstrap_servers, workspace, storage, report_path(settings.home, workspace)
        )
        service.run(should_stop, once=once)


@click.command()
@click.option("--workspace", "-w", metavar="NAME", help="Guard this workspace only. Default: every one with a policy.")
@pass_settings
def guard(settings: Settings, workspace: str | None) -> None:
    """Watch the live grades of each champion and roll back, without a person, one that falls below its predecessor."""
    from treadle_trainer.guard import GuardService

    log_to_stderr()
    with stop_requested() as should_stop:
        GuardService(registry_root(settings), settings.bootstrap_servers, workspace).run(should_stop)
