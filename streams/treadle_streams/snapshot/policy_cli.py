"""`treadle policy create|list|show|delete`."""

from __future__ import annotations

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
from treadle_schemas.codec import to_json
from treadle_schemas.snapshot_policy import SnapshotPolicy
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import workspaces
from treadle_streams.snapshot._options import cadence_options, policy_from, selection_options
from treadle_streams.snapshot.policies import (
    delete_policy,
    find_policy,
    is_built_in,
    policies_of,
    selection,
    store_policy,
    target_of,
)

__all__ = ["policy"]


@click.group(cls=SuggestingGroup)
def policy() -> None:
    """Store, list, show and delete snapshot policies: which rows a corpus has, where it lies, when it gets a version.

    Every workspace has `main` from the beginning: all settled rows, into TREADLE_HOME/corpora/WORKSPACE/main. Storing one of this name
    takes its place.
    """


@policy.command()
@click.argument("workspace")
@click.argument("name")
@selection_options
@cadence_options("A version")
@click.option("--manual", is_flag=True, help="A version by `treadle snapshot --policy` alone.")
@click.option("--replace", is_flag=True, help="Change the policy of that name, from its next version on.")
@json_option
@pass_settings
def create(
    settings: Settings,
    /,
    workspace: str,
    name: str,
    min_new_rows: int,
    every_s: float,
    manual: bool,
    replace: bool,
    as_json: bool,
    **said: object,
) -> None:
    """Store a policy. The workspace's snapshotter runs it within a second; nothing is written to its corpus before.

    Try it first: `treadle snapshot WORKSPACE --filter ... --dry-run`.
    """
    made = policy_from(name, said, min_new_rows=min_new_rows, every_s=every_s, manual=manual)
    stored = store_policy(settings.bootstrap_servers, workspace, made, replace=replace)
    _show(settings, stored, made, as_json)


@policy.command("list")
@click.argument("workspace", required=False)
@json_option
@pass_settings
def list_(settings: Settings, workspace: str | None, as_json: bool) -> None:
    """List the policies of a workspace."""
    found = workspaces.get(settings.bootstrap_servers, workspace_of(settings, workspace))
    if as_json:
        echo_json([_json(settings, found, p) for p in policies_of(found).values()])
        return
    for one in policies_of(found).values():
        click.echo(_line(settings, found, one))


@policy.command()
@click.argument("workspace")
@click.argument("name")
@json_option
@pass_settings
def show(settings: Settings, workspace: str, name: str, as_json: bool) -> None:
    """Show one policy."""
    found = workspaces.get(settings.bootstrap_servers, workspace)
    _show(settings, found, find_policy(found, name), as_json)


@policy.command()
@click.argument("workspace")
@click.argument("name")
@yes_option
@json_option
@pass_settings
def delete(settings: Settings, workspace: str, name: str, yes: bool, as_json: bool) -> int:
    """Forget a policy. Its corpus and all versions stay; nothing is added to them any more."""
    if not confirmed(f"Delete policy {name} of workspace {workspace}?", yes):
        return 1
    delete_policy(settings.bootstrap_servers, workspace, name)
    if as_json:
        echo_json({"workspace": workspace, "deleted": name})
    else:
        click.echo(f"deleted policy {name} of {workspace}; its corpus stays")
    return 0


def _show(settings: Settings, workspace: WorkspaceSettings, found: SnapshotPolicy, as_json: bool) -> None:
    if as_json:
        echo_json(_json(settings, workspace, found))
    else:
        click.echo(_line(settings, workspace, found))


def _json(settings: Settings, workspace: WorkspaceSettings, found: SnapshotPolicy) -> dict[str, object]:
    return {
        "workspace": workspace.workspace,
        **to_json(found),
        "target": target_of(settings, workspace.workspace, found)[0],
        "built_in": is_built_in(workspace, found.name),
    }


def _line(settings: Settings, workspace: WorkspaceSettings, found: SnapshotPolicy) -> str:
    """`wins  filter 'reward > 0', dedupe near:0.85  at 1,000 new rows or every 600 s  into ...`"""
    said = str(selection(found)).removeprefix(f"policy {found.name}, ")
    when = (
        "by hand"
        if found.manual
        else f"at {found.min_new_rows:,} new rows, or {found.every_s:g} s after the run before"
    )
    built_in = "  (built in)" if is_built_in(workspace, found.name) else ""
    return f"{found.name}  {said}  {when}  into {target_of(settings, workspace.workspace, found)[0]}{built_in}"
