"""One whole turn of the wheel over many rows, stage by stage: what it takes beside training and settling.

    python benchmarks/cycle_overhead.py [--quick] [--rows N] [--json FILE]

One real local broker and the processes that production runs: worker, snapshotter, trainer, guard, and an agent that follows the releases. N
interactions of about 3 KB, each with its outcome a moment later (100,000; with --quick 2,000), are sent as fast as Kafka takes them. When
they have settled the snapshotter makes a version, the trainer trains a tiny Llama for a few steps, compares it with the one of random
weights on held-out rows, promotes it, and the agent records an interaction with it, which ends the turn.

All figures are those of `treadle cycle`: `seconds` by stage, from append times; `overhead_s` is the cycle without settling, training and
evaluation, `beside_training_s` the cycle without settling and training. `cpu_s` is the CPU time of each process during each stage, jobs
counted with the trainer, from samples a fifth of a second apart. Rows arrive in a burst here, so that the join works behind them: what it
still had to do when the last interaction was appended is `settle`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import treadle
from _join_data import _WORDS as WORDS
from _machine import describe
from confluent_kafka import Producer
from treadle_schemas import Metric, WorkspaceSettings
from treadle_schemas.codec import INTERACTION, OUTCOME, encode, make_headers
from treadle_schemas.moments import now
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.broker import LocalBroker
from treadle_trainer.cycle import STAGES, Turn, read_turns
from treadle_trainer.policy import GatePolicy, TrainingPolicy
from treadle_trainer.registry import Outbox, Registry

WORKSPACE: Final = "overhead"
PARTITIONS: Final = 4
ROWS_A_TASK: Final = 20
MAX_LENGTH: Final = 1024
STEPS: Final = 20
_SAMPLE_S: Final = 0.2
_DEADLINE_S: Final = 3_600.0


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 rows")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = options.rows or (2_000 if options.quick else 100_000)
    machine = describe("torch", "transformers", "trl", "confluent-kafka")
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch, Wheel(Path(scratch), rows) as wheel:
        results = wheel.turn()
    text = json.dumps({"machine": machine, "results": results}, indent=1) + "\n"
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text)
    print(text)


def conversation(number: int, rows: int) -> tuple[str, list[dict[str, Any]]]:
    """Task and messages of one row, of about 3 KB."""
    chance = random.Random(number)
    task = number % max(1, rows // ROWS_A_TASK)
    said = [("system", 40), ("user", 150), ("assistant", 160), ("user", 60), ("assistant", 60)]
    messages = [{"role": role, "content": " ".join(chance.choices(WORDS, k=words))} for role, words in said]
    return f"task-{task}", messages


class Meter(threading.Thread):
    """Samples the CPU seconds of each process with all its descendants, also of those that ended."""

    def __init__(self, processes: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._samples: list[tuple[float, dict[str, float]]] = []
        self._ended = threading.Event()
        self._seen: dict[str, float] = {}

    def run(self) -> None:
        """Sample until `end`."""
        while not self._ended.wait(_SAMPLE_S):
            self._samples.append((time.time() * 1000, {name: self._used(name) for name in self._processes}))

    def end(self) -> None:
        """Stop sampling."""
        self._ended.set()
        self.join()

    def between(self, begin_ms: float, end_ms: float) -> dict[str, float]:
        """CPU seconds by process from one moment to the other."""
        before = [used for at, used in self._samples if at <= begin_ms] or [self._samples[0][1]]
        after = [used for at, used in self._samples if at <= end_ms] or [self._samples[0][1]]
        return {name: round(after[-1][name] - before[-1][name], 2) for name in self._processes}

    def _used(self, name: str) -> float:
        process = self._processes[name]
        total = 0.0
        try:
            for one in (process, *process.children(recursive=True)):
                times = one.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        except psutil.NoSuchProcess:
            total = 0.0  # one ended while they were counted: its parent has its time from the next sample on
        self._seen[name] = max(total, self._seen.get(name, 0.0))
        return self._seen[name]


class Agent(threading.Thread):
    """Follows the releases, and records an interaction with each new champion at once."""

    def __init__(self, servers: str, registry: Path) -> None:
        super().__init__(daemon=True)
        self._releases = treadle.Releases(WORKSPACE, bootstrap_servers=servers, registry=registry)
        self._recorder = treadle.Recorder(WORKSPACE, bootstrap_servers=servers, agent="bench", durable=False)
        self._ended = threading.Event()

    def run(self) -> None:
        """Play on until `end`."""
        played = None
        while not self._ended.is_set():
            for serving in self._releases.watch(0.5):
                name = serving.event.champion
                if name != played and name is not None and not name.endswith("/r0"):
                    messages = [{"role": "user", "content": "next"}, {"role": "assistant", "content": "done"}]
                    self._recorder.record(messages=messages, release=name)
                    self._recorder.flush(10)
                played = name

    def end(self) -> None:
        """Let go."""
        self._ended.set()
        self.join()
        self._recorder.close()


class Wheel:
    """Everything that runs. A context manager."""

    def __init__(self, folder: Path, rows: int) -> None:
        self._folder, self._rows = folder, rows
        self._home = folder / "home"
        self._corpus = self._home / "corpora" / WORKSPACE / "main"
        self._broker = LocalBroker(folder / "broker", die_with_parent=True, heap="512m")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Wheel:
        self._broker.start()
        self._servers = self._broker.bootstrap
        metric = Metric(name="reward", required=True, low=0.0, high=1.0)
        settings = WorkspaceSettings(workspace=WORKSPACE, partitions=PARTITIONS, metrics=(metric,)).checked()
        workspaces.create(self._servers, settings, home=self._home)
        self._register(Registry(self._home / "registry", WORKSPACE))
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(60)
        self._broker.stop()

    def turn(self) -> dict[str, Any]:
        """The turn, and what each stage of it took."""
        state = self._broker.state()
        assert state is not None
        meter = Meter({"broker": state.pid} | {name: process.pid for name, process in self._processes.items()})
        agent = Agent(self._servers, self._home / "registry")
        meter.start()
        agent.start()
        try:
            sent_s = self._send()
            print(f"{self._rows} rows sent in {sent_s:.1f} s", flush=True)
            turn = self._awaited()
        finally:
            agent.end()
            meter.end()
        bounds, at = {}, float(turn.began_ms)
        for stage in STAGES:
            bounds[stage] = (at, at + turn.seconds.get(stage, 0.0) * 1000)
            at = bounds[stage][1]
        assert turn.overhead_s is not None
        return {
            "rows": self._rows,
            "sent_s": round(sent_s, 1),
            "decision": turn.decision,
            "version_rows": turn.rows,
            "cycle_s": turn.cycle_s,
            "overhead_s": round(turn.overhead_s, 2),
            "beside_training_s": round(turn.overhead_s + turn.seconds["evaluate"], 2),
            "seconds": {stage: round(seconds, 2) for stage, seconds in turn.seconds.items()},
            "cpu_s": {stage: meter.between(*bound) for stage, bound in bounds.items()},
            "capture_cpu_s": meter.between(0, turn.began_ms),
        }

    def _register(self, registry: Registry) -> None:
        from treadle_demo.model import build_model, save, train_tokenizer
        from treadle_demo.profiles import Shape

        shape = Shape(positions=MAX_LENGTH)
        tokenizer = train_tokenizer([conversation(n, self._rows)[1] for n in range(200)], shape)
        save(build_model(tokenizer, 0, shape), tokenizer, self._folder / "base")
        first = registry.register(self._folder / "base", actor="benchmark", reason="random weights")
        registry.promote(first, expect=None, actor="benchmark", reason="what runs today")
        Outbox(registry, self._servers).publish()
        TrainingPolicy(
            steps=STEPS,
            batch=8,
            max_length=MAX_LENGTH,
            rows="all",
            allow_offline_promotion=True,
            gate=GatePolicy(min_tasks=5),
        ).checked().save(self._home / "registry", WORKSPACE, "main")

    def _start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")}
        environment |= {
            "TREADLE_HOME": str(self._home),
            "TREADLE_BOOTSTRAP_SERVERS": self._servers,
            "TREADLE_WORKSPACE": WORKSPACE,
            "OMP_WAIT_POLICY": "PASSIVE",
            "HF_HUB_OFFLINE": "1",
        }
        every = ["--workspace", WORKSPACE]
        snapshots = ["--to", str(self._corpus), "--min-new-rows", str(self._rows), "--every", "1h"]
        for name, arguments in {
            "worker": every,
            "snapshotter": [*every, *snapshots],
            "trainer": every,
            "guard": every,
        }.items():
            log = (self._home / f"{name}.log").open("wb")
            command = [sys.executable, "-m", "treadle", name, *arguments]
            self._processes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def _send(self) -> float:
        settings = {"bootstrap.servers": self._servers, "linger.ms": 20, "batch.size": 1 << 20}
        producer = Producer(
            {**settings, "enable.idempotence": True, "partitioner": "murmur2_random", "compression.type": "lz4"}
        )
        began = time.monotonic()
        for name, kind, key, value in self._events():
            headers = list(make_headers(kind, WORKSPACE, source="bench"))
            while True:
                try:
                    producer.produce(topic(WORKSPACE, name), value, key.encode(), headers=headers)
                    break
                except BufferError:
                    producer.poll(0.05)
            producer.poll(0)
        producer.flush()
        return time.monotonic() - began

    def _events(self) -> Iterator[tuple[str, str, str, bytes]]:
        for number in range(self._rows):
            ident, at = f"row-{number:09d}", now()
            task, messages = conversation(number, self._rows)
            interaction = {
                "interaction_id": ident,
                "task_id": task,
                "messages": messages,
                "response": [2, 4],
                "agent": "bench",
                "release": f"{WORKSPACE}/main/r0",
                "started_at": at,
                "ended_at": at,
            }
            outcome = {
                "interaction_id": ident,
                "name": "reward",
                "value": (number % 8) / 7,
                "outcome_id": f"o-{ident}",
                "observed_at": at,
            }
            yield "interactions", INTERACTION, ident, encode(interaction)
            yield "outcomes", OUTCOME, ident, encode(outcome)

    def _awaited(self) -> Turn:
        """The turn, once its release has served."""
        deadline = time.monotonic() + _DEADLINE_S
        told = Registry(self._home / "registry", WORKSPACE)
        while time.monotonic() < deadline:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise SystemExit(f"{name} ended: {(self._home / f'{name}.log').read_text()[-800:]}")
            time.sleep(1)
            decided = [event for event in told.events() if event.actor == "trainer" and event.event != "registered"]
            if decided and decided[-1].event != "promoted":
                raise SystemExit(f"the candidate was not promoted: {decided[-1].event}: {decided[-1].reason}")
            turns = read_turns(self._servers, WORKSPACE) if decided else []
            if turns and turns[-1].served_ms is not None:
                return turns[-1]
        raise SystemExit("the turn did not end")


if __name__ == "__main__":
    main()
