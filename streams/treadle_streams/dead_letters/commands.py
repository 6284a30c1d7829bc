"""`treadle dead-letter list|show|replay|drop`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import click
from treadle.cli.support import (
    DURATION,
    SuggestingGroup,
    confirmed,
    echo_json,
    json_option,
    pass_settings,
    workspace_of,
    yes_option,
)
from treadle.settings import Settings
from treadle_schemas.errors import SettingError
from treadle_schemas.moments import to_micros
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import workspaces
from treadle_streams.dead_letters._letters import DeadLetter, letters, replay, resolve

__all__ = ["dead_letter"]

_workspace_option = click.option("--workspace", "-w", "name", help="The workspace (TREADLE_WORKSPACE).")
_reason_option = click.option("--reason", "reasons", multiple=True, metavar="REASON", help="Only these. Repeatable.")
_since_option = click.option("--since", type=DURATION, help="Only those refused in the last so long, for example 2h.")
_all_option = click.option("--all", "everything", is_flag=True, help="All that nothing was done about yet.")
_ids = click.argument("ids", nargs=-1, metavar="[PARTITION@OFFSET]...")


@click.group(cls=SuggestingGroup)
def dead_letter() -> None:
    """Look at what the join refused, send it again, or put it aside."""


@dead_letter.command("list")
@_workspace_option
@_reason_option
@_since_option
@click.option("--done", is_flag=True, help="Also those about which something was done.")
@json_option
@pass_settings
def list_(
    settings: Settings, name: str | None, reasons: tuple[str, ...], since: float | None, done: bool, as_json: bool
) -> None:
    """List dead letters with reason, place and detail."""
    _, found = _letters(settings, name)
    chosen = [x for x in _filtered(found, reasons, since) if done or x.done is None]
    if as_json:
        echo_json([letter.plain() for letter in chosen])
        return
    for letter in chosen:
        note = f"  ({letter.done})" if letter.done else ""
        click.echo(
            f"{letter.name}  {letter.at}  {letter.reason}  {letter.topic}[{letter.source_partition}]@{letter.source_offset}"
            f"  {letter.detail}{note}"
        )
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(x.reason for x in chosen).items()))
    click.echo(counts or "no dead letter", err=True)


@dead_letter.command()
@click.argument("which", metavar="PARTITION@OFFSET")
@_workspace_option
@pass_settings
def show(settings: Settings, which: str, name: str | None) -> None:
    """Show one dead letter as JSON, with its headers and its value."""
    _, found = _letters(settings, name)
    echo_json(_named(found, (which,))[0].plain(whole=True))


@dead_letter.command("replay")
@_ids
@_workspace_option
@_reason_option
@_since_option
@_all_option
@yes_option
@json_option
@pass_settings
def replay_(
    settings: Settings,
    ids: tuple[str, ...],
    name: str | None,
    reasons: tuple[str, ...],
    since: float | None,
    everything: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Send refused records again, as they were, to the topic that they came from.

    Worth it when what stood in their way is gone: an orphan whose interaction has been recorded since, a value that a metric declared
    otherwise would take. What is still wrong becomes a dead letter again. Safe to repeat.
    """
    workspace, chosen = _chosen(settings, ids, name, reasons, since, everything)
    if not chosen or not confirmed(f"Send {len(chosen)} records of {workspace.workspace} again?", yes):
        return _nothing(chosen, as_json)
    sent = replay(settings.bootstrap_servers, workspace, chosen)
    left = len(chosen) - len(sent)
    if as_json:
        echo_json({"replayed": len(sent), "left": left})
    else:
        click.echo(f"replayed {len(sent)} records" + (f"; {left} were not kept whole, and stay" if left else ""))
    return 1 if left else 0


@dead_letter.command()
@_ids
@_workspace_option
@_reason_option
@_since_option
@_all_option
@yes_option
@json_option
@pass_settings
def drop(
    settings: Settings,
    ids: tuple[str, ...],
    name: str | None,
    reasons: tuple[str, ...],
    since: float | None,
    everything: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Put dead letters aside: they are listed no more. The records stay on the topic."""
    workspace, chosen = _chosen(settings, ids, name, reasons, since, everything)
    if not chosen or not confirmed(f"Put {len(chosen)} dead letters of {workspace.workspace} aside?", yes):
        return _nothing(chosen, as_json)
    resolve(settings.bootstrap_servers, workspace, chosen, "dropped")
    if as_json:
        echo_json({"dropped": len(chosen)})
    else:
        click.echo(f"dropped {len(chosen)} dead letters")
    return 0


def _letters(settings: Settings, name: str | None) -> tuple[WorkspaceSettings, list[DeadLetter]]:
    workspace = workspaces.get(settings.bootstrap_servers, workspace_of(settings, name))
    return workspace, letters(settings.bootstrap_servers, workspace)


def _chosen(
    settings: Settings,
    ids: Sequence[str],
    name: str | None,
    reasons: Sequence[str],
    since: float | None,
    everything: bool,
) -> tuple[WorkspaceSettings, list[DeadLetter]]:
    if bool(ids) == bool(reasons or since is not None or everything):
        raise click.UsageError(
            "say which: PARTITION@OFFSET as `treadle dead-letter list` has them, or --reason, --since, --all"
        )
    workspace, found = _letters(settings, name)
    chosen = _named(found, ids) if ids else [x for x in _filtered(found, reasons, since) if x.done is None]
    return workspace, chosen


def _named(found: Sequence[DeadLetter], ids: Sequence[str]) -> list[DeadLetter]:
    by_name = {letter.name: letter for letter in found}
    unknown = [name for name in ids if name not in by_name]
    if unknown:
        raise SettingError(f"{', '.join(unknown)}: no such dead letter; `treadle dead-letter list --done` lists all")
    return [by_name[name] for name in ids]


def _filtered(found: Sequence[DeadLetter], reasons: Sequence[str], since: float | None) -> list[DeadLetter]:
    bound_us = 0 if since is None else int((time.time() - since) * 1e6)
    return [x for x in found if (not reasons or x.reason in reasons) and to_micros(x.at, "at") >= bound_us]


def _nothing(chosen: Sequence[DeadLetter], as_json: bool) -> int:
    if chosen:
        return 1  # the answer was no
    if as_json:
        echo_json({"replayed": 0, "left": 0})
    else:
        click.echo("no dead letter to do anything about", err=True)
    return 0
