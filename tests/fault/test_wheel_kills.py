"""The whole path from event to version under kill -9: worker, snapshotter and broker, each in mid-stream.

The same events go through a disturbed and an undisturbed workspace; the versions must have the same content_hash. Where each kill fell, and
that input and output advanced before and after it, is read from offsets and printed.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from treadle.errors import LogError
from treadle.log import Admin, Sender
from treadle_corpus import Corpus, versions
from treadle_schemas import Metric, WorkspaceSettings
from treadle_schemas.codec import INTERACTION, OUTCOME, encode, make_headers
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.supervisor import ProcessSpec, Supervisor

if TYPE_CHECKING:
    from treadle_streams.broker import LocalBroker

PARTITIONS = 3
ROWS = 6_000
PER_S = 300
DEADLINE_S = 240


def events(seed: int) -> list[tuple[str, str, dict[str, Any]]]:
    """(kind, key, value) in the order of production: outcomes before and after their interaction, repeated, corrected."""
    chance = random.Random(seed)
    made: list[tuple[float, str, str, dict[str, Any]]] = []
    for n in range(ROWS):
        ident, at = f"row-{n}", n + chance.random()
        interaction = {
            "interaction_id": ident,
            "task_id": f"task-{n % 97}",
            "agent": "a",
            "messages": [
                {"role": "user", "content": f"question {n}"},
                {"role": "assistant", "content": f"{chance.random()}"},
            ],
            "started_at": "2026-01-01T00:00:00Z",
            "ended_at": "2026-01-01T00:00:01Z",
        }
        made += [(at, INTERACTION, ident, interaction)] * (1 + (chance.random() < 0.1))
        for k in range(chance.choice((1, 1, 2))):
            outcome = {
                "interaction_id": ident,
                "episode_id": ident,
                "name": "reward",
                "value": float(chance.randint(0, 1)),
                "outcome_id": f"{ident}-{k}",
                "observed_at": f"2026-01-01T00:{k:02}:02Z",
            }
            made.append((at + chance.uniform(-20, 200), OUTCOME, ident, outcome))
    made.sort(key=lambda e: e[0])
    return [(kind, key, value) for _, kind, key, value in made]


class Producer(threading.Thread):
    """Sends the events in their order, at a steady rate; an outage of the broker only delays it."""

    def __init__(self, servers: str, workspace: str, seed: int, per_s: float) -> None:
        super().__init__()
        self._sender = Sender(servers, timeout_s=120)
        self._workspace, self._seed, self._per_s = workspace, seed, per_s
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            start = time.monotonic()
            kinds = {INTERACTION: "interactions", OUTCOME: "outcomes"}
            for n, (kind, key, value) in enumerate(events(self._seed)):
                due = start + n / self._per_s
                while (left := due - time.monotonic()) > 0:
                    time.sleep(min(left, 0.05))  # the rate is the point, not a wait for something
                headers = make_headers(kind, self._workspace, source="test")
                self._sender.send(topic(self._workspace, kinds[kind]), key.encode(), encode(value), headers)
            self._sender.flush(120)
        except BaseException as err:
            self.error = err


def treadle(home: Path, servers: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "TREADLE_HOME": str(home), "TREADLE_BOOTSTRAP_SERVERS": servers}
    command = [sys.executable, "-m", "treadle", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=DEADLINE_S)


def create(servers: str, name: str) -> None:
    metrics = (Metric(name="reward", required=True),)
    workspaces.create(servers, WorkspaceSettings(workspace=name, partitions=PARTITIONS, metrics=metrics).checked())


class Bench:
    """The disturbed workspace: its services, its corpus, and how far input and output have come."""

    def __init__(self, broker: LocalBroker, name: str, home: Path) -> None:
        self.broker, self.name, self.corpus = broker, name, home / "corpus"
        env = {"TREADLE_HOME": str(home), "TREADLE_BOOTSTRAP_SERVERS": broker.bootstrap, "TREADLE_WORKSPACE": name}
        command = [sys.executable, "-m", "treadle"]
        snapshotter = ("snapshotter", "--to", str(self.corpus), "--min-new-rows", "100")
        self.services = Supervisor(home)
        self.services.add(ProcessSpec(name="worker", argv=(*command, "worker", "--workspace", name), env=env))
        self.services.add(ProcessSpec(name="snapshotter", argv=(*command, *snapshotter), env=env))
        self.services.start()

    def offsets(self) -> dict[str, int]:
        """Ends of the inputs, end of `.graded`, and the number of versions."""
        admin = Admin(self.broker.bootstrap)
        ends = admin.end_offsets(
            (topic(self.name, kind), p) for kind in ("interactions", "outcomes", "graded") for p in range(PARTITIONS)
        )
        count = dict.fromkeys(("input", "graded"), 0)
        for (name, _), end in ends.items():
            count["graded" if name.endswith(".graded") else "input"] += end
        return {**count, "versions": len(versions(self.corpus)) if self.corpus.exists() else 0}

    def until(self, what: str, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not true():
            self.services.poll()
            assert time.monotonic() < deadline, f"{what}: {self.services.status()}"
            time.sleep(0.05)

    def advanced(self, before: dict[str, int]) -> Callable[[], bool]:
        def all_three() -> bool:
            try:
                now = self.offsets()
            except LogError:
                return False  # the broker is coming back
            return all(now[name] > before[name] for name in before)

        return all_three

    def kill(self, who: str) -> None:
        if who == "broker":
            self.broker.kill()
            self.broker.start()
            return
        [status] = [s for s in self.services.status() if s.name == who]
        assert status.pid is not None
        os.kill(status.pid, signal.SIGKILL)


@pytest.fixture
def bench(own_broker: LocalBroker, workspace_name: str, tmp_path: Path) -> Iterator[Bench]:
    create(own_broker.bootstrap, workspace_name)
    made = Bench(own_broker, workspace_name, tmp_path)
    try:
        yield made
    finally:
        made.services.stop()


@pytest.mark.fault
def test_kills_of_worker_snapshotter_and_broker_leave_the_content_hash_of_an_undisturbed_run(
    bench: Bench, tmp_path: Path
) -> None:
    seed = secrets.randbelow(1_000_000)
    print(f"seed {seed}")
    servers = bench.broker.bootstrap
    producer = Producer(servers, bench.name, seed, PER_S)
    producer.start()
    for who in ("worker", "snapshotter", "broker"):
        zero = bench.offsets()
        bench.until(f"progress before the kill of the {who}", bench.advanced(zero))
        at = bench.offsets()
        assert producer.is_alive(), "the stream ended before the kill: raise ROWS"
        bench.kill(who)
        print(f"kill -9 of the {who}: at {at}")
        bench.until(f"progress after the kill of the {who}", bench.advanced(at))
        print(f"  went on to {bench.offsets()}")
    bench.until("the end of the stream", lambda: not producer.is_alive())
    assert producer.error is None, producer.error
    bench.services.remove("snapshotter")
    bench.until("the snapshotter's end", lambda: [s.name for s in bench.services.status()] == ["worker"])
    done = treadle(tmp_path, servers, "snapshot", bench.name, "--to", str(bench.corpus), "--json")
    assert done.returncode == 0, done.stderr

    calm = f"{bench.name}-calm"
    create(servers, calm)
    undisturbed = Producer(servers, calm, seed, 1e9)
    undisturbed.run()
    assert undisturbed.error is None, undisturbed.error
    joined = treadle(tmp_path / "calm", servers, "worker", "--workspace", calm, "--once-caught-up")
    assert joined.returncode == 0, joined.stderr
    done = treadle(tmp_path / "calm", servers, "snapshot", calm, "--to", str(tmp_path / "calm-corpus"), "--json")
    assert done.returncode == 0, done.stderr

    stormy, still = Corpus.open(bench.corpus).manifest, Corpus.open(tmp_path / "calm-corpus").manifest
    assert stormy.rows == still.rows == ROWS
    assert stormy.content_hash == still.content_hash
    assert json.loads(done.stdout)["version"] == 1
