"""`treadle job`: trainings to be done, being done and done; what `treadle trainer` works through."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from treadle.cli.support import (
    SuggestingGroup,
    confirmed,
    echo_json,
    json_option,
    pass_settings,
    workspace_of,
    yes_option,
)
from treadle.settings import Settings
from treadle_schemas import SettingError
from treadle_schemas.codec import to_json

from treadle_trainer.commands._common import changes_of, jobs_root, registry_root, slot_option
from treadle_trainer.commands._releases import registry_of
from treadle_trainer.jobs import new_lines
from treadle_trainer.queue import JOB_PARTS, RESUMABLE, Job, JobQueue, served

if TYPE_CHECKING:
    from treadle_corpus import Corpus

__all__ = ["job", "submitted"]

POLL_S = 0.5
LOGS = ("log.txt", "backend.log", "launch/log.txt", "progress.jsonl")
"""What a job, an external trainer, and the ranks of several processes print."""
SHOWN_REASON_CHARS = 200
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

    with Corpus.open(parse_ref(reference, settings.corpus_root)) as corpus:
        name = workspace or corpus.manifest.workspace
        submitted(settings, corpus, name, slot, changes_of(changes), label, as_json)


def submitted(
    settings: Settings, corpus: Corpus, workspace: str, slot: str, wanted: dict[str, Any], label: str, as_json: bool
) -> None:
    """Queue a job with the slot's policy, `wanted` on top, and say so. Raises SettingError where the slot has no policy."""
    from treadle_trainer.policy import TrainingPolicy

    stored = TrainingPolicy.load(registry_root(settings), workspace, slot)
    if stored is None:
        raise SettingError(f"{workspace}/{slot} has no policy; `treadle trainer -w {workspace} --set ...` writes one")
    fingerprint = stored.changed(wanted).fingerprint
    registry = registry_of(settings, workspace, slot)
    found, new = JobQueue(registry.path).submit(
        str(corpus.path), corpus.version, fingerprint=fingerprint, settings=wanted, label=label
    )
    if as_json:
        echo_json({**to_json(found), "new": new})
        return
    click.echo(f"job {found.number} {found.state}" + ("" if new else " (asked for before)"))
    if found.state in RESUMABLE:
        click.echo(f"`treadle job resume {found.number} -w {workspace}` queues it again", err=True)
    elif found.state == "queued" and not served(registry.path):
        click.echo("nobody serves the slot now: `treadle trainer` or `treadle up` does", err=True)


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
        reason = " ".join((one.reason or "").split())[:SHOWN_REASON_CHARS]
        what = one.decision or reason
        if one.state == "running":
            what = "cancelling" if one.cancelling else _far(_progress(settings, one))
        click.echo(f"{one.number:>5}  {one.state:<10}  {one.submitted_at[:19]}  {one.corpus}@v{one.version}  {what}")


@job.command()
@_of_one
@json_option
@pass_settings
def show(settings: Settings, number: int, workspace: str | None, slot: str, as_json: bool) -> None:
    """Show job NUMBER and where its logs lie."""
    one = _queue(settings, workspace, slot).job(number)
    data = {**to_json(one), "progress": _progress(settings, one)}
    logs = [str(path) for path in _logs(settings, one)]
    if as_json:
        echo_json({**data, "logs": logs})
        return
    shown = [(name, value) for name, value in data.items() if value not in (None, "", {}, False)]
    for name, value in [*shown, *(("log", path) for path in logs)]:
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
    """Queue job NUMBER again, which failed, was cancelled or superseded. It goes on from its last whole checkpoint."""
    _changed(_queue(settings, workspace, slot).resume(number), as_json)


@job.command()
@_of_one
@click.option("--follow", "-f", is_flag=True, help="Go on until the job is over.")
@pass_settings
def logs(settings: Settings, number: int, workspace: str | None, slot: str, follow: bool) -> None:
    """Print the logs of job NUMBER: training, then evaluation."""
    queue = _queue(settings, workspace, slot)
    seen: dict[Path, int] = {}
    waits: str | None = None
    while True:
        one = queue.job(number)
        if follow and one.state == "queued" and waits != (one.reason or ""):
            waits = one.reason or ""
            click.echo(f"job {number} waits" + (f": {waits}" if waits else ""), err=True)
        for path in _logs(settings, one):
            _print_new(path, seen)
        if not follow or one.state not in ("queued", "running"):
            break
        time.sleep(POLL_S)
    click.echo(f"job {number} {one.state}" + (f": {one.reason}" if one.reason else ""), err=True)


@job.command()
@click.option("--by-hand", is_flag=True, help="Also checkpoints of trainings by hand: `--resume` begins them anew.")
@click.option("--dry-run", is_flag=True, help="Say what takes how much, and what would be deleted.")
@yes_option
@json_option
@pass_settings
def prune(settings: Settings, by_hand: bool, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Delete what jobs left on the disk and nobody needs, of all workspaces: it can be made again. Releases stay, see `release gc`.

    That is checkpoints and rows of jobs that are over (resumed, a failed one begins anew), and token columns of older versions.
    """
    from treadle_trainer.storage import Storage, bytes_text

    storage = Storage(registry_root(settings), jobs_root(settings), settings.corpus_root, settings.trainer_bytes)
    use, found = storage.use(), list(storage.leftovers(by_hand=by_hand))
    total = sum(one.bytes for one in found)
    if not as_json:
        for one in found:
            click.echo(f"{one.kind:<11}  {one.bytes:>14,} bytes  {one.place}  ({one.of})")
    if not dry_run and found:
        if not confirmed(f"Delete {total:,} bytes?", yes):
            return 1
        agreed = {
            one.place for one in found
        }  # asked for again: a job may have been resumed while somebody thought about it
        found = [one for one in storage.leftovers(by_hand=by_hand) if one.place in agreed and storage.free(one)]
        total = sum(one.bytes for one in found)
    if as_json:
        items = [one._asdict() for one in found]
        echo_json({"use": to_json(use), "deleted": [] if dry_run else items, "found": items, "bytes": total})
    else:
        click.echo(f"{'would delete' if dry_run else 'deleted'} {total:,} bytes")
        budget = "" if use.budget is None else f" of {bytes_text(use.budget)}"
        click.echo(f"{'kept' if dry_run or not found else 'kept before'}: {use}{budget}; {bytes_text(use.free)} free")
    return 0


def _print_new(path: Path, seen: dict[Path, int]) -> None:
    with path.open("rb") as file:
        size, start = file.seek(0, os.SEEK_END), seen.get(path, 0)
        file.seek(start if start <= size else 0)  # else the job began anew
        data = file.read()
        seen[path] = file.tell()
    if data:
        click.echo(data.decode(errors="replace"), nl=False)


def _logs(settings: Settings, one: Job) -> list[Path]:
    folders = [jobs_root(settings) / f"{one.key}-{part}" for part in JOB_PARTS] if one.key else []
    return [path for folder in folders for name in LOGS if (path := folder / name).exists()]


def _progress(settings: Settings, one: Job) -> dict[str, Any] | None:
    """The newest thing that the job said of its progress."""
    said = [path for path in _logs(settings, one) if path.name == "progress.jsonl"]
    lines = new_lines(said[-1], 0)[1] if said else []
    return lines[-1] if lines else None


def _far(progress: dict[str, Any] | None) -> str:
    """In a few words."""
    if progress is None:
        return ""
    steps = f" {progress['step']}/{progress['steps']}" if {"step", "steps"} <= progress.keys() else ""
    return f"{progress.get('stage', '')}{steps}"


def _queue(settings: Settings, workspace: str | None, slot: str) -> JobQueue:
    return JobQueue(registry_of(settings, workspace_of(settings, workspace), slot).path)


def _changed(one: Job, as_json: bool) -> None:
    if as_json:
        echo_json(to_json(one))
    else:
        click.echo(f"job {one.number} {'is being cancelled' if one.cancelling else one.state}")
