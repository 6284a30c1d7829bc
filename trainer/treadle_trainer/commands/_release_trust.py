"""`treadle release trust`: whose labels the gate of a slot believes."""

from __future__ import annotations

import click
import msgspec
from treadle.cli.support import echo_json, json_option, pass_settings
from treadle.settings import Settings
from treadle_corpus import Corpus, parse_ref
from treadle_schemas import SettingError

from treadle_trainer.commands._common import slot_option, tell
from treadle_trainer.commands._releases import registry_of
from treadle_trainer.gate import LabelPin, read_grader
from treadle_trainer.trust import pinned, trust

__all__ = ["trust_"]


@click.command("trust")
@click.argument("workspace")
@slot_option
@click.option("--grading", type=click.IntRange(min=0), metavar="N", help="Trust rows of this grading version.")
@click.option("--grader", "graders", multiple=True, metavar="NAME@VERSION", help="Trust this version too. Repeatable.")
@click.option("--without", "dropped", multiple=True, metavar="NAME", help="Trust this grader no more. Repeatable.")
@click.option("--as-in", "corpus", metavar="PATH[@vN]", help="Trust what labelled the held-out rows of this version.")
@click.option("--reason", "-r", help="Why; kept in the audit log. Required for a change.")
@json_option
@pass_settings
def trust_(
    settings: Settings,
    workspace: str,
    slot: str,
    grading: int | None,
    graders: tuple[str, ...],
    dropped: tuple[str, ...],
    corpus: str | None,
    reason: str | None,
    as_json: bool,
) -> None:
    """Say whose labels the gate of WORKSPACE believes when it judges by logged rows; without options, show it.

    The first such turn pins the grading version and the graders' versions that it finds. Rows labelled by anything else do not count until
    this command says so. Naming a version that is trusted already ends the trust in those that were added after it.
    """
    registry = registry_of(settings, workspace, slot)
    before = pinned(registry)
    if grading is None and not graders and not dropped and corpus is None:
        _show(before, as_json)
        return
    if not reason:
        raise click.UsageError("--reason says why the gate is to believe other labels; it is kept in the audit log")
    pin = before or LabelPin(grading=1)
    if corpus is not None:
        with Corpus.open(parse_ref(corpus, settings.corpus_root)) as opened:
            found = LabelPin.of(opened.rows("heldout"))
        if found is None:
            raise SettingError(f"--as-in {corpus}: has no held-out rows, so it says nothing of labels")
        pin = found
    pin = pin.trusting(grading=grading, graders=[read_grader(text) for text in graders], dropped=dropped)
    trust(registry, pin, reason=reason)
    tell(settings, registry)
    _show(pin, as_json)


def _show(pin: LabelPin | None, as_json: bool) -> None:
    if as_json:
        echo_json(None if pin is None else msgspec.to_builtins(pin))
    elif pin is None:
        click.echo("nothing is pinned yet: the first turn that judges by logged rows pins what labels it finds")
    else:
        click.echo(f"the gate believes {pin}")
