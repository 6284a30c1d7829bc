"""Many small workspaces in one worker process on a local broker: memory and CPU when idle, lag at work, and beside one that floods.

python benchmarks/workspaces.py [--quick] [--json FILE] [--workspaces N]

1. N workspaces of one partition are made (200; with --quick 20), and one `treadle worker --small` is started.
2. idle: nothing happens for a minute; CPU and memory (PSS) of the worker and CPU of the broker.
3. sparse: every workspace gets an interaction and its outcome now and then, 20 events a second together; the lag of each settled row, from
   the append of the outcome that settled it to the append of the settled grade on .progress.
4. flood: the same, while one workspace gets as many events as it can take.

Worker memory is given after each phase. The broker runs on the same machine, as do this program's producers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from _machine import describe
from treadle.log import Sender, read
from treadle_schemas import Metric, WorkspaceSettings, codec
from treadle_schemas.moments import now
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.broker import LocalBroker
from treadle_streams.worker import status_path

SPARSE_EVENTS_S = 20
FLOOD_MESSAGE = "x" * 2_000
START_S = 300.0


class _Grade(msgspec.Struct):
    settled: bool = False


class _Progress(msgspec.Struct):
    grade: _Grade | None = None


class Workload:
    """Interactions with their outcomes, spread over workspaces."""

    def __init__(self, servers: str, names: list[str]) -> None:
        self.sender, self.names = Sender(servers), names
        self.numbers = iter(range(10**9))

    def row(self, name: str, content: str = "hi") -> None:
        """One interaction and the outcome that settles it."""
        key = f"i{next(self.numbers)}"
        interaction = {
            "interaction_id": key,
            "agent": "bot",
            "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "hello"}],
            "started_at": now(),
            "ended_at": now(),
        }
        outcome = {"interaction_id": key, "name": "reward", "value": 1.0, "outcome_id": "o", "observed_at": now()}
        for kind, event_type, data in (
            ("interactions", codec.INTERACTION, interaction),
            ("outcomes", codec.OUTCOME, outcome),
        ):
            headers = codec.make_headers(event_type, name, source="benchmark")
            self.sender.send(topic(name, kind), key.encode(), json.dumps(data).encode(), headers)

    def sparse(self, seconds: float) -> None:
        """Rows for one workspace after the other at a fixed rate."""
        names = self._in_turn()
        started, made = time.monotonic(), 0
        while (passed := time.monotonic() - started) < seconds:
            while made < passed * SPARSE_EVENTS_S / 2:
                self.row(next(names))
                made += 1
            self.sender.flush()
            time.sleep(0.02)

    def _in_turn(self) -> Iterator[str]:
        while True:
            yield from self.names


class Process:
    """CPU and memory of a process, from /proc."""

    def __init__(self, pid: int) -> None:
        self.folder = Path(f"/proc/{pid}")

    def cpu_s(self) -> float:
        fields = (self.folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def pss_mb(self) -> float:
        for line in (self.folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return round(int(line.split()[1]) / 1024, 1)
        return 0.0

    def threads(self) -> int:
        return len(list((self.folder / "task").iterdir()))

    def files(self) -> int:
        return len(list((self.folder / "fd").iterdir()))


class Bench:
    """The machine under test."""

    def __init__(self, folder: Path, count: int) -> None:
        self.home = folder / "home"
        self.names = [f"w-{number:03d}" for number in range(count)]
        self.broker = LocalBroker(folder / "broker", die_with_parent=True, session_timeout_ms=18_000)

    def create(self) -> None:
        """Make the workspaces."""
        self.broker.start()

        def one(name: str) -> None:
            metric = (Metric(name="reward", required=True),)
            workspaces.create(
                self.broker.bootstrap,
                WorkspaceSettings(workspace=name, partitions=1, metrics=metric),
                home=self.home,
            )

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(one, self.names))

    def start(self) -> tuple[subprocess.Popen[bytes], float]:
        """The worker, once it joins every workspace, and how long that took."""
        environment = os.environ | {"TREADLE_HOME": str(self.home), "TREADLE_BOOTSTRAP_SERVERS": self.broker.bootstrap}
        began = time.monotonic()
        worker = subprocess.Popen([sys.executable, "-m", "treadle_streams.worker", "--small"], env=environment)
        while (running := sum(self.state(name) == "running" for name in self.names)) < len(self.names):
            if worker.poll() is not None or time.monotonic() - began > START_S:
                raise SystemExit(f"{running} of {len(self.names)} run after {time.monotonic() - began:.0f} s")
            time.sleep(0.2)
        return worker, time.monotonic() - began

    def state(self, name: str) -> str:
        try:
            return str(json.loads(status_path(self.home, name).read_text())["state"])
        except (FileNotFoundError, KeyError):
            return ""

    def lags_ms(self, since_ms: int, leave_out: str = "") -> list[int]:
        """From the append of the outcome to the append of the settled row, for rows that settled since."""
        found = []
        for name in self.names:
            if name == leave_out:
                continue
            asked = {r.key: r.timestamp_ms for r in read(self.broker.bootstrap, topic(name, "outcomes"), 1)}
            for record in read(self.broker.bootstrap, topic(name, "progress"), 1):
                at = asked.get(record.key, 0)
                grade = msgspec.json.decode(record.value or b"{}", type=_Progress).grade
                if at >= since_ms and grade is not None and grade.settled:
                    found.append(record.timestamp_ms - at)
        return found


def _phase(bench: Bench, worker: Process, broker: Process, seconds: float, action: Any) -> dict[str, Any]:
    since_ms = int(time.time() * 1000)
    before, before_broker, began = worker.cpu_s(), broker.cpu_s(), time.monotonic()
    action(seconds)
    took = time.monotonic() - began
    return {
        "seconds": round(took, 1),
        "worker_cores": round((worker.cpu_s() - before) / took, 4),
        "broker_cores": round((broker.cpu_s() - before_broker) / took, 4),
        "worker_pss_mb": worker.pss_mb(),
        "pss_mb_per_workspace": round(worker.pss_mb() / len(bench.names), 3),
        "threads": worker.threads(),
        "open_files": worker.files(),
        "since_ms": since_ms,
    }


def _lags(samples: list[int]) -> dict[str, Any]:
    samples = sorted(samples)
    if not samples:
        return {"rows": 0}
    return {
        "rows": len(samples),
        "lag_p50_ms": round(statistics.median(samples)),
        "lag_p99_ms": samples[min(len(samples) - 1, int(len(samples) * 0.99))],
        "lag_max_ms": samples[-1],
        "lags_ms": samples,
    }


def _flooded(bench: Bench, load: Workload, seconds: float) -> int:
    """The sparse load beside one workspace that gets all that it can take; the rows it was sent."""
    target, quit_, sent = bench.names[0], threading.Event(), 0
    flood = Workload(bench.broker.bootstrap, [target])

    def pour() -> None:
        nonlocal sent
        while not quit_.is_set():
            flood.row(target, FLOOD_MESSAGE)
            sent += 1
            flood.sender.wait_below(5_000)

    thread = threading.Thread(target=pour)
    thread.start()
    try:
        load.sparse(seconds)
    finally:
        quit_.set()
        thread.join()
        flood.sender.flush(60)
    return sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 workspaces, short phases")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--workspaces", type=int)
    options = parser.parse_args()
    count = options.workspaces or (20 if options.quick else 200)
    seconds = 10.0 if options.quick else 60.0
    results: dict[str, Any] = {"workspaces": count}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), count)
        began = time.monotonic()
        bench.create()
        results["create_s"] = round(time.monotonic() - began, 1)
        process, start_s = bench.start()
        try:
            worker, state = Process(process.pid), bench.broker.state()
            assert state is not None
            broker = Process(state.pid)
            results["start_s"] = round(start_s, 1)
            results["start_cpu_s"] = round(worker.cpu_s(), 1)
            time.sleep(10)  # what the start left over: garbage, first elections
            results["idle"] = _phase(bench, worker, broker, seconds, time.sleep)
            load = Workload(bench.broker.bootstrap, bench.names[1:])
            sparse = results["sparse"] = _phase(bench, worker, broker, seconds, load.sparse)
            sent = 0

            def flooded(seconds: float) -> None:
                nonlocal sent
                sent = _flooded(bench, load, seconds)

            flood = results["flood"] = _phase(bench, worker, broker, seconds, flooded)
            flood["flood_rows"] = sent
            time.sleep(5)
            everything = bench.lags_ms(sparse["since_ms"], bench.names[0])
            late = bench.lags_ms(flood["since_ms"], bench.names[0])
            sparse |= _lags(_without(everything, late))
            flood |= _lags(late)
        finally:
            process.terminate()
            process.wait(60)
            bench.broker.stop()
    results["machine"] = describe("treadle", "faust-streaming", "aiokafka", "confluent-kafka", "rocksdict")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(_shown(results), indent=1))


def _without(everything: list[int], some: list[int]) -> list[int]:
    left = sorted(everything)
    for value in some:
        left.remove(value)
    return left


def _shown(results: dict[str, Any]) -> dict[str, Any]:
    return {
        key: {k: v for k, v in value.items() if k != "lags_ms"} if isinstance(value, dict) else value
        for key, value in results.items()
    }


if __name__ == "__main__":
    main()
