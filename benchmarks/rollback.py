"""From the moment that the deciding row reaches its age until every agent is on the previous release.

    python benchmarks/rollback.py [--quick] [--json FILE]

A local broker, the guard as a process of its own, and three agent processes that follow the releases. The predecessor of the champion was
good; then the champion serves, always badly, 20 rows a second, each with its grade at once, and the topic's clock moves on. The guard reads
each row at age 2 s; the row that decides is the one that its evidence counts last (one partition, so rows reach their age in order).

    rollback_s   from that row's age to the guard's decision, by the audit log
    agents_s     from that row's age until the last of the agents has the previous release verified

One run a workspace; 10 runs, with --quick 3.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from _machine import describe
from treadle.log import Sender
from treadle_schemas import Grade, Progress, WorkspaceSettings
from treadle_schemas.codec import CLOCK, PROGRESS, encode, make_headers, to_json
from treadle_schemas.moments import to_micros
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.broker import LocalBroker
from treadle_trainer.policy import GuardPolicy, TrainingPolicy
from treadle_trainer.registry import Outbox, Registry

AGENTS: Final = 3
AGE_S: Final = 2.0
ROW_EVERY_S: Final = 0.05
LONGEST_S: Final = 60.0
AGENT: Final = """
import sys, time
from treadle import Releases
for serving in Releases(sys.argv[1]).watch():
    print(time.time_ns() // 1_000_000, serving.champion.name, flush=True)
"""


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    machine = describe("confluent-kafka")
    with tempfile.TemporaryDirectory(prefix="rollback-") as scratch:
        broker = LocalBroker(Path(scratch) / "broker", die_with_parent=True)
        broker.start()
        try:
            runs = [
                one_run(broker.bootstrap, f"back-{n}", Path(scratch) / f"home-{n}")
                for n in range(3 if options.quick else 10)
            ]
        finally:
            broker.stop()
    results: dict[str, Any] = {"agents": AGENTS, "age_s": AGE_S, "runs": runs}
    for name in ("rollback_s", "agents_s"):
        values = [run[name] for run in runs]
        results[name] = {"median": round(statistics.median(values), 2), "most": max(values)}
    text = json.dumps({"machine": machine, "results": results}, indent=1) + "\n"
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text)
    print(text)


def one_run(servers: str, workspace: str, home: Path) -> dict[str, Any]:
    """A workspace of its own: good rows of r0, bad ones of r1 until every agent is back on r0."""
    workspaces.create(servers, WorkspaceSettings(workspace=workspace, partitions=1))
    registry = Registry(home / "registry", workspace)
    policy = TrainingPolicy(guard=GuardPolicy(age_s=AGE_S, min_baseline=30, fast={}))
    policy.save(home / "registry", workspace, "main")
    for _ in range(2):
        release = registry.register(hosted="model")
        registry.promote(release, expect=registry.champion, reason="next")
    Outbox(registry, servers).publish()
    env = {**os.environ, "TREADLE_HOME": str(home), "TREADLE_BOOTSTRAP_SERVERS": servers}
    told = [home / f"agent-{n}.txt" for n in range(AGENTS)]
    started = []
    try:
        for file in told:
            with file.open("wb") as out:
                started.append(subprocess.Popen([sys.executable, "-c", AGENT, workspace], env=env, stdout=out))
        with (home / "guard.log").open("wb") as log:
            guard = [sys.executable, "-m", "treadle", "guard", "--workspace", workspace]
            started.append(subprocess.Popen(guard, env=env, stderr=log))
        _wait(lambda: all(_moment(file, "r1") is not None for file in told), "the agents")
        traffic = _Traffic(servers, workspace)
        for _ in range(60):
            traffic.row("r0", 1.0)
        bad: list[int] = []
        deadline = time.monotonic() + LONGEST_S
        while any(_moment(file, "r0") is None for file in told):
            if time.monotonic() > deadline:
                raise SystemExit(f"not rolled back: {(home / 'guard.log').read_text()[-800:]}")
            bad.append(traffic.row("r1", 0.0))
            time.sleep(ROW_EVERY_S)
    finally:
        for process in started:
            process.kill()
            process.wait()
    back = registry.events()[-1]
    due = bad[back.evidence["after_rows"] - 1] + 1000 * AGE_S
    agents = [_moment(file, "r0") or 0 for file in told]
    return {
        "after_rows": back.evidence["after_rows"],
        "rollback_s": round((to_micros(back.at, "at") / 1000 - due) / 1000, 3),
        "agents_s": round((max(agents) - due) / 1000, 3),
    }


class _Traffic:
    """Writes `.progress` as the worker does."""

    def __init__(self, servers: str, workspace: str) -> None:
        self._workspace, self._topic = workspace, topic(workspace, "progress")
        self._sender, self._row = Sender(servers), 0

    def row(self, release: str, value: float) -> int:
        """A row that is graded at once, and a clock record behind it. Returns its append time in milliseconds."""
        self._row += 1
        at_ms = time.time_ns() // 1_000_000
        row = Progress(
            episode_id=f"e{self._row}",
            interaction_id=f"i{self._row}",
            task_id=None,
            agent="a",
            slot="main",
            release=f"{self._workspace}/main/{release}",
            grade=Grade(
                metrics={"reward": ("observed", value)}, reward=value, completeness=1.0, settled=True, grading_version=1
            ),
            split="train",
            revision=1,
            append_ms=at_ms,
            ended_at="2026-01-01T00:00:00Z",
        )
        send, source = self._sender.send, "bench"
        send(
            self._topic,
            row.episode_id.encode(),
            encode(to_json(row)),
            make_headers(PROGRESS, self._workspace, source=source),
            0,
        )
        send(self._topic, None, b"{}", make_headers(CLOCK, self._workspace, source=source), 0)
        self._sender.flush()
        return at_ms


def _moment(file: Path, release: str) -> int | None:
    """When an agent had the release for the first time, in milliseconds."""
    for line in file.read_text().splitlines():
        at, _, name = line.partition(" ")
        if name.endswith(f"/{release}"):
            return int(at)
    return None


def _wait(condition: Any, what: str) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not start")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
