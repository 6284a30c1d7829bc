"""`treadle up`, `status` and `down` on a home of their own: a real broker and all services, killed and brought back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from treadle.settings import Settings
from treadle_streams.supervisor import ProcessId
from treadle_streams.supervisor._overview import Overview, WorkspaceView, overview

WORKSPACE = "shop"
ROWS = 5


class Home:
    """The command line on one home."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.env = {**os.environ, "TREADLE_HOME": str(path), "TREADLE_BROKER": "local"}

    def run(self, *arguments: str, expect: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "treadle", *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == expect, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def look(self) -> Overview:
        """What `treadle status` knows, without the start of a process each time."""
        return overview(Settings.load(self.env))

    def processes(self) -> dict[int, str]:
        """Every process that was started for this home, whoever its parent is now and whatever group it is in."""
        mark, found = b"TREADLE_HOME=" + os.fsencode(self.path), {}
        for entry in Path("/proc").iterdir():
            try:
                ours = mark in (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (OSError, ValueError):
                continue
            if ours and entry.name.isdigit() and ProcessId.of(int(entry.name)) is not None:
                found[int(entry.name)] = command
        return found

    def broker_pid(self) -> int:
        return int(json.loads((self.path / "broker" / "state.json").read_bytes())["pid"])


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home")
    yield made
    subprocess.run([sys.executable, "-P", "-m", "treadle", "down"], env=made.env, timeout=120, check=False)
    for pid in made.processes():
        os.kill(pid, signal.SIGKILL)


def eventually(what: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return found


def test_the_wheel_comes_up_heals_tells_how_it_is_and_goes_down_without_a_trace(home: Home) -> None:
    assert "treadle up" in home.run("status", expect=5)
    up = json.loads(home.run("up", "--json"))
    assert up["started"]
    assert up["broker"]["kind"] == "local"
    assert [(p["name"], p["state"]) for p in up["processes"]] == [("trainer", "running"), ("guard", "running")]

    # a workspace that appears is served
    home.run("workspace", "create", WORKSPACE, "--partitions", "2")
    eventually(lambda: ours(home.look()).worker == "running")
    record(up["broker"]["bootstrap_servers"])
    promote(home.path, up["broker"]["bootstrap_servers"])
    eventually(lambda: lively(home.look()))
    found = json.loads(home.run("status", "--json"))
    assert (found["ok"], found["problems"]) == (True, [])
    assert {p["name"] for p in found["processes"]} == {
        *("worker-shop", "snapshotter-shop", "indexer-shop", "trainer", "guard"),
    }
    (view,) = found["workspaces"]
    assert (view["captured"], view["settled"], view["pending"], view["lag"]) == (ROWS, ROWS, 0, 0)
    assert (view["corrections"], view["dead_letters"]) == (0, 0)
    assert view["champions"] == {"main": f"{WORKSPACE}/main/r0"}

    # everything is killed at once, and everything comes back (but for the trainer: its imports alone take ten seconds)
    before = {p["name"]: p["pid"] for p in found["processes"] if p["name"] != "trainer"}
    broker = home.broker_pid()
    for pid in (broker, *before.values()):
        os.kill(pid, signal.SIGKILL)
    healed = eventually(lambda: (seen := home.look()).broker.restarts and lively(seen) and seen)
    assert healed.broker.restarts == 1
    assert home.broker_pid() != broker
    for process in (p for p in healed.processes if p.name in before):
        assert process.pid not in (None, before[process.name])
        assert process.restarts >= 1
        assert process.reason
    assert (ours(healed).captured, ours(healed).settled) == (ROWS, ROWS)

    assert "runs already" in home.run("up")
    assert home.look().supervisor["pid"] == up["supervisor"]["pid"]

    running = home.processes()
    assert len(running) >= 6, running
    assert home.run("down").split(": ")[1].split() == [
        "indexer-shop,",
        "snapshotter-shop,",
        "worker-shop,",
        "guard,",
        "trainer,",
        "broker",
    ]
    assert home.processes() == {}
    assert not (home.path / "run" / "broker.json").exists()
    assert "nothing runs" in home.run("down")


def ours(found: Overview) -> WorkspaceView:
    absent = WorkspaceView(workspace=WORKSPACE, worker="absent")
    return next((view for view in found.workspaces if view.workspace == WORKSPACE), absent)


def lively(found: Overview) -> bool:
    """Whether all is well, and the worker has joined everything."""
    view = ours(found)
    return found.exit_code == 0 and (view.worker, view.lag, view.captured, view.settled) == ("running", 0, ROWS, ROWS)


def record(servers: str) -> None:
    import treadle

    with treadle.Recorder(WORKSPACE, bootstrap_servers=servers, agent="clerk") as recorder:
        for n in range(ROWS):
            messages = [{"role": "user", "content": f"Order {n}?"}, {"role": "assistant", "content": "Shipped."}]
            recorder.outcome(recorder.record(messages=messages, task_id=f"order-{n}"), "reward", 1.0)
        assert recorder.flush(10.0) == 0


def promote(home: Path, servers: str) -> None:
    from treadle_trainer.registry import Outbox, Registry

    registry = Registry(home / "registry", WORKSPACE)
    release = registry.register(prompt="Be brief.", actor="test")
    registry.promote(release, expect=None, actor="test", reason="what runs today")
    Outbox(registry, servers).publish()
