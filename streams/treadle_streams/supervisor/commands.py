"""`treadle up`, `treadle down`, `treadle status`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
from treadle.cli.support import echo_json, json_option, pass_settings
from treadle.settings import Settings
from treadle_schemas.codec import to_json

from treadle_streams import broker
from treadle_streams.supervisor._control import bring_down, bring_up, refuse_other_broker
from treadle_streams.supervisor._daemon import serve
from treadle_streams.supervisor._errors import AlreadySupervised
from treadle_streams.supervisor._folder import RunFolder, SupervisorState
from treadle_streams.supervisor._overview import Overview, WorkspaceView, overview
from treadle_streams.supervisor._plan import PARTS
from treadle_streams.supervisor._supervisor import Event, ProcessStatus

__all__ = ["down", "status", "up"]

_ILL = ("restarting", "failing")


@click.command()
@click.option("--foreground", is_flag=True, help="Stay in this terminal; Ctrl-C stops everything.")
@click.option("--no-worker", is_flag=True, help="Without the join.")
@click.option("--no-snapshotter", is_flag=True, help="Without corpus versions.")
@click.option("--no-indexer", is_flag=True, help="Without the live index for recall.")
@click.option("--no-trainer", is_flag=True, help="Without training.")
@click.option("--no-guard", is_flag=True, help="Without the live guard.")
@json_option
@pass_settings
def up(
    settings: Settings,
    foreground: bool,
    no_worker: bool,
    no_snapshotter: bool,
    no_indexer: bool,
    no_trainer: bool,
    no_guard: bool,
    as_json: bool,
) -> int:
    """Start the wheel on this machine: broker, and for every workspace worker, snapshotter, trainer, guard, and
    where the extra `recall` is installed the live index.

    They are supervised: what ends is started again, and new workspaces are served as they appear. Uses the Kafka that
    TREADLE_BOOTSTRAP_SERVERS names, else starts one of its own. Repeating it is safe. Exit codes: 0 everything runs, 1 something does not
    (it is tried again and again; `treadle status` shows it), 5 no broker.
    """
    left_out = {
        "worker": no_worker,
        "snapshotter": no_snapshotter,
        "indexer": no_indexer,
        "trainer": no_trainer,
        "guard": no_guard,
    }
    parts = tuple(part for part in PARTS if not left_out[part])
    if foreground:
        return _foreground(settings, parts)
    state, started = bring_up(settings, parts, _say)
    if as_json:
        echo_json({"started": started, "home": str(settings.home), **_state_json(state)})
    else:
        _print_up(settings, state, started)
    if not started and set(parts) != set(state.parts):
        _say(f"it runs {', '.join(state.parts)} and was left so; to change that, run `treadle down` first")
    return 1 if any(p.state in _ILL or (started and p.reason) for p in state.processes) else 0


@click.command()
@json_option
@pass_settings
def down(settings: Settings, as_json: bool) -> None:
    """Stop what `treadle up` started: the processes in reverse order, then the broker. All data stays."""
    stopped = bring_down(settings, _say)
    if as_json:
        echo_json({"processes": list(stopped.processes), "supervisor": stopped.supervisor, "broker": stopped.broker})
    elif not stopped.anything:
        click.echo(f"nothing runs for {settings.home}")
    else:
        names = [*stopped.processes, *(["broker"] if stopped.broker else [])]
        click.echo(f"stopped: {', '.join(names) or 'the supervisor'}")


@click.command()
@json_option
@pass_settings
def status(settings: Settings, as_json: bool) -> int:
    """Show broker, processes, and each workspace: rows, lag, newest corpus versions, champions.

    Exit codes: 0 all is well, 1 something is down, 5 the broker cannot be reached.
    """
    found = overview(settings)
    if as_json:
        echo_json(
            {
                "ok": found.exit_code == 0,
                **to_json(found),
                "processes": [_process_json(process) for process in found.processes],
            }
        )
    else:
        _print_status(found)
    return found.exit_code


def _foreground(settings: Settings, parts: tuple[str, ...]) -> int:
    folder = RunFolder(settings.home)
    present = folder.state()
    if present is not None and present.alive:
        refuse_other_broker(settings, present)
        raise AlreadySupervised(settings.home, present.process.pid)
    _say("starting the broker" if settings.configured_servers is None else f"asking {settings.configured_servers}")
    used = broker.up(settings)
    _say(f"broker {used.kind} {used.bootstrap}; logs in {folder.logs}; Ctrl-C stops everything")
    try:
        serve(settings, parts, foreground=True, on_event=_tell)
    except AlreadySupervised:
        raise  # the broker is that one's
    except BaseException:
        broker.down(settings)
        raise
    broker.down(settings)
    _say("stopped")
    return 0


def _tell(event: Event) -> None:
    _say(f"{datetime.now(UTC):%H:%M:%S} {event.name}: {event.text}")


def _say(text: str) -> None:
    click.echo(text, err=True)


def _print_up(settings: Settings, state: SupervisorState, started: bool) -> None:
    click.echo("started:" if started else "runs already:")
    rows = [("broker", state.broker.kind, state.broker.bootstrap_servers)]
    rows += [(p.name, p.state, f"pid {p.pid}" if p.pid is not None else p.reason) for p in state.processes]
    _table(rows)
    for process in state.processes:
        if process.reason and process.pid is not None:
            click.echo(f"! {process.name}: {process.reason}")
    click.echo(f"logs: {RunFolder(settings.home).logs}")
    name = state.workspaces[0] if state.workspaces else "NAME"
    click.echo("next:")
    steps = [(f"treadle import {name} --interactions F.jsonl --outcomes F.jsonl", "bring logs in")]
    if not state.workspaces:
        steps.insert(0, ("treadle workspace create NAME", "its worker and snapshotter start by themselves"))
    else:
        steps.append((f"treadle workspace show {name}", "its metrics, and how far each topic has got"))
    steps.append(("treadle status", "how everything is"))
    _table(steps)


def _print_status(found: Overview) -> None:
    seen = found.broker
    click.echo(
        f"broker      {seen.kind or 'none'} {seen.bootstrap_servers or ''} {'reachable' if seen.reachable else 'NOT REACHABLE'}"
        + (f", restarted {seen.restarts} times" if seen.restarts else "")
    )
    supervisor = found.supervisor
    running = (
        f"running, pid {supervisor['pid']}, since {supervisor['started_at']}"
        if supervisor["running"]
        else "not running"
    )
    click.echo(f"supervisor  {running}")
    _table([_process_row(process) for process in found.processes])
    for view in found.workspaces:
        _print_workspace(view)
    for trainer in found.trainers:
        _print_trainer(trainer)
    for problem in found.problems:
        click.echo(f"! {problem}")


def _print_trainer(trainer: dict[str, Any]) -> None:
    for name, slot in trainer["slots"].items():
        job = f" job {slot['job']}" if slot["job"] is not None else ""
        reason = f": {slot['reason']}" if slot["reason"] and not slot["problem"] else ""
        click.echo(f"trainer of {name}  {slot['state']}{job}{reason}")
    use = trainer["use"]
    if use is not None:
        sizes = [f"{part} {use[part] / 1e6:,.1f} MB" for part in ("jobs", "columns", "releases")]
        budget = "" if use["budget"] is None else f"  budget {use['budget'] / 1e6:,.1f} MB"
        click.echo(f"  kept by the trainer: {'  '.join(sizes)}{budget}  free {use['free'] / 1e6:,.1f} MB")


def _process_row(process: ProcessStatus) -> tuple[str, ...]:
    pid = f"pid {process.pid}" if process.pid is not None else "-"
    restarts = f"restarts {process.restarts}" if process.restarts else ""
    return process.name, process.state, pid, f"since {process.since}", restarts, process.reason


def _print_workspace(view: WorkspaceView) -> None:
    click.echo(f"workspace {view.workspace}  (worker {view.worker})")
    if view.captured is not None:
        counts = ("captured", "pending", "settled", "corrections", "dead_letters", "lag")
        shown = [f"{name.replace('_', ' ')} {_number(getattr(view, name))}" for name in counts]
        click.echo(f"  {'  '.join(shown)}  clock {view.clock or 'unknown'}")
        kept = [f"{name} {_number(getattr(view, name))}" for name in ("orphans", "names", "tombstones")]
        if view.state_bytes is not None:
            kept.append(f"state {view.state_bytes / 1e6:,.1f} MB")
        click.echo(f"  kept by the join: {'  '.join(kept)}")
    for corpus in view.corpora:
        click.echo(f"  corpus {corpus.path}@v{corpus.version}  {corpus.rows:,} rows  {corpus.created_at}")
    for slot, release in view.champions.items():
        click.echo(f"  champion of {slot}: {release}")


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        click.echo("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _state_json(state: SupervisorState) -> dict[str, Any]:
    return {
        "supervisor": {"pid": state.process.pid, "started_at": state.started_at},
        "broker": to_json(state.broker),
        "workspaces": state.workspaces,
        "processes": [_process_json(process) for process in state.processes],
    }


def _process_json(process: ProcessStatus) -> dict[str, Any]:
    plain = to_json(process)
    del plain["process"]
    return {**plain, "last_error": process.reason}
