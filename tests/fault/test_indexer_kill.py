"""kill -9 of the indexer at random moments: afterwards the index holds each interaction once, with its last text and grade.

The recount knows nothing of the index: it reads the topics, and says what should be found.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from treadle.log import Sender, read
from treadle_schemas import Grade, Handle, Progress, WorkspaceSettings
from treadle_schemas.codec import INTERACTION, OUTCOME, PROGRESS, decode, encode, make_headers, to_json
from treadle_schemas.moments import from_micros
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.live import Indexer, Recall, erase
from treadle_streams.live.folder import IndexFolder
from treadle_streams.live.text import TextIndex

PARTITIONS = 2


class World(threading.Thread):
    """Publishes interactions, repetitions and better copies of them, grades and denials, until told to end."""

    def __init__(self, servers: str, workspace: str, seed: int) -> None:
        super().__init__(daemon=True)
        self._sender = Sender(servers)
        self._workspace = workspace
        self._chance = random.Random(seed)
        self._stop_now = threading.Event()
        self.count = 0

    def run(self) -> None:
        known: list[str] = []
        while not self._stop_now.is_set():
            for _ in range(5):
                if not known or self._chance.random() < 0.4:
                    known.append(f"i{len(known)}")
                    self._interaction(known[-1], 2)
                name = self._chance.choice(known)
                match self._chance.randrange(8):
                    case 0:
                        self._interaction(name, self._chance.choice([1, 2, 3]))
                    case 1:
                        self._deny(name)
                    case _:
                        self._grade(name)
            self._stop_now.wait(0.02)
        self._sender.flush()

    def end(self) -> None:
        self._stop_now.set()
        self.join()

    def _send(self, kind: str, key: str, value: dict[str, Any], event: str) -> None:
        self.count += 1
        headers = make_headers(event, self._workspace, source="test")
        self._sender.send(topic(self._workspace, kind), key.encode(), encode(value), headers)

    def _interaction(self, name: str, second: int) -> None:
        moment = from_micros(second * 1_000_000)
        said = [{"role": "user", "content": f"word{name} version{second} " + "filler " * 50}]
        value = {"interaction_id": name, "agent": "a", "subject": f"s{int(name[1:]) % 7}", "messages": said}
        self._send("interactions", name, {**value, "started_at": from_micros(0), "ended_at": moment}, INTERACTION)

    def _deny(self, name: str) -> None:
        said = {"name": "recall", "kind": "rights", "value": "deny", "observed_at": from_micros(0)}
        self._send("outcomes", name, {**said, "outcome_id": name, "episode_id": name, "interaction_id": name}, OUTCOME)

    def _grade(self, name: str) -> None:
        reward = float(self.count)
        grade = Grade(
            metrics={"reward": ("observed", reward)}, reward=reward, completeness=1.0, settled=True, grading_version=1
        )
        said = Progress(
            episode_id=name,
            interaction_id=name,
            task_id=None,
            agent="a",
            slot="main",
            release=None,
            grade=grade,
            split="train",
            revision=self.count,
            append_ms=0,
            ended_at=from_micros(0),
        )
        self._send("progress", name, to_json(said), PROGRESS)


def start(servers: str, workspace: str, home: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TREADLE_BOOTSTRAP_SERVERS": servers, "TREADLE_HOME": str(home)}
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "treadle", "indexer", "--workspace", workspace],
            env=environment,
            stdout=out,
            stderr=out,
        )


def recount(servers: str, workspace: str) -> dict[str, tuple[str, float | None]]:
    """By interaction, the word of the copy with the smallest end, and the last reward; without those that are denied or erased."""
    ended: dict[str, str] = {}
    words: dict[str, str] = {}
    rewards: dict[str, float] = {}
    denied = set()
    for kind in ("interactions", "outcomes", "progress"):
        for record in read(servers, topic(workspace, kind), PARTITIONS):
            data = decode(record.value, record.headers).data
            name = data["interaction_id"]
            match kind:
                case "interactions":
                    if name not in ended or data["ended_at"] < ended[name]:
                        ended[name] = data["ended_at"]
                        words[name] = data["messages"][0]["content"].split()[1]
                case "outcomes":
                    denied.add(name)
                case _:
                    rewards[name] = data["grade"]["reward"]
    return {name: (word, rewards.get(name)) for name, word in words.items() if name not in denied}


def found(home: Path, workspace: str, names: list[str]) -> dict[str, tuple[str, float | None]]:
    out: dict[str, tuple[str, float | None]] = {}
    searching = Recall(home, workspace)
    for name in names:
        hits = searching.search(f"word{name}")
        assert len(hits) <= 1, f"{name} is found {len(hits)} times"
        for hit in hits:
            assert Handle.parse(hit.handle).interaction_id == name
            out[name] = (hit.request.split()[1], hit.reward)
    searching.close()
    return out


def rows_in(home: Path, workspace: str) -> int:
    folder = IndexFolder(home, workspace)
    try:
        return len(TextIndex(folder.text(1)))
    except ValueError:
        return 0


@pytest.mark.fault
@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.long)])
def test_each_interaction_is_in_the_index_once_whenever_the_indexer_is_killed(
    broker: str, workspace_name: str, tmp_path: Path, kills: int
) -> None:
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS))
    log, seed = tmp_path / "indexer.log", random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    world = World(broker, workspace_name, seed)
    world.start()
    process = None
    try:
        for kill in range(kills):
            before = rows_in(tmp_path, workspace_name)
            process = start(broker, workspace_name, tmp_path, log)
            deadline = time.monotonic() + 60
            while rows_in(tmp_path, workspace_name) == before:  # it works, and is hit somewhere in its next commits
                assert time.monotonic() < deadline, log.read_text()
                assert process.poll() is None, log.read_text()
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 0.6))
            process.kill()
            assert process.wait(30) == -9, log.read_text()
            print(f"kill {kill + 1}: {rows_in(tmp_path, workspace_name)} rows, {world.count} records written")
    finally:
        world.end()
        if process is not None:
            process.kill()
            process.wait()
    with Indexer(broker, tmp_path, workspace_name) as indexer:
        counts = indexer.catch_up()
    expected = recount(broker, workspace_name)
    names = [f"i{n}" for n in range(len(expected) * 3)]
    assert found(tmp_path, workspace_name, names) == expected, f"seed {seed}"
    assert rows_in(tmp_path, workspace_name) == counts.shown == len(expected)
    assert counts.waiting == 0
    print(f"{len(expected)} rows of {world.count} records, each once")


@pytest.mark.fault
def test_an_erasure_that_is_killed_anywhere_is_carried_out_by_the_next_start(
    broker: str, workspace_name: str, tmp_path: Path
) -> None:
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS))
    world = World(broker, workspace_name, 1)
    for n in range(40):
        world._interaction(f"i{n}", 2)
    world._sender.flush()
    with Indexer(broker, tmp_path, workspace_name) as indexer:
        assert indexer.catch_up().shown == 40
    environment = {**os.environ, "TREADLE_HOME": str(tmp_path)}
    kept = {name: seen for name, seen in recount(broker, workspace_name).items() if int(name[1:]) % 7 != 3}
    for step in STEPS:
        child = subprocess.run(
            [sys.executable, "-c", DYING, step, str(tmp_path), workspace_name], env=environment, timeout=60, check=False
        )
        assert child.returncode == -9, step
        # whatever it died in, nobody is missing who was not erased
        assert kept.items() <= found(tmp_path, workspace_name, [f"i{n}" for n in range(40)]).items(), step
    erase(tmp_path, workspace_name, ["s3"])
    assert found(tmp_path, workspace_name, [f"i{n}" for n in range(40)]) == kept
    files = [path for path in (tmp_path / "index").rglob("*") if path.is_file()]
    assert not [path for path in files if b"wordi3 " in path.read_bytes()]
    assert [path for path in files if b"wordi4 " in path.read_bytes()]
    assert json.loads((tmp_path / "index" / workspace_name / "erased.json").read_text())["subjects"]


STEPS = (
    "Rows.delete_episode:1",
    "Rows.shown:1",
    "TextWriter.commit:1",
    "Rows.set_meta:2",
    "IndexFolder.remove_others:3",
    "Rows.scrub:1",
)
"""Where an erasure dies: at which call of what."""
DYING = """
import os, signal, sys
from pathlib import Path
from treadle_streams.live import erase
from treadle_streams.live.folder import IndexFolder
from treadle_streams.live.store import Rows
from treadle_streams.live.text import TextWriter
step, home, workspace = sys.argv[1:]
owner, _, name = step.partition(":")[0].partition(".")
owner, left = {"Rows": Rows, "IndexFolder": IndexFolder, "TextWriter": TextWriter}[owner], [int(step.partition(":")[2])]
before = getattr(owner, name)
def dies(self, *args):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(self, *args)
setattr(owner, name, dies)
erase(Path(home), workspace, ["s3"])
"""
