"""`treadle corpus export`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from treadle.cli.support import echo_json, json_option, pass_settings
from treadle.settings import Settings
from treadle_corpus import Corpus, CorpusError, SplitChoice, parse_ref
from treadle_corpus.exports import exports, forget_export, note_export, state_of
from treadle_corpus.forms import FORMS
from treadle_corpus.views import VIEWS, View, repetition
from treadle_schemas.codec import to_json

from treadle_streams.exporting._chosen import Chosen, lines_of, noted
from treadle_streams.exporting._files import write_lines

__all__ = ["export", "exports_"]


@click.command()
@click.argument("ref", metavar="PATH[@vN]")
@click.option("--view", type=click.Choice(sorted(VIEWS)), required=True, help="What the examples are for.")
@click.option(
    "--split",
    type=click.Choice(["train", "heldout", "all"]),
    help="Which side; default: train. The eval view wants it said.",
)
@click.option(
    "--rows",
    type=click.Choice(["rewarded", "all"]),
    help="sft: rows with a reward above zero (default), or all that the version holds.",
)
@click.option("--margin", type=click.FloatRange(min=0), help="dpo, reward: least difference of rewards.")
@click.option("--cap", type=click.IntRange(min=0), help="dpo, reward: most pairs a task by reward; 0: no cap.")
@click.option("--min-attempts", type=click.IntRange(min=1), help="rl: fewest attempts of a group; default: 2.")
@click.option(
    "--form",
    type=click.Choice(["treadle", *sorted(FORMS)]),
    default="treadle",
    show_default=True,
    help="Whose lines to write; treadle's own say everything.",
)
@click.option(
    "--loose", is_flag=True, help="With --form: also what the form can only say by training on more than was marked."
)
@click.option(
    "--out",
    metavar="FILE",
    default="-",
    show_default=True,
    help="JSON lines, or Parquet if it ends with .parquet; - is stdout.",
)
@json_option
@pass_settings
def export(
    settings: Settings, /, ref: str, view: str, form: str, loose: bool, out: str, as_json: bool, **given: Any
) -> None:
    """Write a view of a version, in the same order each time.

    sft: trajectories, with the messages to train on. dpo, reward: pairs of answers to one task. kto: answers that were good or not. rl:
    the attempts at each task. eval: logged trajectories with their metrics. "response" lists the messages to train on; the others are
    context. Rows that are in no example are counted by reason. With --json the counts go to stdout.

    --form writes what another trainer reads. What it cannot say exactly is left out and counted, unless --loose is given.
    """
    if out == "-" and as_json:
        raise click.UsageError("--json prints a summary on stdout; give --out FILE for the lines")
    chosen = Chosen(view=view, form=form, loose=loose, split=_side(view, given), **_checked(view, given))
    if form != "treadle" and view not in FORMS[form]:
        raise click.UsageError(f"--form {form} has no form of {view}; it has {', '.join(sorted(FORMS[form]))}")
    if loose and form == "treadle":
        raise click.UsageError("--loose is for the forms of others: treadle's own lines say exactly what is trained on")
    found = Corpus.open(parse_ref(ref, settings.corpus_root))
    made = lines_of(found, chosen)
    write_lines(made.lines, out, nested=form != "treadle")
    if out != "-":
        _remember(found, chosen, out, len(made.lines))
    if as_json:
        place = {"corpus": found.name, "version": found.version, "out": out}
        echo_json({**place, **_counts(made.view), "form": form, "lines": len(made.lines), "unsaid": made.unsaid})
        return
    click.echo(f"{found}: {len(made.view):,} {view} examples from split {made.view.split}", err=True)
    for line in _account(made.view, made.unsaid):
        click.echo(line, err=True)


@click.command("exports")
@click.argument("path", metavar="PATH")
@click.option("--forget", metavar="FILE", help="Forget this export; its file stays as it is.")
@json_option
@pass_settings
def exports_(settings: Settings, path: str, forget: str | None, as_json: bool) -> None:
    """List the files that were exported from a corpus, and whether they are there as they were written.

    An erasure writes those that are there again without what was erased, and names the others: whoever changed, moved or copied them knows
    better. An export to stdout is not remembered.
    """
    corpus = parse_ref(path, settings.corpus_root).path
    if forget is not None:
        forget_export(corpus, str(Path(forget).absolute()))
    known = exports(corpus)
    if as_json:
        echo_json([{**to_json(export), "state": state_of(export)} for export in known])
        return
    for export in known:
        click.echo(
            f"{export.file}  v{export.version}  {export.view}, form {export.form}  {export.lines:,} lines  {state_of(export)}"
        )
    if not known:
        click.echo(f"{corpus}: nothing was exported to a file, as far as is known", err=True)


def _remember(corpus: Corpus, chosen: Chosen, out: str, lines: int) -> None:
    """Note the export in its corpus. Where that cannot be written the export is good all the same, and the user is told."""
    try:
        note_export(corpus.path, noted(corpus, chosen, Path(out).absolute(), lines))
    except CorpusError as err:
        click.echo(f"the export is not remembered, so an erasure will not find it: {err}", err=True)


_BELONG = {"rows": ("sft",), "margin": ("dpo", "reward"), "cap": ("dpo", "reward"), "min_attempts": ("rl",)}


def _checked(view: str, given: dict[str, Any]) -> dict[str, Any]:
    for name, views in _BELONG.items():
        if given[name] is not None and view not in views:
            raise click.UsageError(f"--{name.replace('_', '-')} is for the view {' and '.join(views)}, not for {view}")
    return {name: given[name] for name in _BELONG}


def _side(view: str, given: dict[str, Any]) -> SplitChoice:
    split: SplitChoice | None = given["split"]
    if split is None and view == "eval":
        raise click.UsageError("--view eval wants a side: --split heldout is what no training has seen")
    return split or "train"


def _counts(made: View[Any]) -> dict[str, Any]:
    counts = {
        "view": made.name,
        "split": made.split,
        "examples": len(made),
        "rows": made.rows,
        "used": made.used,
        "dropped": dict(made.dropped),
        "left_out": dict(made.left_out),
    }
    return {**counts, "repetition": round(repetition(made), 3)} if made.name == "sft" else counts


def _account(made: View[Any], unsaid: dict[str, int]) -> Iterator[str]:
    for title, counted in (
        ("rows dropped", made.dropped),
        ("left out", made.left_out),
        ("examples that the form cannot say", unsaid),
    ):
        if counted:
            yield f"  {title}: " + ", ".join(f"{reason} {count:,}" for reason, count in counted.items())
    if made.name == "sft" and (ratio := repetition(made)) > 1:
        yield f"  the steps held {ratio:.1f} times the messages of these sequences"
