"""`treadle rights revoke`: deny the use of recorded work, and name the releases that it is already in."""

from __future__ import annotations

from typing import Final

import click
from treadle import Recorder
from treadle.cli.support import (
    SuggestingGroup,
    confirmed,
    echo_json,
    json_option,
    pass_settings,
    workspace_of,
    yes_option,
)
from treadle.errors import NotDelivered
from treadle.settings import Settings
from treadle.subjects import names_of, rows_of
from treadle_schemas import Handle
from treadle_schemas.events import Right

from treadle_trainer.concerned import concerned_releases

__all__ = ["rights"]

_DELIVERY_S: Final = 60.0
_RIGHT = click.Choice(["allow", "deny"])


@click.group(cls=SuggestingGroup)
def rights() -> None:
    """Usage rights of recorded work: training, evaluation, recall."""


@rights.command()
@click.argument("handles", nargs=-1, metavar="[HANDLE]...")
@click.option("--workspace", metavar="WS", help="Workspace of --subject (default: TREADLE_WORKSPACE).")
@click.option("--subject", help="Everything recorded of this subject. In a workspace that hashes subjects too.")
@click.option("--train", type=_RIGHT, help="Training.")
@click.option("--eval", "eval_", type=_RIGHT, help="Evaluation.")
@click.option("--recall", type=_RIGHT, help="Recall by running agents.")
@click.option("--source", default="cli", show_default=True, help="Who says so.")
@yes_option
@json_option
@pass_settings
def revoke(
    settings: Settings,
    handles: tuple[str, ...],
    workspace: str | None,
    subject: str | None,
    train: Right | None,
    eval_: Right | None,
    recall: Right | None,
    source: str,
    yes: bool,
    as_json: bool,
) -> int:
    """Deny the use of HANDLEs, or of everything recorded of a subject; without --train, --eval or --recall all three are denied.

    The next corpus versions leave the rows out, with the reason `rights`. Earlier versions and what was trained on them stay: the releases
    whose corpus holds such a row are named.
    """
    if bool(handles) == (subject is not None):
        raise click.UsageError("name HANDLEs, or --subject")
    if train is None and eval_ is None and recall is None:
        train = eval_ = recall = "deny"
    targets = [Handle.parse(text) for text in handles]
    spaces = {target.workspace for target in targets} if targets else {workspace_of(settings, workspace)}
    if len(spaces) != 1:
        raise click.UsageError(
            f"the handles are of several workspaces: {', '.join(sorted(spaces))}; name one at a time"
        )
    space = spaces.pop()
    wanted = frozenset() if subject is None else names_of(settings, subject)
    rows = {(t.episode_id, t.interaction_id) for t in targets} or {
        (found.episode_id, found.interaction_id) for found in rows_of(settings.bootstrap_servers, space, wanted)
    }
    concerned = list(
        concerned_releases(
            settings.home, settings.corpus_root, space, rows, wanted, lambda line: click.echo(line, err=True)
        )
    )
    if not rows and not concerned:
        click.echo(f"nothing is recorded of that subject in workspace {space}", err=True)
        return 1
    said = {name: given for name, given in (("train", train), ("eval", eval_), ("recall", recall)) if given is not None}
    words = ", ".join(f"{name} {given}" for name, given in said.items())
    question = f"Set {words} for {len(rows)} interactions of {space}, on which {len(concerned)} releases were trained?"
    if not confirmed(question, yes):
        return 1
    with Recorder(space, agent="rights", settings=settings, raise_errors=True) as recorder:
        for episode, interaction in sorted(rows):
            recorder.rights(Handle(space, episode, interaction), train=train, eval=eval_, recall=recall, source=source)
        left = recorder.flush(_DELIVERY_S)
    if left:
        raise NotDelivered(
            f"{left} events not acknowledged by Kafka in {_DELIVERY_S:g} s; they stay in the spool", left
        )
    if as_json:
        handles_said = [str(Handle(space, *row)) for row in sorted(rows)]
        echo_json({"workspace": space, "rights": said, "interactions": handles_said, "releases": concerned})
        return 0
    click.echo(f"{space}: {words} for {len(rows)} interactions")
    for entry in concerned:
        rows_said = "rows unknown" if entry["rows"] is None else f"{entry['rows']} of its rows"
        click.echo(
            f"  concerned: {entry['release']}{' (champion)' if entry['champion'] else ''}  {entry['corpus']}  {rows_said}"
        )
    if not concerned:
        click.echo("  no release was trained on them")
    return 0
