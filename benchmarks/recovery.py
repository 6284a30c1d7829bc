"""How fast a join worker is back: without local state, with it, and as the standby of one that was killed.

    python benchmarks/recovery.py [--quick] [--full] [--rows N] --json FILE

One real broker, one workspace of one partition, N interactions of about 3 KB with their outcomes (200,000; with --quick 20,000, with --full
1,000,000). A worker joins all of them and ends. Then, each time in a new process:

- `wiped`: the local state is gone and comes from the changelog. `rows_s` is rows by the seconds that the worker says it took.
- `kept`: the local state is there, and the changelog holds nothing more. It is also what a start costs without replay: `cpu_us` of
  `wiped` is the CPU time beyond that of `kept`, by row. With few rows that is lost in the noise of two starts, and null.
- `standby`: a second worker has filled a copy; the owner is killed with SIGKILL. `took_over_s` is what the survivor says, from its
  assignment on; `silent_s` the time from the kill until it says so, most of which is the session of the one that died.

A row has several records in the changelog until the broker compacts it: `records` is how many of them were read.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

from _join_data import load, schedule
from _machine import describe
from treadle_schemas import WorkspaceSettings
from treadle_streams import workspaces
from treadle_streams.broker import LocalBroker
from treadle_streams.worker import status_path

WORKSPACE: Final = "bench"
_TOOK_OVER: Final = re.compile(r"took over partitions \[0\] in ([0-9.]+) s, ([0-9]+) records replayed")
_DEADLINE_S: Final = 1_800.0
_TELLING_ROWS: Final = 100_000


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 rows, one round")
    parser.add_argument("--full", action="store_true", help="1,000,000 rows")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    rows = options.rows or (20_000 if options.quick else 1_000_000 if options.full else 200_000)
    machine = describe("faust-streaming", "confluent-kafka", "rocksdict")
    with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
        bench = Bench(Path(folder))
        try:
            bench.fill(rows)
            samples = [bench.round(rows) for _ in range(1 if options.quick else 3)]
            standby = bench.standby()
        finally:
            bench.close()
    results = {
        "rows": rows,
        "rows_s": median(sample["rows_s"] for sample in samples),
        "cpu_us": median(sample["cpu_us"] for sample in samples) if rows >= _TELLING_ROWS else None,
        "samples": samples,
        "standby": standby,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


class Worker:
    """A process, what it says, and what it used."""

    def __init__(self, servers: str, home: Path, *arguments: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")}
        environment |= {"TREADLE_HOME": str(home), "TREADLE_BOOTSTRAP_SERVERS": servers}
        home.mkdir(parents=True, exist_ok=True)
        self._log = home / f"log-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "treadle_streams.worker", "--workspace", WORKSPACE, "--verbose", *arguments]
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    def took_over(self) -> tuple[float, int] | None:
        """Seconds and records of the last take-over of the partition."""
        found = _TOOK_OVER.findall(self._log.read_text(errors="replace"))
        return (float(found[-1][0]), int(found[-1][1])) if found else None

    def until_taken_over(self) -> tuple[float, int]:
        """Wait for it."""
        deadline = time.monotonic() + _DEADLINE_S
        while (found := self.took_over()) is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"no take-over: {self._log.read_text(errors='replace')[-800:]}")
            time.sleep(0.01)
        return found

    def ended(self) -> float:
        """CPU seconds of the process, which has to end well."""
        _, status, used = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode:
            raise SystemExit(f"the worker ended with {self.process.returncode}: {self._log.read_text()[-800:]}")
        return used.ru_utime + used.ru_stime


class Bench:
    """The broker and the homes of two workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._broker = LocalBroker(folder / "broker", die_with_parent=True, heap="512m")
        self._broker.start()
        self._servers = self._broker.bootstrap
        self._workers: list[Worker] = []
        workspaces.create(self._servers, WorkspaceSettings(workspace=WORKSPACE, partitions=1), home=folder)

    def fill(self, rows: int) -> None:
        """Send the events and join them."""
        steps = schedule(0, rows)
        took_s = load(self._servers, WORKSPACE, steps, None)
        print(f"{len(steps)} events sent in {took_s:.0f} s", flush=True)
        began = time.monotonic()
        used_s = self._worker("a", "--once-caught-up").ended()
        print(
            f"joined in {time.monotonic() - began:.0f} s, {used_s / len(steps) * 1e6:.1f} us CPU an event", flush=True
        )

    def round(self, rows: int) -> dict[str, Any]:
        """Both starts, the one without local state first."""
        shutil.rmtree(self._folder / "a" / "state")
        wiped = self._worker("a", "--once-caught-up")
        wiped_cpu_s = wiped.ended()
        kept = self._worker("a", "--once-caught-up")
        kept_cpu_s = kept.ended()
        (wiped_s, records), (kept_s, left) = wiped.until_taken_over(), kept.until_taken_over()
        found = {
            "rows_s": round(rows / wiped_s),
            "records_s": round(records / wiped_s),
            "cpu_us": round((wiped_cpu_s - kept_cpu_s) / rows * 1e6, 2) if rows >= _TELLING_ROWS else None,
            "seconds": wiped_s,
            "records": records,
            "kept_s": kept_s,
            "kept_records": left,
        }
        print(json.dumps(found), flush=True)
        return found

    def standby(self) -> dict[str, Any]:
        """A copy is filled, its owner is killed."""
        owner = self._worker("a", "--standby", "1")
        owner.until_taken_over()
        other = self._worker("b", "--standby", "1")
        status = status_path(self._folder / "b", WORKSPACE)
        began = time.monotonic()
        while not _level(status):
            if other.process.poll() is not None or time.monotonic() - began > _DEADLINE_S:
                raise SystemExit("the standby did not get level")
            time.sleep(0.1)
        filled_s = time.monotonic() - began
        killed = time.monotonic()
        owner.process.send_signal(signal.SIGKILL)
        took_s, records = other.until_taken_over()
        found = {
            "filled_s": round(filled_s, 1),
            "took_over_s": took_s,
            "records": records,
            "silent_s": round(time.monotonic() - killed, 2),
        }
        print(json.dumps(found), flush=True)
        return found

    def close(self) -> None:
        """End what runs."""
        for worker in self._workers:
            if worker.process.returncode is None:
                worker.process.kill()
                worker.process.wait()
        self._broker.stop()

    def _worker(self, home: str, *arguments: str) -> Worker:
        self._workers.append(Worker(self._servers, self._folder / home, *arguments))
        return self._workers[-1]


def _level(status: Path) -> bool:
    """Whether a worker's status says that its copy of the partition has all there is."""
    try:
        found = json.loads(status.read_text()).get("standbys", {}).get("0")
    except FileNotFoundError:
        return False
    return found is not None and found["level"]


if __name__ == "__main__":
    main()
