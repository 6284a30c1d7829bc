"""`treadle outcome TARGET name=value`."""

from __future__ import annotations

from typing import Final

import click
from treadle_schemas.canonical import dumps, loads
from treadle_schemas.errors import FieldError
from treadle_schemas.events import OutcomeValue
from treadle_schemas.ids import check_workspace
from treadle_schemas.topics import topic

from treadle.cli.support import echo_json, json_option, pass_settings
from treadle.errors import NotDelivered, TargetError, TopicMissing
from treadle.log import Admin
from treadle.recorder import Recorder
from treadle.settings import Settings
from treadle.targets import WholeEpisode, resolve

__all__ = ["outcome"]

_DELIVERY_S: Final = 30.0


@click.command()
@click.argument("target")
@click.argument("values", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--workspace", "-w", help="Workspace of a TARGET that does not say it; default: TREADLE_WORKSPACE.")
@click.option(
    "--episode", is_flag=True, help="The outcome is the whole episode's: TARGET is its id, or a handle in it."
)
@click.option("--comment", "comments", multiple=True, metavar="TEXT", help="Say it in words. Repeatable.")
@click.option("--prefer-over", metavar="HANDLE", help="TARGET is better than this interaction.")
@click.option("--demonstrate", metavar="TEXT", help="What the answer should have been.")
@click.option(
    "--retract", "retracted", multiple=True, metavar="NAME", help="Take back this metric's outcomes. Repeatable."
)
@click.option("--outcome-id", help="Id of the one outcome reported or taken back; a repeated report counts once.")
@click.option("--observed-at", metavar="TIME", help="When it was observed, RFC 3339 with a zone; default: now.")
@click.option("--source", default="cli", show_default=True, help="Who says so.")
@json_option
@pass_settings
def outcome(
    settings: Settings,
    target: str,
    values: tuple[str, ...],
    workspace: str | None,
    episode: bool,
    comments: tuple[str, ...],
    prefer_over: str | None,
    demonstrate: str | None,
    retracted: tuple[str, ...],
    outcome_id: str | None,
    observed_at: str | None,
    source: str,
    as_json: bool,
) -> None:
    """Say what became of an interaction.

    TARGET is its handle (workspace/episode/interaction, as capture returned it), the id that the provider gave to the answer
    (chatcmpl-7), or a reference it was recorded with (pr:org/repo#12, or the pull request's address).

    A value is true, false, null (the source says that there is none), a number, or text; quote it as JSON ("1") to keep a number text.
    """
    said = [_parsed(text) for text in values]
    count = len(said) + len(comments) + len(retracted) + (prefer_over is not None) + (demonstrate is not None)
    if not count:
        raise click.UsageError("nothing to say: give NAME=VALUE, --comment, --prefer-over, --demonstrate or --retract")
    if outcome_id is not None and count != 1:
        raise click.UsageError("--outcome-id is the id of one outcome; say one thing")
    about = WholeEpisode(target, workspace).treadle_target if episode else resolve(target, workspace)
    named = about.workspace or settings.workspace
    if named is None:
        raise TargetError(f"{about} does not say which workspace it is of: give --workspace, or set TREADLE_WORKSPACE")
    if topic(check_workspace(named), "outcomes") not in Admin(settings.bootstrap_servers).partitions():
        raise TopicMissing(f"workspace {named} does not exist; `treadle workspace list` shows those that do")
    sent: list[dict[str, OutcomeValue]] = []
    recorder = Recorder(named, settings=settings, raise_errors=True)
    with recorder:
        for name, value in said:
            made = recorder.outcome(about, name, value, observed_at=observed_at, outcome_id=outcome_id, source=source)
            sent.append({"op": "set", "name": name, "value": value, "outcome_id": made})
        for text in comments:
            made = recorder.comment(about, text, observed_at=observed_at, outcome_id=outcome_id, source=source)
            sent.append({"op": "set", "name": "comment", "value": text, "outcome_id": made})
        if prefer_over is not None:
            made = recorder.preference(
                about, over=prefer_over, observed_at=observed_at, outcome_id=outcome_id, source=source
            )
            sent.append({"op": "set", "name": "preference", "value": None, "outcome_id": made})
        if demonstrate is not None:
            made = recorder.demonstration(
                about, demonstrate, observed_at=observed_at, outcome_id=outcome_id, source=source
            )
            sent.append({"op": "set", "name": "demonstration", "value": None, "outcome_id": made})
        for name in retracted:
            recorder.retract(about, name, outcome_id=outcome_id, observed_at=observed_at, source=source)
            sent.append({"op": "retract", "name": name, "outcome_id": outcome_id})
        left = recorder.flush(_DELIVERY_S)
    if left:
        raise NotDelivered(f"{left} of {len(sent)} not acknowledged by Kafka in {_DELIVERY_S:g} s", left)
    if as_json:
        echo_json({"handle": str(about), "outcomes": sent})
        return
    for entry in sent:
        what = (
            f"{entry['name']}={dumps(entry['value']).decode()}"
            if entry["op"] == "set"
            else f"retracted {entry['name']}"
        )
        click.echo(f"{about}  {what}{'  ' + str(entry['outcome_id']) if entry['outcome_id'] else ''}")


def _parsed(text: str) -> tuple[str, OutcomeValue]:
    # a metric's name may hold no "=", its text value may
    name, equals, raw = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{text!r} is not NAME=VALUE")
    try:
        value = loads(raw)
    except FieldError:
        if _reads_as_number(raw):
            raise click.UsageError(f"{name}: {raw} is no finite JSON number; quote it to send it as text") from None
        return name, raw  # plain text needs no quotes
    if isinstance(value, dict | list):
        raise click.UsageError(f"{name}: an outcome's value is true, false, null, a number or text, not {raw}")
    return name, value


def _reads_as_number(raw: str) -> bool:
    # nan, 1e999, .5, 1_000: meant as numbers, and text would be refused later by a metric that is one
    try:
        float(raw)
    except ValueError:
        return False
    return True
