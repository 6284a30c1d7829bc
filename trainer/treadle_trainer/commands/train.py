"""`treadle train PATH@vN`: one training by hand, with or without release and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
from treadle.cli.support import DURATION, echo_json, json_option, pass_settings
from treadle.settings import Settings
from treadle_schemas import HandleError, ReleaseId, SettingError, TreadleError, new_id
from treadle_schemas.codec import to_json

from treadle_trainer.commands._common import jobs_root, registry_root, slot_option, stop_requested, tell
from treadle_trainer.commands.job import submitted
from treadle_trainer.jobs import TrainSpec
from treadle_trainer.methods import METHODS, check_method
from treadle_trainer.policy import TrainingPolicy

__all__ = ["train"]

REFUSED = 3
BY_HAND = "by hand"


@click.command()
@click.argument("reference", metavar="PATH[@vN]")
@click.option("--method", default="sft", show_default=True, help=f"Training method: {', '.join(METHODS)}.")
@click.option("--dry-run", is_flag=True, help="Say what would be trained on, with one example, and train nothing.")
@click.option(
    "--detach", is_flag=True, help="Queue it as a job for `treadle trainer`, and do not wait: see `treadle job`."
)
@click.option("--from", "base", metavar="RELEASE|FOLDER", help="Model to start from. Default: the champion.")
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps.")
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--batch", type=click.IntRange(1), help="Examples a step; with --packed, rows.")
@click.option("--accumulate", type=click.IntRange(1), help="Batches whose gradients make one step.")
@click.option("--packed/--padded", default=None, help="Several sequences in one row of --max-length tokens, or one.")
@click.option("--lora-rank", type=click.IntRange(1), help="Train low-rank adapters of this rank, merged at the end.")
@click.option("--beta", type=click.FloatRange(0), help="dpo, kto, rl, grpo: how near to the model that it begins with.")
@click.option("--clip", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="rl, grpo: bound of the ratio.")
@click.option(
    "--reward-function", metavar="PKG.MODULE:FUNCTION", help="grpo: scores answers to prompts of the version."
)
@click.option("--environment", metavar="PKG.MODULE:CLASS", help="grpo: a world to act in; --gate: one to be judged in.")
@click.option("--group", type=click.IntRange(2), help="grpo: attempts at one prompt; --batch counts attempts.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="grpo: most tokens sampled a turn.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), help="grpo: temperature of the sampling.")
@click.option("--prompts", type=click.Choice(["task", "row"]), help="grpo: one prompt a task, or one of every row.")
@click.option("--margin", type=click.FloatRange(0), help="dpo, reward: least difference of rewards in a pair.")
@click.option("--cap", type=click.IntRange(1), help="dpo, reward: at most so many pairs of a task.")
@click.option("--save-steps", type=click.IntRange(1), help="Steps between checkpoints.")
@click.option("--resume", metavar="JOB", help="Go on with a training that was stopped, from its last valid checkpoint.")
@click.option("--max-length", type=click.IntRange(2), help="Longest sequence in tokens; longer trajectories are split.")
@click.option("--rows", type=click.Choice(["rewarded", "all"]), help="Imitate rows with a reward above zero, or all.")
@click.option("--newest", "newest_rows", type=click.IntRange(1), help="Train on the newest rows only.")
@click.option("--seed", type=int, help="Seed.")
@click.option("--timeout", "timeout_s", type=DURATION, help="Longest run, for example 30m.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the model. Default: below the jobs folder.")
@click.option(
    "--backend-command", metavar="COMMAND", help="Train with this command: 'axolotl train {config}'. See docs/scale.md."
)
@click.option(
    "--backend-form", type=click.Choice(["axolotl", "openai", "treadle", "trl", "verl"]), help="Form of its rows."
)
@click.option(
    "--backend-config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A config file for it, with places in braces to fill.",
)
@click.option(
    "--mix",
    "mixed",
    multiple=True,
    metavar="PATH[@vN]=WEIGHT",
    help="Draw this share of the examples from another corpus. Repeatable.",
)
@click.option(
    "--mix-anchor",
    "anchored",
    multiple=True,
    metavar="FILE=WEIGHT",
    help="Draw this share of the examples from an anchor set, JSON lines. Repeatable.",
)
@click.option("--processes", type=click.IntRange(1), help="Train in so many processes of this machine.")
@click.option("--strategy", type=click.Choice(["ddp", "fsdp"]), help="How: copies of the model, or shards of it.")
@click.option("--register", is_flag=True, help="Register the model as a release.")
@click.option(
    "--gate",
    "--evaluate",
    "evaluate",
    is_flag=True,
    help="Register it and let the gate judge it; exits 3 where the gate refuses.",
)
@click.option(
    "--label", default=BY_HAND, show_default=True, help="With --gate, --detach: tells trainings on one version apart."
)
@click.option("--workspace", "-w", metavar="NAME", help="Workspace of release and champion. Default: the corpus's.")
@slot_option
@json_option
@pass_settings
def train(
    settings: Settings,
    /,
    reference: str,
    method: str,
    dry_run: bool,
    detach: bool,
    base: str | None,
    out: Path | None,
    register: bool,
    evaluate: bool,
    label: str,
    resume: str | None,
    workspace: str | None,
    slot: str,
    as_json: bool,
    backend_command: str | None,
    backend_form: str | None,
    backend_config: Path | None,
    mixed: tuple[str, ...],
    anchored: tuple[str, ...],
    processes: int | None,
    strategy: str | None,
    **overrides: Any,
) -> int:
    """Train on the train side of a corpus version.

    The settings are those of the slot's policy, where it has one, with the options on top. Only what the agent wrote is learned; sft and
    rwsft: by default in rows with a reward above zero. Held-out rows are never trained on.

    With --detach the model is registered, judged and, by the slot's policy, promoted, as every job's.
    """
    if out is not None and evaluate:
        raise click.UsageError("--gate keeps the model as a release; --out has no place beside it")
    if resume is not None and evaluate:
        raise click.UsageError(
            "with --gate a training goes on by itself where it was stopped; --resume has no place beside it"
        )
    if out is not None and out.exists() and any(out.iterdir()):
        raise SettingError(f"--out {out}: is not empty; a model is never written over another")
    from treadle_corpus import Corpus, parse_ref

    if detach:
        _refuse_beside_detach(dry_run=dry_run, out=out, register=register, gate=evaluate, resume=resume)
    corpus = Corpus.open(parse_ref(reference, settings.corpus_root))
    workspace = workspace or corpus.manifest.workspace
    given = {name: value for name, value in overrides.items() if value is not None}
    stored = TrainingPolicy.load(registry_root(settings), workspace, slot) or TrainingPolicy()
    parts = {
        "launch.processes": processes,
        "launch.strategy": strategy,
        "backend.command": backend_command,
        "backend.form": backend_form,
        "backend.config": str(backend_config.absolute()) if backend_config is not None else None,
    }
    given |= {name: value for name, value in parts.items() if value is not None}
    if mixed or anchored:
        given["mixture"] = [*(_mixed(text, settings) for text in mixed), *map(_anchored, anchored)]
    policy = stored.changed({**given, "method": method})
    if policy.backend is None:
        check_method(method, speaks=register or evaluate or detach)
    if base is not None:
        policy = policy.changed({"base": str(_base_folder(settings, base))})
    if detach:
        wanted = {**given, "method": method, **({} if base is None else {"base": policy.base})}
        submitted(settings, corpus, workspace, slot, wanted, "" if label == BY_HAND else label, as_json)
        return 0
    if dry_run:
        return _planned(settings, corpus, policy, workspace, slot, as_json)
    if evaluate:
        return _evaluated(settings, corpus, policy, workspace, slot, label, as_json)
    return _trained(settings, corpus, policy, workspace, slot, out, register, resume, as_json)


def _refuse_beside_detach(**others: Any) -> None:
    for name, value in others.items():
        if value:
            raise click.UsageError(
                f"--detach leaves the training to the service, which registers and judges it: --{name.replace('_', '-')} has no place "
                "beside it"
            )


def _trained(
    settings: Settings,
    corpus: Any,
    policy: TrainingPolicy,
    workspace: str,
    slot: str,
    out: Path | None,
    register: bool,
    resume: str | None,
    as_json: bool,
) -> int:
    from treadle_trainer.candidate import register_candidate, release_in, train_spec
    from treadle_trainer.errors import JobStopped, JobTimedOut
    from treadle_trainer.jobs import JobRunner
    from treadle_trainer.registry import Registry

    registry = Registry(registry_root(settings), workspace, slot)
    start = _start_of(policy, registry)
    parent = release_in(registry, start)
    with JobRunner(jobs_root(settings)) as runner, stop_requested() as should_stop:
        name = resume or f"train-{new_id()}"
        folder = runner.root / name
        target = (out or folder / "model").absolute()
        mixture = _mixture_of(settings, policy, corpus, workspace)
        split = _split_of(settings, policy, workspace)
        spec = train_spec(policy, start, corpus, folder, target, split, mixture=mixture)
        if resume is not None:
            _check_same(spec, folder)
        runner.prepare(name)
        try:
            training = runner.run(
                name,
                spec,
                timeout_s=policy.timeout_s,
                memory_gb=policy.memory_gb,
                on_progress=_show_progress,
                should_stop=should_stop,
            )
            runner.tidy(name, done=True)
        except TreadleError as err:
            runner.tidy(name, done=False)
            if isinstance(err, (JobStopped, JobTimedOut)) and any((folder / "checkpoints").glob("checkpoint-*")):
                click.echo(f"the same command with --resume {name} goes on from its last checkpoint", err=True)
            raise
    report: dict[str, Any] = {"corpus": corpus.name, "version": corpus.version, "model": str(target), **training}
    if register:
        release = register_candidate(registry, target, corpus, spec, parent, training, actor="user")
        tell(settings, registry)
        report["release"] = str(release)
    if as_json:
        echo_json(report)
    elif policy.backend is not None:
        click.echo(
            f"trained on {training['lines']} lines in form {policy.backend.form}, {training['backend_seconds']:.1f} s: "
            f"{report.get('release', target)}"
        )
    elif "attempts" in training:
        click.echo(
            f"trained on {training['attempts']} attempts at {training['prompts']} prompts ({training['flat_groups']} of "
            f"{training['groups']} groups had one reward and taught nothing), reward {_rounded(training['first_reward'])} -> "
            f"{_rounded(training['last_reward'])}: {report.get('release', target)}"
        )
    else:
        ratio = training["step_tokens"] / training["tokens"]
        saved = f", where the steps held {ratio:.1f} times as much" if ratio > 1 else ""
        click.echo(
            f"trained on {training['examples']} examples ({training['trained_tokens']} of {training['tokens']} tokens{saved}), "
            f"loss {training['first_loss']} -> {training['last_loss']}: {report.get('release', target)}"
        )
        for one in training.get("sources", []):
            click.echo(
                f"  {one['share']:.1%} from {one['source']}: {one['read']:,} examples read, each {one['epochs']:g} times"
            )
    return 0


def _rounded(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _planned(settings: Settings, corpus: Any, policy: TrainingPolicy, workspace: str, slot: str, as_json: bool) -> int:
    from treadle_trainer.candidate import train_spec
    from treadle_trainer.commands._plan import shown
    from treadle_trainer.jobs import tidy
    from treadle_trainer.methods.plan import plan
    from treadle_trainer.registry import Registry

    start = _start_of(policy, Registry(registry_root(settings), workspace, slot))
    work = jobs_root(settings) / "plans"
    mixture = _mixture_of(settings, policy, corpus, workspace)
    split = _split_of(settings, policy, workspace)
    try:
        found = plan(train_spec(policy, start, corpus, work, work / "model", split, mixture=mixture))
    finally:
        tidy(work, done=True)  # token columns, where the corpus cannot be written to
    if as_json:
        echo_json(found)
    else:
        click.echo(shown(str(corpus), policy.method, found))
    return 0


def _split_of(settings: Settings, policy: TrainingPolicy, workspace: str) -> Any:
    """The split of the workspace where the training plays in an environment, which has its held-out tasks too; else None."""
    from treadle_trainer._workspace import workspace_settings
    from treadle_trainer.candidate import plays

    return workspace_settings(settings.bootstrap_servers, workspace).split if plays(policy) else None


def _mixture_of(settings: Settings, policy: TrainingPolicy, corpus: Any, workspace: str) -> Any:
    """The mixture of the policy as it is now. What the workspace holds out is drawn from no source, so its settings are asked for."""
    from treadle_trainer._workspace import workspace_settings
    from treadle_trainer.mixture import mixture_of

    if not policy.mixture:
        return None
    split = workspace_settings(settings.bootstrap_servers, workspace).split
    return mixture_of(policy.mixture, corpus, split, settings.corpus_root)


def _mixed(text: str, settings: Settings) -> dict[str, Any]:
    """One --mix. The corpus root is resolved here, for whoever reads the policy has none."""
    from treadle_corpus import parse_ref

    name, weight = _weighed("--mix", text)
    return {"corpus": str(parse_ref(name, settings.corpus_root)), "weight": weight}


def _anchored(text: str) -> dict[str, Any]:
    name, weight = _weighed("--mix-anchor", text)
    return {"anchor": str(Path(name).expanduser().absolute()), "weight": weight}


def _weighed(option: str, text: str) -> tuple[str, float]:
    name, _, weight = text.rpartition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise SettingError(
            f"{option} {text!r}: expected a source, = and its share, for example corpora/shop/wins@v3=0.2"
        ) from None


def _start_of(policy: TrainingPolicy, registry: Any) -> Path:
    from treadle_trainer.candidate import PREVIOUS, model_folder
    from treadle_trainer.errors import NoChampion

    if policy.base not in (None, PREVIOUS):  # by hand a training begins with the champion, or with what --from names
        return Path(str(policy.base))
    if registry.champion is None:
        raise NoChampion(
            f"{registry.workspace}/{registry.slot} has no champion to start from; name a model with --from RELEASE or --from FOLDER"
        )
    return model_folder(registry, registry.champion)


def _check_same(spec: TrainSpec, folder: Path) -> None:
    """Raises SettingError where the job in `folder` trained something else, or is none."""
    try:
        before = msgspec.json.decode((folder / "spec.json").read_bytes(), type=TrainSpec)
    except FileNotFoundError:
        raise SettingError(f"--resume {folder.name}: there is no such job in {folder.parent}") from None
    except msgspec.DecodeError as err:
        raise SettingError(f"--resume {folder.name}: is no training ({err})") from None
    if before.fingerprint != spec.fingerprint:
        then, now = msgspec.to_builtins(before), msgspec.to_builtins(spec)
        other = [f"{name} {then[name]!r} then, {now[name]!r} now" for name in then if then[name] != now[name]]
        raise SettingError(f"--resume {folder.name}: was another training: {'; '.join(other)}")


def _evaluated(
    settings: Settings, corpus: Any, policy: TrainingPolicy, workspace: str, slot: str, label: str, as_json: bool
) -> int:
    from treadle_corpus import CorpusRef

    from treadle_trainer._workspace import workspace_settings
    from treadle_trainer.jobs import JobRunner
    from treadle_trainer.registry import Registry
    from treadle_trainer.turn import run_turn

    registry = Registry(registry_root(settings), workspace, slot)
    split = workspace_settings(settings.bootstrap_servers, workspace).split
    with JobRunner(jobs_root(settings)) as runner, stop_requested() as should_stop:
        report = run_turn(
            CorpusRef(corpus.path, corpus.version),
            policy,
            registry,
            split=split,
            runner=runner,
            promote=False,
            label=label,
            on_progress=_show_progress,
            should_stop=should_stop,
        )
    tell(settings, registry)
    if as_json:
        echo_json({"verdict": report.verdict, **to_json(report.event)})
    else:
        click.echo(f"{report.candidate}: {report.evidence['gate']['reason']} (gate: {report.verdict})")
        if report.verdict == "promote":
            click.echo(f"`treadle release promote {report.candidate} --reason ...` makes it the champion", err=True)
        elif report.verdict == "canary":
            click.echo(f"`treadle release canary {report.candidate} --reason ...` tries it on live traffic", err=True)
    return 0 if report.verdict in ("promote", "canary") else REFUSED


def _base_folder(settings: Settings, text: str) -> Path:
    from treadle_trainer.candidate import model_folder
    from treadle_trainer.registry import Registry

    path = Path(text).expanduser()
    if path.is_dir():
        return path.absolute()
    try:
        release = ReleaseId.parse(text)
    except HandleError:
        raise SettingError(f"--from {text!r}: is no folder and no release (workspace/slot/rN)") from None
    registry = Registry(registry_root(settings), release.workspace, release.slot)
    registry.verify(release)
    return model_folder(registry, release)


def _show_progress(values: dict[str, Any]) -> None:
    words = " ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
        if name != "t"
    )
    click.echo(words, err=True)
