"""`treadle ingest`, and the tokens and secrets it lets in."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import click
from treadle.cli.support import DURATION, SuggestingGroup, confirmed, echo_json, json_option, pass_settings, yes_option
from treadle.errors import MissingExtra
from treadle.policies import remember
from treadle.settings import Settings
from treadle_schemas.errors import SettingError
from treadle_schemas.ids import check_workspace

from treadle_streams import workspaces
from treadle_streams.ingest._access import Access, Entry
from treadle_streams.ingest._settings import IngestSettings

__all__ = ["ingest"]

_OPTIONS: Final = (
    click.argument("workspace"),
    click.option("--rotate", is_flag=True, help="End the workspace's older ones."),
    click.option(
        "--grace", type=DURATION, default="0s", show_default=True, help="How long the older ones still count then."
    ),
    click.option("--offline", is_flag=True, help="Do not look on Kafka whether WORKSPACE exists."),
    json_option,
    pass_settings,
)
"""Of both commands that make something."""
_OURS: Final = ("treadle", "treadle_schemas", "treadle_streams")


@click.group(cls=SuggestingGroup, invoke_without_command=True)
@click.option("--host", help="Address to listen on (TREADLE_INGEST_HOST); default: 127.0.0.1.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port (TREADLE_INGEST_PORT); default: 8484; 0: any free one."
)
@click.option("--verbose", "-v", is_flag=True, help="Say more on stderr.")
@click.pass_context
@pass_settings
def ingest(settings: Settings, ctx: click.Context, host: str | None, port: int | None, verbose: bool) -> None:
    """Receive events over HTTP: JSON, GitHub webhooks, OpenTelemetry spans. See docs/ingest.md.

    What is answered with 202 is on this machine's disk, redacted by the workspace's policy, and goes to Kafka from there. Every request
    needs a token (`treadle ingest token WORKSPACE`) or GitHub's signature. There is no TLS: that is a reverse proxy's part.

    Runs until SIGTERM, which finishes open requests and waits up to 10 s for Kafka.
    """
    if ctx.invoked_subcommand is not None:
        return
    own = IngestSettings.load(settings)
    own = replace(own, host=host or own.host, port=own.port if port is None else port)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        from treadle_streams.ingest._server import serve
    except ModuleNotFoundError as err:
        top = (err.name or "").partition(".")[0]
        if top in _OURS:
            raise
        raise MissingExtra("ingest", top, "ingest") from err
    if not Access(own.access_file).checked() and own.github_secret is None:
        click.echo("nobody can send anything yet: `treadle ingest token WORKSPACE` makes a token", err=True)
    serve(settings, own, lambda address: click.echo(f"listening on {address}"))


def _makes(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@ingest.command()
@_makes
def token(settings: Settings, workspace: str, rotate: bool, grace: float, offline: bool, as_json: bool) -> None:
    """Make a token for WORKSPACE and print it, once: only a hash of it is kept. A running receiver takes it at once."""
    access = _access(settings, workspace, offline)
    _tell(*access.add_token(workspace, rotate=rotate, grace_s=grace), as_json)


@ingest.command("github-secret")
@_makes
def github_secret(settings: Settings, workspace: str, rotate: bool, grace: float, offline: bool, as_json: bool) -> None:
    """Make a secret for GitHub's webhooks of WORKSPACE and print it. It is kept in the access file, readable by its owner alone."""
    access = _access(settings, workspace, offline)
    _tell(*access.add_secret(workspace, rotate=rotate, grace_s=grace), as_json)


@ingest.command("list")
@json_option
@pass_settings
def list_(settings: Settings, as_json: bool) -> None:
    """List tokens and secrets by id, without what they are."""
    entries = Access(IngestSettings.load(settings).access_file).checked()
    if as_json:
        echo_json([_shown(entry) for entry in entries])
        return
    for entry in entries:
        ends = f"  until {entry.ends_at}" if entry.ends_at else ""
        click.echo(f"{entry.id}  {entry.kind:<6}  {entry.workspace}  since {entry.created_at}{ends}")


@ingest.command()
@click.argument("identity", metavar="ID")
@yes_option
@pass_settings
def revoke(settings: Settings, identity: str, yes: bool) -> int:
    """Take a token or secret away at once, by its id."""
    access = Access(IngestSettings.load(settings).access_file)
    found = next((entry for entry in access.checked() if entry.id == identity), None)
    if found is None:
        raise SettingError(f"there is no token or secret {identity!r}; `treadle ingest list` shows all")
    if not confirmed(f"Revoke the {found.kind} {found.id} of {found.workspace}?", yes):
        return 1
    access.revoke(identity)
    click.echo(f"revoked {found.kind} {found.id} of {found.workspace}")
    return 0


def _access(settings: Settings, workspace: str, offline: bool) -> Access:
    check_workspace(workspace)
    if not offline:
        # a receiver on this machine knows the workspace's policy from its first event on
        remember(settings.home, workspaces.get(settings.bootstrap_servers, workspace))
    return Access(IngestSettings.load(settings).access_file)


def _tell(entry: Entry, made: str, as_json: bool) -> None:
    what = "token" if entry.kind == "token" else "secret"
    if as_json:
        echo_json({**_shown(entry), what: made})
        return
    click.echo(made)
    click.echo(f"{what} {entry.id} of {entry.workspace}; it is not shown again", err=True)


def _shown(entry: Entry) -> dict[str, str | None]:
    return {
        "id": entry.id,
        "kind": entry.kind,
        "workspace": entry.workspace,
        "created_at": entry.created_at,
        "ends_at": entry.ends_at,
    }
