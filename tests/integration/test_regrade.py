"""Settings that change while a worker runs: kept rows are graded anew across kill -9, the stream goes on, a snapshot waits for it."""

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

import msgspec
import pytest
from treadle.log import Record, Sender, read
from treadle_corpus import Corpus, Policy
from treadle_schemas import GradedRow, WorkspaceSettings, codec
from treadle_schemas.moments import from_micros
from treadle_schemas.records import Regraded
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.snapshot import RegradeBehind, run_snapshot

PARTITIONS = 2
ROWS = 900
"""More than two transactions of a partition grade anew."""
T0_US = 1_700_000_000_000_000


class World:
    def __init__(self, servers: str, workspace: str, home: Path) -> None:
        self.servers, self.workspace, self.home = servers, workspace, home
        workspaces.create(servers, WorkspaceSettings(workspace=workspace, partitions=PARTITIONS), home=home)
        self.sender = Sender(servers)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")}
        self.environment |= {"TREADLE_HOME": str(home), "TREADLE_BOOTSTRAP_SERVERS": servers}
        self.worker: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "treadle_streams.worker", "--workspace", self.workspace]
        self.worker = subprocess.Popen(command, env=self.environment)

    def end(self, how: signal.Signals) -> None:
        if self.worker is not None:
            self.worker.send_signal(how)
            self.worker.wait(30)
            self.worker = None

    def treadle(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "treadle", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def record(self, name: str, value: float) -> None:
        moment = from_micros(T0_US)
        interaction = {"interaction_id": name, "agent": "bot", "messages": [{"role": "user", "content": name}]}
        self._send("interactions", codec.INTERACTION, interaction | {"started_at": moment, "ended_at": moment}, name)
        outcome = {"interaction_id": name, "name": "reward", "value": value, "outcome_id": "o", "observed_at": moment}
        self._send("outcomes", codec.OUTCOME, outcome | {"episode_id": name}, name)

    def _send(self, kind: str, event_type: str, data: dict[str, Any], key: str) -> None:
        headers = codec.make_headers(event_type, self.workspace, source="test")
        self.sender.send(topic(self.workspace, kind), key.encode(), json.dumps(data).encode(), headers)

    def records(self, kind: str, event_type: str) -> list[Record]:
        found = read(self.servers, topic(self.workspace, kind), PARTITIONS)
        return [r for r in found if codec.header_map(r.headers)["ce_type"] == event_type.encode()]

    def revisions(self) -> dict[str, list[GradedRow]]:
        rows: dict[str, list[GradedRow]] = {}
        for record in self.records("graded", codec.GRADED):
            row = msgspec.json.decode(record.value or b"", type=GradedRow)
            rows.setdefault(row.interaction_id, []).append(row)
        return rows


@pytest.fixture
def world(broker: str, workspace_name: str, tmp_path: Path) -> Iterator[World]:
    made = World(broker, workspace_name, tmp_path)
    yield made
    made.end(signal.SIGTERM)


def wait(what: str, condition: Callable[[], bool], deadline_s: float = 150.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {deadline_s} s"
        time.sleep(0.1)


def test_a_changed_reward_grades_kept_rows_anew_across_kill_9_and_a_snapshot_waits_for_it(world: World) -> None:
    for n in range(ROWS):
        world.record(f"i{n}", n)
    world.sender.flush()
    world.start()
    wait("all rows settle", lambda: len(world.revisions()) == ROWS)
    said = world.treadle("workspace", "set", world.workspace, "--reward", "reward * 2")
    assert "reward reward * 2   (grading version 2)" in said
    wait("grading anew has begun", lambda: any(len(rows) > 1 for rows in world.revisions().values()))
    world.end(signal.SIGKILL)

    corpus = world.home / "corpus"
    if len(world.records("graded", codec.REGRADED)) < PARTITIONS:
        with pytest.raises(RegradeBehind):
            run_snapshot(world.servers, world.workspace, corpus, Policy(), wait_s=1.0)
    world.record("new", 0.5)
    world.sender.flush()
    world.start()
    report = run_snapshot(world.servers, world.workspace, corpus, Policy(), wait_s=60.0)

    assert (report.rows, report.pending, report.refused) == (ROWS + 1, 0, 0)
    rewards = {row.interaction_id: row.grade.reward for row in Corpus.open(f"{corpus}@v1").rows("all")}
    assert rewards == {f"i{n}": 2.0 * n for n in range(ROWS)} | {"new": 1.0}
    for name, rows in world.revisions().items():
        assert [r.provenance.revision for r in rows] == list(range(1, len(rows) + 1))
        assert [r.grade.grading_version for r in rows] == ([2] if name == "new" else [1, 2])
    for kind in ("graded", "progress"):
        markers = world.records(kind, codec.REGRADED)
        assert sorted(m.partition for m in markers) == list(range(PARTITIONS))
        versions = {msgspec.json.decode(m.value or b"", type=Regraded).grading_version for m in markers}
        assert versions == {2}


def test_settings_that_change_nothing_or_make_no_sense_are_refused_before_anything_is_written(world: World) -> None:
    before = workspaces.get(world.servers, world.workspace)
    world.treadle("workspace", "set", world.workspace, "--reward", "reward")
    assert workspaces.get(world.servers, world.workspace) == before
    command = [sys.executable, "-m", "treadle", "workspace", "set", world.workspace, "--reward", "rewarding"]
    done = subprocess.run(command, env=world.environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "rewarding" in done.stderr
    made = world.treadle(
        "workspace",
        "set",
        world.workspace,
        "--metric",
        "ok:bool,level=episode",
        "--credit",
        "discounted:0.5",
        "--strict",
    )
    assert "credit discounted by 0.5; metrics that are not declared are refused" in made
    changed = workspaces.get(world.servers, world.workspace)
    assert (changed.grading_version, changed.strict, len(changed.metrics)) == (2, True, 2)
