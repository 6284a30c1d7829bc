"""`treadle demo`: the whole wheel on this machine."""

from __future__ import annotations

import os
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from treadle.cli.support import pass_settings
from treadle.settings import Settings
from treadle_schemas import SettingError
from treadle_schemas.environment import load_environment
from treadle_streams.broker import BrokerSettings, announce, resolve
from treadle_trainer.jobs import has_cuda

from treadle_demo.errors import DemoFailed
from treadle_demo.profiles import CPU, GPU, GPU_TINY, Profile
from treadle_demo.report import Report, draw_chart, problems
from treadle_demo.view import View
from treadle_demo.wheel import STAGES, DemoSettings, Wheel

__all__ = ["demo"]


@click.command()
@click.option("--turns", type=click.IntRange(1, 20), default=4, show_default=True, help="How often the wheel turns.")
@click.option(
    "--seed", type=click.IntRange(0, 100_000), default=0, show_default=True, help="Seed of everything random."
)
@click.option(
    "--profile",
    "kind",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="gpu: a model of 116 million parameters and episodes of five steps, on a CUDA device.",
)
@click.option("--scale", type=click.Choice(["full", "tiny"]), default="full", hidden=True)
@click.option(
    "--episodes", type=click.IntRange(200, 20_000), help=f"Episodes a turn. Default: {CPU.episodes}, as of the profile."
)
@click.option(
    "--env",
    "environment",
    metavar="PKG:CLASS",
    help=f"The world to act in. Default: {CPU.environment}, as of the profile; treadle_demo:RoomDesk is another one.",
)
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Model folder to begin with, instead of the warm-started tiny model.",
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers to a file."
)
@click.option("--keep-broker", is_flag=True, help="Leave the local broker of this run running.")
@click.option(
    "--break",
    "broken",
    type=click.Choice(STAGES),
    help="Replace a stage's process by one that ends at once: the demo must notice.",
)
@click.option(
    "--stage-timeout",
    type=click.FloatRange(5),
    default=180.0,
    show_default=True,
    help="Seconds that any one stage may take.",
)
@pass_settings
def demo(
    settings: Settings,
    turns: int,
    seed: int,
    kind: str,
    scale: str,
    episodes: int | None,
    environment: str | None,
    model: Path | None,
    json_file: Path | None,
    keep_broker: bool,
    broken: str | None,
    stage_timeout: float,
) -> None:
    """Turn the whole wheel on this machine, with a tiny agent that learns.

    A tiny language model serves customers over a real SQLite shop. Every interaction goes to Kafka, outcomes follow late and out of
    order, graded rows become corpus versions, each version trains a candidate, and only what is better on held-out tasks goes live.
    At the side a broken grader must be refused by the gate, and a bad release that is forced live must be rolled back by the guard.

    Each run keeps its state in a folder of its own below TREADLE_HOME/demo. Exit code 0: all of that happened; 1: something did not,
    and is named; 5: no broker.
    """
    started = time.monotonic()
    profile = _profile(kind, scale)
    environment = environment or profile.environment
    episodes = episodes or profile.episodes
    load_environment(environment)
    workspace = f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}-{seed}"
    home = settings.home / "demo" / workspace
    home.mkdir(parents=True)
    console = Console(highlight=False, soft_wrap=True)
    view = View(console)
    view.say(f"treadle demo: {turns} turns of {episodes} episodes in {environment}, seed {seed}")
    view.say(f"state of this run: {home}")
    view.stage(
        "broker", "starting a local Apache Kafka" if not settings.configured_servers else settings.configured_servers
    )
    broker = resolve(BrokerSettings(directory=home / "broker", bootstrap_servers=settings.configured_servers))
    announce(home, broker.bootstrap)
    wheel_settings = DemoSettings(
        workspace=workspace,
        home=home,
        bootstrap_servers=broker.bootstrap,
        seed=seed,
        turns=turns,
        episodes=episodes,
        environment=environment,
        profile=profile,
        model=model.absolute() if model else None,
        broken=broken,
        stage_timeout_s=stage_timeout,
    )
    try:
        report = _run(wheel_settings, view, started)
    finally:
        if broker.kind != "configured" and not keep_broker:
            broker.stop()
    _conclude(report, wheel_settings, view, json_file)


def _profile(kind: str, scale: str) -> Profile:
    """The profile, where this machine can run it. Raises SettingError."""
    if kind == "cpu":
        return CPU
    if scale == "tiny":
        return GPU_TINY
    if not has_cuda():
        raise SettingError(
            "--profile gpu: wants a CUDA device, and this machine shows none; without it the demo runs on CPU"
        )
    return GPU


def _run(settings: DemoSettings, view: View, started: float) -> Report:
    with view, Wheel(settings, view) as wheel:
        wheel.set_up()
        for turn in range(1, settings.turns + 1):
            wheel.turn(turn)
        wheel.last_word(settings.turns + 1)
        wheel.poison(settings.turns)
        wheel.guard(settings.turns + 1)
        return wheel.finish(started)


def _conclude(report: Report, settings: DemoSettings, view: View, json_file: Path | None) -> None:
    report.places = {
        "corpus": str(settings.corpus),
        "releases": str(settings.home / "registry" / settings.workspace / "main"),
        "logs": str(settings.home / "logs"),
    }
    chart = draw_chart(report, settings.home / "success.png")
    report.places["chart"] = str(chart)
    view.summary(report)
    if json_file:
        report.write(json_file)
        view.say(f"numbers   {json_file}")
    program = "treadle" if shutil.which("treadle") else os.path.relpath(sys.argv[0])
    view.say("\nto look further:")
    view.say(f"  {program} corpus show {settings.corpus}")
    view.say(f"  {program} corpus export {settings.corpus} --view dpo --out pairs.jsonl")
    view.say(f"  {program} --home {settings.home} release list {settings.workspace}")
    found = problems(report, settings.turns)
    if found:
        raise DemoFailed("demo", "; ".join(found))
