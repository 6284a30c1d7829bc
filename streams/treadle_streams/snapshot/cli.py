"""`treadle snapshot` and `treadle snapshotter`."""

from __future__ import annotations

from pathlib import Path

import click
from treadle.cli.support import DURATION, echo_json, json_option, pass_settings, workspace_of
from treadle.settings import Settings
from treadle_corpus import Policy, resolve_target
from treadle_schemas.ids import check_workspace
from treadle_schemas.moments import from_micros, now

from treadle_streams import workspaces
from treadle_streams.snapshot.run import DEFAULT_WAIT_S, RunReport, Snapshotter, run_snapshot
from treadle_streams.snapshot.service import DEFAULT_EVERY_S, DEFAULT_MIN_NEW_ROWS, serve

__all__ = ["snapshot", "snapshotter"]

_filter_option = click.option(
    "--filter",
    "filter_",
    metavar="EXPR",
    help="SQL condition over columns, metrics, tags.NAME, state(METRIC), now; only true selects. Default: every settled row.",
)
_to_option = click.option(
    "--to",
    "target",
    metavar="TARGET",
    help="A folder or deeplake://ORG/NAME. Default: TREADLE_HOME/corpora/WORKSPACE/main.",
)
_dedupe_option = click.option(
    "--dedupe",
    type=click.Choice(["id", "exact"]),
    default="id",
    show_default=True,
    help="exact: of rows with equal messages and tools keep the best, inside each side of the split.",
)
_replace_option = click.option("--replace-policy", is_flag=True, help="Let the corpus follow this policy from now on.")
_wait_option = click.option(
    "--wait", "wait_s", type=DURATION, default=DEFAULT_WAIT_S, show_default="5m", help="Wait so long for the join."
)


@click.command()
@click.argument("workspace", required=False)
@_filter_option
@_to_option
@_dedupe_option
@_replace_option
@_wait_option
@json_option
@pass_settings
def snapshot(
    settings: Settings,
    workspace: str | None,
    filter_: str | None,
    target: str | None,
    dedupe: str,
    replace_policy: bool,
    wait_s: float,
    as_json: bool,
) -> None:
    """Make the next version of a corpus from all rows that have settled by now.

    Waits until the join has passed the present ends of the inputs, and exits with 5 where that takes longer than --wait. A version is the
    exact fold of its offsets; where its rows would be those of the version before, none is made. Rows that have not settled are counted as
    pending and wait for a later version.
    """
    name = workspace_of(settings, workspace)
    label, path = _target(settings, name, target)
    report = run_snapshot(
        settings.bootstrap_servers,
        name,
        path,
        _policy(filter_, dedupe),
        wait_s=wait_s,
        replace_policy=replace_policy,
        tell=_tell,
    )
    _show(report, label, as_json)


@click.command()
@click.option("--workspace", metavar="WS", help="Default: TREADLE_WORKSPACE.")
@_filter_option
@_to_option
@_dedupe_option
@_replace_option
@_wait_option
@click.option(
    "--min-new-rows",
    type=click.IntRange(1),
    default=DEFAULT_MIN_NEW_ROWS,
    show_default=True,
    help="Run as soon as so many new rows have settled.",
)
@click.option(
    "--every",
    "every_s",
    type=DURATION,
    default=DEFAULT_EVERY_S,
    show_default="10m",
    help="Run so long after the run before, if anything was graded since.",
)
@json_option
@pass_settings
def snapshotter(
    settings: Settings,
    workspace: str | None,
    filter_: str | None,
    target: str | None,
    dedupe: str,
    replace_policy: bool,
    wait_s: float,
    min_new_rows: int,
    every_s: float,
    as_json: bool,
) -> None:
    """Follow a workspace and keep making versions of one corpus. Runs until it is stopped; it can be killed at any time."""
    name = workspace_of(settings, workspace)
    label, path = _target(settings, name, target)
    servers = settings.bootstrap_servers
    found = workspaces.get(servers, name)
    policy = _policy(filter_, dedupe)
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


def _target(settings: Settings, workspace: str, target: str | None) -> tuple[str, Path]:
    """How the corpus is called in messages, and where it lies."""
    path = settings.home / "corpora" / check_workspace(workspace) / "main"
    if target is None:
        return str(path), path
    return target, resolve_target(target, settings.corpus_root)


def _policy(filter_: str | None, dedupe: str) -> Policy:
    return Policy(
        filter=filter_.strip() if filter_ is not None else None, dedupe="exact" if dedupe == "exact" else "id"
    )


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
        f"{reason} {tally.dropped[reason]:,}"
        for reason in ("leak", "split_moved", "duplicate", "rights", "redacted", "erased")
        if tally.dropped.get(reason)
    ]
    if report.refused:
        parts.append(f"dead letters {report.refused:,}")
    if report.settled_through_ms:
        parts.append(f"settled through {from_micros(report.settled_through_ms * 1000)[11:19]}")
    if report.version and not report.new:
        parts.append("(nothing changed: no new version)")
    return "  ".join(parts)
