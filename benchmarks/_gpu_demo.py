"""One turn of the demo's wheel, by all its processes and a broker of its own: the last stage of the GPU check.

Its tiny model stays in float32; where there is a CUDA device its training and evaluation use it, each in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _gpu_world import World

GRACE_S = 20.0
"""How long a turn that is broken off has to end its processes."""


def demo_turn(world: World) -> dict[str, Any]:
    """What became of the turn, or that it was left out because the stage's time was up."""
    out = world.folder / "demo.json"
    # its processes keep to the run's own folder, and end with this one
    command = [sys.executable, __file__, str(world.folder / "demo"), str(out), "--episodes", str(world.scale.episodes)]
    started = time.monotonic()
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, text=True
    )
    try:
        _, said = child.communicate(timeout=world.scale.seconds["demo"])
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
        try:
            child.communicate(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
        return {"left_out": f"not done within {world.scale.seconds['demo']:g} s"}
    if child.returncode != 0:
        return {"failed": said.strip()[-300:]}
    found: dict[str, Any] = json.loads(out.read_text())
    return {**found, "seconds": round(time.monotonic() - started, 1)}


def main() -> None:
    """A turn in a workspace of its own."""
    from rich.console import Console
    from treadle_demo.profiles import CPU
    from treadle_demo.view import View
    from treadle_demo.wheel import DemoSettings, Wheel
    from treadle_streams.broker import BrokerSettings, announce, resolve

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, required=True)
    options = parser.parse_args()
    options.home.mkdir(parents=True)
    broker = resolve(BrokerSettings(directory=options.home / "broker", bootstrap_servers=None))
    try:
        announce(options.home, broker.bootstrap)
        settings = DemoSettings(
            workspace="gpu-check",
            home=options.home,
            bootstrap_servers=broker.bootstrap,
            turns=1,
            episodes=options.episodes,
            profile=CPU,
        )
        with View(Console(quiet=True)) as view, Wheel(settings, view) as wheel:
            wheel.set_up()
            turn = wheel.turn(1)
        held = turn.heldout
        options.out.write_text(
            json.dumps(
                {
                    "decision": turn.decision,
                    "live_success": turn.live_success,
                    "heldout": None if held is None else [held.champion, held.candidate],
                    "stages": turn.seconds,
                }
            )
        )
    finally:
        broker.stop()


if __name__ == "__main__":
    main()
