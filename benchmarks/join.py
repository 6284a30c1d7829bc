"""What joining an interaction with its outcome costs: treadle's worker beside the stream processors that do the same.

    python benchmarks/join.py [--quick] [--only NAME,...] --json FILE

One real broker, the same events for all, engines in turn within each round and at each rate. Before each measurement the engine joins a
warm-up, so that a JVM has compiled what it needs. `cpu_us` is CPU time of all of an engine's processes per event, from the first event
until the last row; lag is from the append of the event that made a row possible to the append of the row (`.progress` for treadle, the
output topic for the others), both by the broker's clock. `wrong_rows` are joined rows that are missing or say something else than the
two events at the end, `duplicate_rows` those that a reader of committed records saw more than once.

The headline `cpu_us` is at 15,000 events a second, the lag at 5,000; `rates` has the rest. The floor reads the same events, writes as many
bytes and joins nothing. `treadle_two`, two workers, runs where `--only` names it.

Exit code 1 when a peer is missing (without --quick), an engine failed, or treadle had a wrong or duplicate row.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from _join_data import Bodies, expected, ident, load, reward, schedule
from _join_engines import ENGINES, HERE, Missing, Run, row_of
from _machine import describe

RATES = (1_000, 5_000, 15_000)
CPU_RATE, LAG_RATE = 15_000, 5_000
PARTITIONS = 8
WARM_UP = 12_000
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--only", help="engines, by name and comma")
    parser.add_argument("--rates", help="events a second, by comma")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [name for name in ENGINES if name != "treadle_two"]
    rates = tuple(int(rate) for rate in options.rates.split(",")) if options.rates else RATES
    failures: list[str] = []
    versions: dict[str, str] = {}
    for name in list(names):
        try:
            versions[name] = ENGINES[name].install()
        except Missing as err:
            print(f"{name}: missing: {err}", file=sys.stderr)
            names.remove(name)
            if not options.quick:
                failures.append(f"{name}: missing")
    rounds, seconds = (1, 6.0) if options.quick else (3, 12.0)
    samples: dict[str, dict[int, list[dict[str, Any]]]] = {name: {rate: [] for rate in rates} for name in names}
    machine = describe("faust-streaming", "confluent-kafka", "rocksdict")
    with tempfile.TemporaryDirectory(prefix="join-") as home:
        bench = Bench(Path(home))
        try:
            for number in range(rounds):
                for rate in rates:
                    for name in names:
                        try:
                            found = bench.measure(name, rate, seconds)
                        except EngineFailed as err:
                            failures.append(f"{name} at {rate}: {err}")
                            print(failures[-1], file=sys.stderr, flush=True)
                            continue
                        samples[name][rate].append(found)
                        print(f"round {number + 1} {rate:6}/s {name:18} {json.dumps(found)}", flush=True)
        finally:
            bench.broker.stop()
    results = {name: _summary(of_rate, versions[name]) for name, of_rate in samples.items()}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": machine, "results": results, "failures": failures}, indent=1) + "\n")
    bad = results.get("treadle", {})
    if failures or bad.get("wrong_rows") or bad.get("duplicate_rows"):
        sys.exit(1)


class EngineFailed(Exception):
    """An engine ended, or never joined its warm-up."""


class Bench:
    """The broker, and one measurement after the other on it."""

    def __init__(self, home: Path) -> None:
        from treadle.log import Admin
        from treadle_streams.broker import LocalBroker

        self._home = home
        self._number = count(1)
        self.broker = LocalBroker(home / "broker", die_with_parent=True, heap="512m")
        self.broker.start()
        self._admin = Admin(self.broker.bootstrap)
        self._bodies = Bodies()

    def measure(self, name: str, rate: int, seconds: float) -> dict[str, Any]:
        """One engine at one rate."""
        from treadle_schemas import WorkspaceSettings
        from treadle_streams import workspaces

        engine, number = ENGINES[name], next(self._number)
        run = Run(
            servers=self.broker.bootstrap,
            workspace=f"bench-{number}",
            name=f"bench-{number}-{name}",
            folder=self._home / f"run-{number}",
            partitions=PARTITIONS,
            out=f"treadle.bench-{number}.graded" if name.startswith("treadle") else f"bench-{number}-out",
            changelog=f"bench-{number}-{name}-changelog",
        )
        run.folder.mkdir()
        workspaces.create(
            run.servers, WorkspaceSettings(workspace=run.workspace, partitions=PARTITIONS), home=run.folder
        )
        appended = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(16 << 20)}
        wanted = {} if name.startswith("treadle") else {run.out: appended}
        wanted |= {run.name + suffix: {"cleanup.policy": "compact"} for suffix in engine.own_topics}
        for topic, config in wanted.items():
            self._admin.create(topic, PARTITIONS, config)
        self._admin.wait_usable(dict.fromkeys(wanted, PARTITIONS))
        log = run.folder / "log"
        command, environment = engine.command(run)
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        try:
            return self._drive(name, run, process, rate, seconds)
        except EngineFailed as err:
            raise EngineFailed(f"{err}: {log.read_text(errors='replace')[-400:]}") from None
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            workspaces.delete(run.servers, run.workspace)
            self._admin.delete([topic for topic in self._admin.partitions() if topic.startswith(f"bench-{number}-")])
            shutil.rmtree(run.folder, ignore_errors=True)

    def _drive(
        self, name: str, run: Run, process: subprocess.Popen[bytes], rate: int, seconds: float
    ) -> dict[str, Any]:
        joins = ENGINES[name].joins
        reader = Reader(run, joins)
        warm = schedule(0, WARM_UP)
        load(run.servers, run.workspace, warm, None)
        reader.until({ident(n) for n in (expected(warm) if joins else range(WARM_UP))}, process, 150)
        per_interaction = len(schedule(0, 10_000)) / 10_000
        first, size = 10**9, int(rate * seconds / per_interaction)
        steps = schedule(first, size)
        job = {"servers": run.servers, "workspace": run.workspace, "first": first, "count": size, "rate": rate}
        began, before_s = time.monotonic(), cpu_s(process.pid)
        loader = subprocess.Popen(
            [sys.executable, str(HERE / "_join_data.py"), json.dumps(job)], stdout=subprocess.PIPE, text=True
        )
        joined = set(expected(steps))
        complete = reader.until(
            {ident(n) for n in (joined if joins else range(first, first + size))}, process, seconds + 60
        )
        used_s, took_s = cpu_s(process.pid) - before_s, time.monotonic() - began
        loaded = json.loads(loader.communicate()[0])
        found: dict[str, Any] = {
            "cpu_us": round(used_s / len(steps) * 1e6, 1),
            "events": len(steps),
            "sent_per_s": round(len(steps) / loaded["seconds"]),
            "seconds": round(took_s, 1),
            "memory_mb": memory_mb(process.pid),
        }
        if joins:
            reader.rest()
            found |= self._checked(name, run, reader, joined, complete)
        reader.close()
        return found

    def _checked(self, name: str, run: Run, reader: Reader, joined: set[int], complete: bool) -> dict[str, Any]:
        rows: dict[bytes, list[tuple[int, bytes]]] = {}
        for key, at_ms, value in reader.records:
            rows.setdefault(key, []).append((at_ms, value))
        wrong = duplicates = 0
        out_ms: dict[bytes, int] = {}
        for number in joined:
            key = ident(number).encode()
            said = [(at, row) for at, value in rows.get(key, []) if (row := row_of(name, value)) is not None]
            right = said and said[-1][1] == (self._bodies.interaction(number), reward(number))
            wrong += not right
            duplicates += max(0, len(said) - 1)
            if said:
                out_ms[key] = said[0][0]
        strangers = rows.keys() - {ident(n).encode() for n in joined} - {ident(n).encode() for n in range(WARM_UP)}
        wrong += sum(
            any(row_of(name, value) for _, value in rows[key]) for key in strangers if not key.startswith(b"ix1000")
        )
        if name.startswith("treadle"):
            out_ms = _progress_ms(run)
        caused_ms: dict[bytes, int] = {}
        for kind in ("interactions", "outcomes"):
            first_ms: dict[bytes, int] = {}
            for key, at_ms, _ in Reader(run, False, topic=f"treadle.{run.workspace}.{kind}").all():
                first_ms.setdefault(key, at_ms)
            for key, at_ms in first_ms.items():
                caused_ms[key] = max(caused_ms.get(key, 0), at_ms)
        # the first tenth finds an engine that has just come out of its warm-up
        order = sorted(joined)[len(joined) // 10 :]
        lags = sorted(out_ms[k] - caused_ms[k] for n in order if (k := ident(n).encode()) in out_ms)
        return {
            "lag_p50_ms": lags[len(lags) // 2] if lags else None,
            "lag_p99_ms": lags[len(lags) * 99 // 100] if lags else None,
            "wrong_rows": wrong,
            "duplicate_rows": duplicates,
            "complete": complete,
        }


class Reader:
    """Reads a topic's committed records as they come. Keeps key, append time and value."""

    def __init__(self, run: Run, values: bool = True, *, topic: str | None = None) -> None:
        from confluent_kafka import Consumer, TopicPartition

        self._topic = topic or run.out
        self.records: list[tuple[bytes, int, bytes]] = []
        self._values = values
        self._consumer = Consumer(
            {
                "bootstrap.servers": run.servers,
                "group.id": "bench",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.message.max.bytes": 4 << 20,
            }
        )
        self._consumer.assign([TopicPartition(self._topic, p, 0) for p in range(run.partitions)])
        self._ended: set[int] = set()

    def _read(self, wait_s: float) -> list[bytes]:
        keys = []
        for message in self._consumer.consume(5000, wait_s):
            if message.error():
                self._ended.add(message.partition() or 0)
                continue
            key = message.key()
            if key is None or header(message, "ce_type").startswith(b"dev.treadle.part"):
                continue
            self._ended.discard(message.partition() or 0)
            keys.append(key)
            self.records.append((key, message.timestamp()[1], (message.value() or b"") if self._values else b""))
        return keys

    def until(self, wanted: set[str], process: subprocess.Popen[bytes], timeout_s: float) -> bool:
        """Read until each key was seen; False when that does not happen.

        Raises EngineFailed when the process ends, or nothing comes at all.
        """
        left = {text.encode() for text in wanted}
        deadline = time.monotonic() + timeout_s
        while left and time.monotonic() < deadline:
            if process.poll() is not None:
                raise EngineFailed(f"it ended with {process.returncode}")
            left.difference_update(self._read(0.05))
        if len(left) == len(wanted):
            raise EngineFailed(f"no row within {timeout_s:g} s")
        return not left

    def rest(self) -> None:
        """Read what is still to come: duplicates, mostly."""
        quiet = time.monotonic() + 2
        while time.monotonic() < quiet:
            if self._read(0.2):
                quiet = time.monotonic() + 2

    def all(self) -> list[tuple[bytes, int, bytes]]:
        """Everything up to the present ends."""
        while len(self._ended) < PARTITIONS:
            self._read(0.5)
        self.close()
        return self.records

    def close(self) -> None:
        """Let go of the connection."""
        self._consumer.close()


def header(message: Any, name: str) -> bytes:
    """A header of a record, empty where it is absent."""
    return next((value for key, value in message.headers() or () if key == name), b"")


def _progress_ms(run: Run) -> dict[bytes, int]:
    """When `.progress` first said that a row's reward is observed."""
    found: dict[bytes, int] = {}
    for key, at_ms, value in Reader(run, topic=f"treadle.{run.workspace}.progress").all():
        if b'"settled":true' in value:
            found.setdefault(key, at_ms)
    return found


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(below for child in children for below in _tree(int(child)))]


def cpu_s(pid: int) -> float:
    """CPU seconds that a process and its children have used."""
    total = 0
    for each in _tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def memory_mb(pid: int) -> int:
    """Resident memory of a process and its children."""
    total = 0
    for each in _tree(pid):
        for line in Path(f"/proc/{each}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                total += int(line.split()[1])
    return total // 1024


def _summary(of_rate: dict[int, list[dict[str, Any]]], version: str) -> dict[str, Any]:
    def middle(rate: int, name: str) -> float | None:
        values = [sample[name] for sample in of_rate.get(rate, []) if sample.get(name) is not None]
        return median(values) if values else None

    every = [sample for samples in of_rate.values() for sample in samples]
    return {
        "version": version,
        "cpu_us": middle(CPU_RATE, "cpu_us"),
        "lag_p50_ms": middle(LAG_RATE, "lag_p50_ms"),
        "lag_p99_ms": middle(LAG_RATE, "lag_p99_ms"),
        "wrong_rows": sum(sample.get("wrong_rows", 0) for sample in every),
        "duplicate_rows": sum(sample.get("duplicate_rows", 0) for sample in every),
        "rates": {
            str(rate): {
                "cpu_us": middle(rate, "cpu_us"),
                "lag_p50_ms": middle(rate, "lag_p50_ms"),
                "lag_p99_ms": middle(rate, "lag_p99_ms"),
                "samples": samples,
            }
            for rate, samples in of_rate.items()
        },
    }


if __name__ == "__main__":
    main()
