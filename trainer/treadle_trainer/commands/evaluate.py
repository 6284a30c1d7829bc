"""`treadle eval`: a release on held-out rows, beside another one."""

from __future__ import annotations

import re
from pathlib import Path

import click
from treadle.cli.support import DURATION, echo_json, json_option, pass_settings
from treadle.settings import Settings
from treadle_schemas import ReleaseId, SettingError
from treadle_schemas.codec import to_json

from treadle_trainer.commands._common import jobs_root, registry_root, release_of, slot_option, stop_requested
from treadle_trainer.errors import EvaluationFailed

__all__ = ["evaluate"]


@click.command("eval")
@click.argument("release", metavar="RELEASE")
@click.option(
    "--against",
    default="champion",
    show_default=True,
    metavar="RELEASE|champion|none",
    help="What it is compared with.",
)
@click.option(
    "--corpus",
    "reference",
    metavar="PATH[@vN]",
    help="Version whose held-out rows count. Default: the one it was trained on.",
)
@click.option(
    "--rows", type=click.IntRange(1), default=256, show_default=True, help="Held-out trajectories, the newest."
)
@click.option(
    "--generate", type=click.IntRange(0), default=64, show_default=True, help="How many of them are answered anew."
)
@click.option("--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, help="Longest answer.")
@click.option(
    "--max-length", type=click.IntRange(2), default=1024, show_default=True, help="Longest trajectory, in tokens."
)
@click.option("--anchor", type=click.Path(dir_okay=False), help="JSON lines of conversations that are always a slice.")
@click.option(
    "--evaluator",
    "evaluators",
    multiple=True,
    metavar="NAME=...",
    help="A metric of your own: NAME=module:function, NAME=!command, NAME=?URL MODEL RUBRIC_FILE. May be repeated.",
)
@click.option("--timeout", "timeout_s", type=DURATION, default="1h", show_default=True, help="Longest run.")
@slot_option
@json_option
@pass_settings
def evaluate(
    settings: Settings,
    release: str,
    against: str,
    reference: str | None,
    rows: int,
    generate: int,
    max_new_tokens: int,
    max_length: int,
    anchor: str | None,
    evaluators: tuple[str, ...],
    timeout_s: float,
    slot: str,
    as_json: bool,
) -> None:
    """Measure RELEASE on held-out rows, beside the champion or another release, metric by metric and slice by slice.

    Prints Markdown; HTML, Markdown and JSON are kept with the registry. The trainer makes one of every candidate by itself, as the policy's
    `scorecard` says. Exits 1 where an evaluator broke; what the others said is kept.
    """
    from treadle_corpus import Corpus, parse_ref

    from treadle_trainer.jobs import JobRunner
    from treadle_trainer.policy import ScorecardPolicy
    from treadle_trainer.registry import Registry
    from treadle_trainer.scorecard import to_markdown
    from treadle_trainer.scorecard.run import Limits, card_folder, score

    candidate = release_of(settings, release, slot)
    registry = Registry(registry_root(settings), candidate.workspace, candidate.slot)
    manifest = registry.manifest(candidate)
    if reference is None:
        if manifest.corpus is None or manifest.corpus_version is None:
            raise SettingError(f"{candidate} was trained on no corpus; name one with --corpus PATH[@vN]")
        reference = f"{manifest.corpus}@v{manifest.corpus_version}"
    plan = ScorecardPolicy(
        rows=rows,
        generate=generate,
        max_new_tokens=max_new_tokens,
        anchor=None if anchor is None else str(Path(anchor).absolute()),
        evaluators=evaluators,
        timeout_s=timeout_s,
    ).checked()
    corpus = Corpus.open(parse_ref(reference, settings.corpus_root))
    with JobRunner(jobs_root(settings)) as runner, stop_requested() as should_stop:
        card = score(
            registry,
            candidate,
            _other(settings, against, candidate, registry.champion),
            corpus,
            runner,
            plan,
            Limits(timeout_s=timeout_s, should_stop=should_stop),
            max_length=max_length,
        )
    if as_json:
        echo_json(to_json(card))
    else:
        click.echo(to_markdown(card))
        click.echo(f"kept in {card_folder(registry, candidate)}", err=True)
    if card.failures:
        raise EvaluationFailed("; ".join(card.failures.values()))


def _other(settings: Settings, text: str, candidate: ReleaseId, champion: ReleaseId | None) -> ReleaseId | None:
    if text == "none":
        return None
    if text == "champion":
        return champion if champion != candidate else None
    if not re.fullmatch(r"r\d+|[^/]+/[^/]+/r\d+", text):
        raise SettingError(f"--against {text!r}: expected a release (workspace/slot/rN or rN), champion or none")
    return release_of(settings, text if "/" in text else f"{candidate.workspace}/{candidate.slot}/{text}")
