"""`treadle grader`."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import click
import msgspec
from treadle.cli.support import SuggestingGroup, echo_json, json_option, pass_settings, workspace_of
from treadle.log import read
from treadle.settings import Settings
from treadle_schemas.codec import OUTCOME, decode
from treadle_schemas.errors import ContractError, FieldError, SettingError
from treadle_schemas.events import Outcome, read_outcome
from treadle_schemas.moments import parse_duration_s, to_micros
from treadle_schemas.topics import topic

from treadle_streams import workspaces
from treadle_streams.grader.agreement import agreement as compare
from treadle_streams.grader.agreement import latest_values, paired
from treadle_streams.grader.config import GraderConfig, load_config
from treadle_streams.grader.files import Folder
from treadle_streams.grader.run import Begin, Place, run_grader
from treadle_streams.grader.verdict import source_prefix

__all__ = ["grader"]

F = TypeVar("F", bound=Callable[..., Any])


@click.group(cls=SuggestingGroup)
def grader() -> None:
    """Judge interactions by a function, a command or a model; verdicts are outcomes."""


def _config_options(command: F) -> F:
    """An option for each field of GraderConfig: the struct declares them once."""
    hints = get_type_hints(GraderConfig, include_extras=True)
    for field in reversed(msgspec.structs.fields(GraderConfig)):
        kind, *extras = get_args(hints[field.name])
        text = next(m.description for m in extras if isinstance(m, msgspec.Meta) and m.description)
        flag = "--" + field.name.replace("_", "-")
        if kind is bool:
            option = click.option(f"{flag}/--no-{flag[2:]}", field.name, default=None, help=text)
        else:
            shown = "" if field.default in (None, msgspec.NODEFAULT) else f"  [default: {field.default}]"
            option = click.option(flag, field.name, help=text + shown, metavar=_metavar(kind), type=str)
        command = option(command)
    return command


def _metavar(kind: Any) -> str:
    names = [part for part in ("float", "int", "Path", "Literal") if part in str(kind)]
    return {"float": "NUMBER", "int": "N", "Path": "FILE"}.get(names[0], "WORD") if names else "TEXT"


@grader.command()
@click.argument("workspace", required=False)
@click.option(
    "--config", "path", metavar="FILE", type=click.Path(path_type=Path), help="TOML file with the fields below, - as _."
)
@_config_options
@click.option(
    "--from-beginning", is_flag=True, help="Go over all history; what has a verdict of this version is passed over."
)
@click.option(
    "--since", metavar="WHEN", help="Go over what was appended since: a duration such as 7d, or an RFC 3339 time."
)
@click.option("--once", is_flag=True, help="End when all that is there now is graded.")
@json_option
@pass_settings
def run(
    settings: Settings,
    /,
    workspace: str | None,
    path: Path | None,
    from_beginning: bool,
    since: str | None,
    once: bool,
    as_json: bool,
    **fields: str | bool | None,
) -> int:
    """Grade a workspace's interactions and publish the verdicts as outcomes. Runs until SIGTERM, and may be killed at any time.

    A new grader begins at the present end, a known one where it left off. Exit codes: 0 ended in order, 1 some gradings failed (with
    --once; `treadle grader status` shows them), 2 the configuration or the endpoint's refusal of it, 3 the budget is spent, 5 Kafka or the
    endpoint cannot be reached.
    """
    if from_beginning and since is not None:
        raise click.UsageError("--from-beginning and --since exclude each other")
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    given = {name: value for name, value in fields.items() if value is not None}
    config = load_config(path, {name: _typed(name, value) for name, value in given.items()})
    begin: Begin | None = "beginning" if from_beginning else None if since is None else _moment_ms(since)
    place = Place(
        servers=settings.bootstrap_servers,
        workspace=workspace_of(settings, workspace),
        home=settings.home,
        begin=begin,
        once=once,
    )
    quit_ = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: quit_.set())
    tally = run_grader(config, place, quit_)
    if as_json:
        echo_json(msgspec.to_builtins(tally))
    else:
        click.echo(
            f"{tally.grader}@{tally.version}: {tally.graded} graded, {tally.known} known, {tally.abstained} abstained, "
            f"{tally.failed} failed, {tally.denied} denied, {tally.incomplete} incomplete, {tally.not_chosen} not chosen, {tally.left} left"
        )
    return 1 if once and tally.failed else 0


@grader.command()
@click.argument("workspace", required=False)
@click.option("--name", required=True, metavar="NAME", help="The grader.")
@json_option
@pass_settings
def status(settings: Settings, workspace: str | None, name: str, as_json: bool) -> None:
    """How a grader of this machine is: its last run, what it spent, what failed."""
    folder = Folder(settings.home, workspace_of(settings, workspace), name)
    tally, spent, failures = folder.tally(), folder.has_spent(), folder.failures()
    if tally is None:
        raise SettingError(f"no grader {name} has run on this machine: there is no {folder.path}")
    if as_json:
        echo_json(
            {
                "run": msgspec.to_builtins(tally),
                "spent": msgspec.to_builtins(spent),
                "failures": msgspec.to_builtins(failures),
            }
        )
        return
    click.echo(f"{name}@{tally.version}/{tally.fingerprint}  {tally.state}  {tally.updated_at}")
    counts = {k: v for k, v in msgspec.to_builtins(tally).items() if isinstance(v, int)}
    click.echo("run: " + ", ".join(f"{value} {key}" for key, value in counts.items()))
    click.echo(
        f"spent: {spent.calls_per_day} calls, {spent.tokens_per_day} tokens, ${spent.usd_per_day:.4f} on {spent.day or 'no day'}; "
        f"{spent.calls_total} calls, {spent.tokens_total} tokens, ${spent.usd_total:.4f} ever"
    )
    for one in failures[-20:]:
        click.echo(f"failed {one.at} {one.handle}: {one.reason}")


@grader.command()
@click.argument("workspace", required=False)
@click.option("--grader", "name", required=True, metavar="NAME", help="The grader.")
@click.option(
    "--human", required=True, metavar="SOURCE", help="The source of the human labels, as their outcomes say it."
)
@click.option("--metric", required=True, metavar="METRIC", help="The metric of both.")
@click.option("--human-metric", metavar="METRIC", help="The metric of the human labels, if it is another one.")
@click.option(
    "--version", metavar="VERSION", help="Only this version of the grader; default: all, the latest verdict counts."
)
@click.option(
    "--threshold", type=float, metavar="NUMBER", help="Numbers from here on count as true, smaller ones as false."
)
@json_option
@pass_settings
def agreement(
    settings: Settings,
    workspace: str | None,
    name: str,
    human: str,
    metric: str,
    human_metric: str | None,
    version: str | None,
    threshold: float | None,
    as_json: bool,
) -> int:
    """How far a grader agrees with human labels of the same interactions: accuracy and Cohen's kappa, with 95 % intervals."""
    ours = source_prefix(name) + (f"{version}/" if version is not None else "")
    verdicts, labels = [], []
    for one in _metrics(settings.bootstrap_servers, workspace_of(settings, workspace)):
        source = one.source or ""
        if source.startswith(ours) and one.name == metric:
            verdicts.append(one)
        elif source == human and one.name == (human_metric or metric):
            labels.append(one)
    judged, labelled = latest_values(verdicts), latest_values(labels)
    pairs = paired(judged, labelled, threshold)
    found = compare(pairs, len(judged.keys() - labelled.keys()), len(labelled.keys() - judged.keys()))
    if as_json:
        echo_json(msgspec.to_builtins(found))
        return 0 if found.n else 1
    if found.accuracy is None or found.accuracy_95 is None:
        click.echo(
            f"no interaction has both: {found.only_grader} only of {name}, {found.only_human} only of {human}", err=True
        )
        return 1
    click.echo(f"n {found.n} ({found.only_grader} only of {name}, {found.only_human} only of {human})")
    click.echo(f"accuracy {found.accuracy:.3f}  95% {found.accuracy_95[0]:.3f} to {found.accuracy_95[1]:.3f}")
    if found.kappa is None or found.kappa_95 is None:
        click.echo("kappa cannot be told: all labels are the same")
    else:
        click.echo(f"kappa    {found.kappa:.3f}  95% {found.kappa_95[0]:.3f} to {found.kappa_95[1]:.3f}")
    for pair, count in found.table.items():
        click.echo(f"  {pair}: {count}")
    return 0


def _metrics(servers: str, workspace: str) -> Iterator[Outcome]:
    """The metric outcomes that the log holds now."""
    name = topic(workspace, "outcomes")
    for record in read(servers, name, workspaces.get(servers, workspace).partitions):
        try:
            event = decode(record.value, record.headers)
            if event.type != OUTCOME or (outcome := read_outcome(event.data)).kind != "metric":
                continue
        except ContractError:
            continue  # the join makes it a dead letter
        yield outcome


def _typed(name: str, value: str | bool) -> Any:
    """An option's text as the field's type; what is none stays text, which the configuration then refuses by its name."""
    if isinstance(value, bool):
        return value
    hint = str(get_type_hints(GraderConfig)[name])
    for word, kind in (("int", int), ("float", float)):
        if word in hint:
            try:
                return kind(value)
            except ValueError:
                return value
    return value


def _moment_ms(text: str) -> int:
    try:
        return to_micros(text, "--since") // 1000
    except FieldError:
        return int((time.time() - parse_duration_s(text, "--since")) * 1000)
