"""`treadle snapshot` and `treadle snapshotter`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from treadle.cli.support import DURATION, echo_json, json_option, pass_settings, workspace_of
from treadle.settings import Settings
from treadle_corpus import Policy
from treadle_schemas.moments import from_micros, now
from treadle_schemas.snapshot_policy import MAIN

from treadle_streams import workspaces
from treadle_streams.snapshot._options import SELECTION, cadence_options, chosen, policy_from, selection_options
from treadle_streams.snapshot.dry import dry_run
from treadle_streams.snapshot.policies import find_policy, selection, target_of
from treadle_streams.snapshot.run import DEFAULT_WAIT_S, RunReport, Snapshotter, run_snapshot
from treadle_streams.snapshot.service import serve, serve_policies

__all__ = ["snapshot", "snapshotter"]

_replace_option = click.option("--replace-policy", is_flag=True, help="Let the corpus follow this policy from now on.")
_wait_option = click.option(
    "--wait", "wait_s", type=DURATION, default=DEFAULT_WAIT_S, show_default="5m", help="Wait so long for the join."
)


@click.command()
@click.argument("workspace", required=False)
@click.option("--policy", "named", metavar="NAME", help="Run this stored policy; default: main.")
@selection_options
@_replace_option
@_wait_option
@click.option("--dry-run", "dry", is_flag=True, help="Only say how many rows would pass, and why the others do not.")
@json_option
@pass_settings
def snapshot(
    settings: Settings,
    /,
    workspace: str | None,
    named: str | None,
    replace_policy: bool,
    wait_s: float,
    dry: bool,
    as_json: bool,
    **said: object,
) -> None:
    """Make the next version of a corpus from all rows that have settled by now.

    The rows are those of a stored policy (see `treadle policy`), or of one that --filter and the other options say for this once.
    Waits until the join has passed the present ends of the inputs, and exits with 5 where that takes longer than --wait. A version is the
    exact fold of its offsets; where its rows would be those of the version before, none is made. Rows that have not settled are counted as
    pending and wait for a later version. With --dry-run nothing is written, neither here nor on Kafka.
    """
    name = workspace_of(settings, workspace)
    policy, label, path = _chosen(settings, name, named, said)
    servers = settings.bootstrap_servers
    if dry:
        found = dry_run(servers, name, path, policy, wait_s=wait_s, tell=_tell)
        if as_json:
            echo_json(found.to_json())
            return
        for line in found.lines():
            click.echo(line)
        return
    report = run_snapshot(servers, name, path, policy, wait_s=wait_s, replace_policy=replace_policy, tell=_tell)
    _show(report, label, as_json)


@click.command()
@click.option("--workspace", metavar="WS", help="Default: TREADLE_WORKSPACE.")
@click.option("--policy", "names", metavar="NAME", multiple=True, help="Only this stored policy. Repeatable.")
@selection_options
@_replace_option
@_wait_option
@cadence_options("Run", " Not of stored policies.")
@json_option
@pass_settings
def snapshotter(
    settings: Settings,
    /,
    workspace: str | None,
    names: tuple[str, ...],
    replace_policy: bool,
    wait_s: float,
    min_new_rows: int,
    every_s: float,
    as_json: bool,
    **said: object,
) -> None:
    """Follow a workspace and keep making versions of its corpora. Runs until it is stopped; it can be killed at any time.

    It runs all stored policies that are not manual, the built-in `main` among them, and follows what `treadle policy` changes. With
    --filter or another option of a policy it runs that one alone.
    """
    name = workspace_of(settings, workspace)
    servers = settings.bootstrap_servers
    found = workspaces.get(servers, name)
    alone = [*SELECTION, "replace_policy", "min_new_rows", "every_s"]
    if not chosen(alone):
        for policy_name in names:
            find_policy(found, policy_name)
        serve_policies(
            servers,
            name,
            lambda policy: target_of(settings, name, policy)[1],
            only=names,
            wait_s=wait_s,
            ran=lambda _, report: _show(report, report.corpus, as_json),
            tell=_tell,
        )
        return
    if names:
        raise click.UsageError(
            "--policy runs what is stored; leave the other options out, or change it: treadle policy create"
        )
    policy, label, path = _said(settings, name, said)
    with Snapshotter(servers, found, path, policy, replace_policy=replace_policy, tell=_tell) as opened:
        click.echo(f"{now()} following {name} into {label} ({policy})", err=True)
        serve(
            opened,
            servers,
            found,
            min_new_rows=min_new_rows,
            every_s=every_s,
            wait_s=wait_s,
            ran=lambda report: _show(report, label, as_json),
            tell=_tell,
        )


def _chosen(settings: Settings, workspace: str, named: str | None, said: dict[str, object]) -> tuple[Policy, str, Path]:
    """The policy of a run, how its corpus is called in messages, and where it lies."""
    if chosen(SELECTION):
        if named is not None:
            raise click.UsageError("say either --policy, or the policy itself by --filter and the other options")
        return _said(settings, workspace, said)
    stored = find_policy(workspaces.get(settings.bootstrap_servers, workspace), named or MAIN)
    return selection(stored), *target_of(settings, workspace, stored)


def _said(settings: Settings, workspace: str, said: dict[str, object]) -> tuple[Policy, str, Path]:
    """A policy for this once. It has no name: only the one that is stored may change what a corpus follows."""
    policy = policy_from(MAIN, said)
    return msgspec.structs.replace(selection(policy), name=""), *target_of(settings, workspace, policy)


def _tell(text: str) -> None:
    click.echo(f"{now()} {text}", err=True)


def _show(report: RunReport, label: str, as_json: bool) -> None:
    if as_json:
        echo_json(report.to_json())
    else:
        click.echo(_line(report, label))


def _line(report: RunReport, label: str) -> str:
    """`corpus@v18  selected 2,310  rejected 1,544  unknown 1,516 (pending 1,205, absent 311)  pending 12  settled through ...`"""
    tally = report.tally
    unknown = sum(tally.unknown.values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in tally.unknown.items() if count)
    parts = [
        f"{label}@v{report.version}" if report.version else f"{label}: no version yet",
        f"selected {tally.selected:,}",
        f"rejected {tally.rejected:,}",
        f"unknown {unknown:,}" + (f" ({reasons})" if reasons else ""),
        f"pending {report.pending:,}",
    ]
    parts += [
        f"{reason} {count:,}"
        for reason, count in tally.dropped.items()
        if count and reason not in ("rejected", "unknown")
    ]
    if report.refused:
        parts.append(f"dead letters {report.refused:,}")
    if report.settled_through_ms:
        parts.append(f"settled through {from_micros(report.settled_through_ms * 1000)[11:19]}")
    if report.version and not report.new:
        parts.append("(nothing changed: no new version)")
    return "  ".join(parts)
