"""`treadle rights revoke`: deny the use of recorded work, and name the releases that it is already in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

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
from treadle.errors import NotDelivered, TopicMissing
from treadle.log import Admin, read
from treadle.policies import hash_key
from treadle.redaction import subject_hash
from treadle.settings import Settings
from treadle_corpus import Corpus, CorpusError
from treadle_corpus.target import CorpusRef, resolve_target
from treadle_schemas import ContractError, Handle
from treadle_schemas.canonical import loads
from treadle_schemas.codec import GRADED, INTERACTION, header_map
from treadle_schemas.events import Right
from treadle_schemas.topics import topic

from treadle_trainer.commands._common import registry_root
from treadle_trainer.lineage import heirs
from treadle_trainer.registry import Registry, slots

__all__ = ["rights"]

_DELIVERY_S: Final = 60.0
_RIGHT = click.Choice(["allow", "deny"])

Row = tuple[str, str]
"""(episode_id, interaction_id)."""


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
    wanted = _names_of(settings, subject)
    rows = {(t.episode_id, t.interaction_id) for t in targets} or set(_rows_of(settings, space, wanted))
    concerned = list(_concerned(settings, space, rows, wanted))
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


def _names_of(settings: Settings, subject: str | None) -> frozenset[str]:
    """How rows may name the subject: as it is, and as a workspace that hashes subjects writes it."""
    if subject is None:
        return frozenset()
    key = hash_key(settings)
    return frozenset({subject} if key is None else {subject, subject_hash(key, subject)})


def _rows_of(settings: Settings, space: str, subjects: frozenset[str]) -> Iterator[Row]:
    """Every row of the subject that a topic still holds: what is not settled yet, and what inputs no longer keep."""
    servers = settings.bootstrap_servers
    known = Admin(servers).partitions()
    if topic(space, "interactions") not in known:
        raise TopicMissing(f"workspace {space} does not exist; `treadle workspace list` shows those that do")
    for kind, wanted in (("interactions", INTERACTION), ("graded", GRADED)):
        name = topic(space, kind)
        for record in read(servers, name, known[name]):
            if record.value is None or header_map(record.headers).get("ce_type") != wanted.encode():
                continue
            try:
                value = loads(record.value)
            except ContractError:
                continue  # a dead letter: it is in no row
            interaction = value.get("interaction") if wanted == GRADED else value
            if isinstance(interaction, dict) and interaction.get("subject") in subjects:
                own = interaction.get("interaction_id")
                yield str(interaction.get("episode_id") or own), str(own)


def _concerned(settings: Settings, space: str, rows: set[Row], subjects: frozenset[str]) -> Iterator[dict[str, Any]]:
    """The releases whose corpus version holds one of the rows, or one of the subject. `rows` None: the corpus cannot be read."""
    held: dict[tuple[str, int | None], int | None] = {}
    for _, slot in slots(registry_root(settings), space):
        registry = Registry(registry_root(settings), space, slot)
        champion = str(registry.champion)
        manifests = {manifest.release: manifest for manifest in registry.releases()}
        direct: dict[str, int | None] = {}
        for manifest in manifests.values():
            if manifest.corpus is None:
                continue
            place = (manifest.corpus, manifest.corpus_version)
            if place not in held:
                held[place] = _held(settings, place, rows, subjects)
            if held[place] != 0:
                direct[manifest.release] = held[place]
        for manifest, source in heirs(direct, manifests):
            yield {
                "release": manifest.release,
                "champion": manifest.release == champion,
                "corpus": f"{source.corpus}@v{source.corpus_version}"
                + ("" if source is manifest else f" (through {source.release})"),
                "rows": direct[source.release],
            }


def _held(settings: Settings, place: tuple[str, int | None], rows: set[Row], subjects: frozenset[str]) -> int | None:
    corpus, version = place
    try:
        opened = Corpus.open(CorpusRef(resolve_target(corpus, settings.corpus_root), version))
        return sum(
            (row.episode_id, row.interaction_id) in rows or row.interaction.get("subject") in subjects
            for row in opened.rows("all")
        )
    except CorpusError as err:
        click.echo(f"{corpus}@v{version} cannot be read, so its releases count as concerned: {err}", err=True)
        return None
