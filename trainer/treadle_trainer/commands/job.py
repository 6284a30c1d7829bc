"""`treadle job`: trainings to be done, being done and done; what `treadle trainer` works through."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from treadle.cli.support import SuggestingGroup, echo_json, json_option, pass_settings, workspace_of
from treadle.settings import Settings
from treadle_schemas import SettingError
from treadle_schemas.codec import to_json

from treadle_trainer.commands._common import changes_of, jobs_root, registry_root, slot_option
from treadle_trainer.commands._releases import registry_of
from treadle_trainer.queue import Job, JobQueue

__all__ = ["job"]

POLL_S = 0.5
F = TypeVar("F", bound=Callable[..., Any])

workspace_option = click.option("--workspace", "-w", metavar="NAME", help="Its workspace.")


def _of_one(command: F) -> F:
    """The arguments that name one job."""
    for option in (slot_option, workspace_option, click.argument("number", type=int)):
        command = option(command)
    return command


@click.group(cls=SuggestingGroup)
def job() -> None:
    """Jobs of a slot, one after the other: each trains on a corpus version, evaluates, and lets the gate decide."""


@job.command()
@click.argument("reference", metavar="PATH[@vN]")
@workspace_option
@slot_option
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="A setting that differs from the policy.")
@click.option("--label", default="", help="Tells jobs on the same version and settings apart.")
@json_option
@pass_settings
def submit(
    settings: Settings,
    reference: str,
    workspace: str | None,
    slot: str,
    changes: tuple[str, ...],
    label: str,
    as_json: bool,
) -> None:
    """Queue a job on a corpus version (default: the newest) for `treadle trainer`. Asking for the same again gives the same job."""
    from treadle_corpus import Corpus, parse_ref

    from treadle_trainer.policy import TrainingPolicy

    corpus = Corpus.open(parse_ref(reference, settings.corpus_root))
    name = workspace or corpus.manifest.workspace
    stored = TrainingPolicy.load(registry_root(settings), name, slot)
    if stored is None:
        raise SettingError(f"{name}/{slot} has no policy; `treadle trainer -w {name} --set ...` writes one")
    wanted = changes_of(changes)
    fingerprint = stored.changed(wanted).fingerprint
    registry = registry_of(settings, name, slot)
    found, new = JobQueue(registry.path).submit(
        str(corpus.path), corpus.version, fingerprint=fingerprint, settings=wanted, label=label
    )
    if as_json:
        echo_json({**to_json(found), "new": new})
    else:
        click.echo(f"job {found.number} {found.state}" + ("" if new else " (asked for before)"))


@job.command("list")
@click.argument("workspace", required=False)
@slot_option
@json_option
@pass_settings
def list_(settings: Settings, workspace: str | None, slot: str, as_json: bool) -> None:
    """List the jobs of WORKSPACE, newest last."""
    jobs = _queue(settings, workspace, slot).jobs()
    if as_json:
        echo_json([to_json(one) for one in jobs])
        return
    for one in jobs:
        what = one.decision or (one.reason or "") if one.state != "running" else "cancelling" * one.cancelling
        click.echo(f"{one.number:>5}  {one.state:<9}  {one.submitted_at[:19]}  {one.corpus}@v{one.version}  {what}")


@job.command()
@_of_one
@json_option
@pass_settings
def show(settings: Settings, number: int, workspace: str | None, slot: str, as_json: bool) -> None:
    """Show job NUMBER and where its logs lie."""
    one = _queue(settings, workspace, slot).job(number)
    data = {**to_json(one), "logs": [str(path) for path in _logs(settings, one)]}
    if as_json:
        echo_json(data)
        return
    for name, value in data.items():
        if value not in (None, "", {}, [], False):
            click.echo(f"{name:<13} {value}")


@job.command()
@_of_one
@json_option
@pass_settings
def cancel(settings: Settings, number: int, workspace: str | None, slot: str, as_json: bool) -> None:
    """End job NUMBER: at once where it waits, within seconds where it runs."""
    _changed(_queue(settings, workspace, slot).cancel(number), as_json)


@job.command()
@_of_one
@json_option
@pass_settings
def resume(settings: Settings, number: int, workspace: str | None, slot: str, as_json: bool) -> None:
    """Queue the failed or cancelled job NUMBER again. It goes on from its last whole checkpoint."""
    _changed(_queue(settings, workspace, slot).resume(number), as_json)


@job.command()
@_of_one
@click.option("--follow", "-f", is_flag=True, help="Go on until the job is over.")
@pass_settings
def logs(settings: Settings, number: int, workspace: str | None, slot: str, follow: bool) -> None:
    """Print the logs of job NUMBER: training, then evaluation."""
    queue = _queue(settings, workspace, slot)
    seen: dict[Path, int] = {}
    while True:
        one = queue.job(number)
        for path in _logs(settings, one):
            _print_new(path, seen)
        if not follow or one.state not in ("queued", "running"):
            break
        time.sleep(POLL_S)
    click.echo(f"job {number} {one.state}" + (f": {one.reason}" if one.reason else ""), err=True)


def _print_new(path: Path, seen: dict[Path, int]) -> None:
    with path.open("rb") as file:
        size, start = file.seek(0, os.SEEK_END), seen.get(path, 0)
        file.seek(start if start <= size else 0)  # else the job began anew
        data = file.read()
        seen[path] = file.tell()
    if data:
        click.echo(data.decode(errors="replace"), nl=False)


def _logs(settings: Settings, one: Job) -> list[Path]:
    folders = [jobs_root(settings) / f"{one.key}-{part}" for part in ("train", "evaluate")] if one.key else []
    return [path for folder in folders for name in ("log.txt", "progress.jsonl") if (path := folder / name).exists()]


def _queue(settings: Settings, workspace: str | None, slot: str) -> JobQueue:
    return JobQueue(registry_of(settings, workspace_of(settings, workspace), slot).path)


def _changed(one: Job, as_json: bool) -> None:
    if as_json:
        echo_json(to_json(one))
    else:
        click.echo(f"job {one.number} {'is being cancelled' if one.cancelling else one.state}")
