"""What recording a model call costs the agent, and how much of it arrives: treadle beside the libraries that do the same.

    python benchmarks/capture.py [--quick] [--only NAME,...] --json FILE

Each measurement is a process of its own, and the libraries take turns within each round, so that a busy machine is busy for all of them.
Times are those of the caller: p50 and p99 of paced calls, medians over the rounds. `cpu_us` is the CPU time of the whole process an event
while it records as fast as it can and until everything has left; `caller_cpu_us` is the calling thread's share. Peers send to an HTTP
server on this machine, treadle to a real Kafka on it. orjson is the floor: it encodes the event and keeps nothing.

Exit code 1 when a library is missing (without --quick), a process failed, or treadle lost an event.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from _capture_peers import NAMES, PACKAGES
from _capture_sinks import HttpSink, free_port, hanging, slowed
from _capture_texts import origin
from _machine import describe

HERE = Path(__file__).parent
HEADLINE = "3kb/up"
SCENARIOS: dict[str, dict[str, Any]] = {
    "3kb/up": {"size": 3, "rate": 500, "paced": 2000, "saturated": 2000},
    "30kb/up": {"size": 30, "rate": 200, "paced": 600, "saturated": 500},
    "300kb/up": {"size": 300, "rate": 50, "paced": 200, "saturated": 100},
    "episode/up": {"size": "episode", "rate": 100, "paced": 300, "saturated": 200},
    "3kb/slow": {"size": 3, "rate": 500, "paced": 2000, "saturated": 2000},
    "3kb/hanging": {"size": 3, "rate": 500, "paced": 2000, "saturated": 2000},
    "3kb/down": {"size": 3, "rate": 500, "paced": 2000, "saturated": 2000},
}
BURST = 10_000
OUTAGE_RATE = 333.0
OUTAGE = 10_000
"""30 s at that rate."""


class Bench:
    """The broker and the children of one run."""

    def __init__(self, home: Path, names: list[str]) -> None:
        from treadle_streams.broker import LocalBroker

        self.names = names
        self.failures: list[str] = []
        self._home = home
        self._number = count()
        self.broker = LocalBroker(home / "broker", die_with_parent=True, session_timeout_ms=1500)
        self.broker.start()

    def workspace(self, name: str, purpose: str) -> str:
        """A workspace for a treadle variant with its policy; this machine's recorders know it at once."""
        from treadle_schemas import WorkspaceSettings
        from treadle_schemas.pii import BUILT_IN
        from treadle_streams import workspaces

        if not name.startswith("treadle"):
            return "none"
        policy = BUILT_IN["secrets" if name == "treadle_secrets" else "off"]
        settings = WorkspaceSettings(
            workspace=f"{purpose}-{name.replace('_', '-')}", partitions=1, pii=policy, grace_s=0
        )
        workspaces.create(self.broker.bootstrap, settings, if_missing=True, home=self._home / "home")
        return settings.workspace

    def arrived(self, workspace: str) -> int:
        """How many different events of burst or outage are on the workspace's topic."""
        from treadle.log import read
        from treadle_schemas.codec import header_map
        from treadle_schemas.topics import topic

        records = read(self.broker.bootstrap, topic(workspace, "interactions"), 1, timeout_s=60)
        ids = {header_map(record.headers)["ce_id"] for record in records}
        return sum(found.startswith(b"EVT-") for found in ids)

    def start(self, job: dict[str, Any]) -> subprocess.Popen[str]:
        """A child with a spool of its own."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TREADLE_", "OTEL_", "LANGSMITH_", "LANGCHAIN_", "LANGFUSE_", "LOGFIRE_"))
        }
        spool = self._home / f"spool-{next(self._number)}"
        environ = {**kept, "TREADLE_HOME": str(self._home / "home"), "TREADLE_SPOOL": str(spool)}
        return subprocess.Popen(
            [sys.executable, str(HERE / "_capture_child.py"), json.dumps(job)],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, child: subprocess.Popen[str], what: str, timeout_s: float = 180) -> dict[str, Any] | None:
        """The child's result; a failure is noted and told."""
        try:
            out, err = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
        for folder in self._home.glob("spool-*"):
            shutil.rmtree(folder, ignore_errors=True)
        if child.returncode != 0 or not out.strip():
            last = (err.strip().splitlines() or ["no output"])[-1]
            self.failures.append(f"{what}: exit code {child.returncode}: {last}")
            print(self.failures[-1], file=sys.stderr, flush=True)
            return None
        found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return found

    @contextlib.contextmanager
    def sink(self, name: str, state: str) -> Iterator[str]:
        """An address in that state of the protocol that `name` speaks."""
        kafka = name.startswith("treadle")
        if name == "orjson":
            yield ""
        elif state == "down":
            yield f"127.0.0.1:{free_port()}" if kafka else f"http://127.0.0.1:{free_port()}"
        elif state == "hanging":
            with hanging() as port:
                yield f"127.0.0.1:{port}" if kafka else f"http://127.0.0.1:{port}"
        elif kafka:
            running = self.broker.state()
            assert running is not None
            with slowed(running.pid) if state == "slow" else contextlib.nullcontext():
                yield self.broker.bootstrap
        else:
            server = HttpSink(state)
            try:
                yield server.address
            finally:
                server.stop()

    def latency(self, name: str, scenario: str) -> dict[str, Any] | None:
        """One round of one scenario."""
        spec = SCENARIOS[scenario]
        state = scenario.split("/")[1]
        workspace = self.workspace(name, "latency")
        with self.sink(name, state) as address:
            job = {"task": "latency", "name": name, "address": address, "workspace": workspace, **spec}
            return self.finish(self.start({**job, "reachable": state == "up"}), f"{scenario} {name}")

    def burst(self, name: str) -> dict[str, Any] | None:
        """10,000 events at once; how many arrive."""
        workspace = self.workspace(name, "burst")
        server = None if name.startswith("treadle") else HttpSink()
        try:
            address = self.broker.bootstrap if server is None else server.address
            job = {"task": "burst", "name": name, "address": address, "workspace": workspace}
            made = self.finish(self.start({**job, "size": 3, "count": BURST}), f"burst {name}")
            if made is None:
                return None
            got = self.arrived(workspace) if server is None else server.unique()
            return {"recorded": BURST, "arrived": got, **made}
        finally:
            if server is not None:
                server.stop()

    def outage(self) -> dict[str, dict[str, Any]]:
        """All at once: 10,000 events each in 30 s in which no sink is there, after a good start. How many arrive in the end."""
        names = [name for name in self.names if name != "orjson"]
        workspaces = {name: self.workspace(name, "outage") for name in names}
        sinks = {name: HttpSink() for name in names if not name.startswith("treadle")}
        children = {}
        for name in names:
            address = sinks[name].address if name in sinks else self.broker.bootstrap
            job = {"task": "outage", "name": name, "address": address, "workspace": workspaces[name], "size": 3}
            children[name] = self.start({**job, "count": OUTAGE, "rate": OUTAGE_RATE})
        for child in children.values():
            _wait(child, "ready")
        for server in sinks.values():
            server.stop()
        self.broker.kill()
        for child in children.values():
            _go(child)
        for child in children.values():
            _wait(child, "recorded")
        again = {name: HttpSink(port=server.port) for name, server in sinks.items()}
        self.broker.start()
        for child in children.values():
            _go(child)
        results = {}
        for name, child in children.items():
            made = self.finish(child, f"outage {name}")
            if made is not None:
                took = sorted(made.pop("took_us"))
                got = again[name].unique() if name in again else self.arrived(workspaces[name])
                results[name] = {"recorded": OUTAGE, "arrived": got, **_quantiles(took), **made}
        for server in again.values():
            server.stop()
        return results

    def footprint(self, rounds: int) -> dict[str, Any]:
        """Import time and memory of treadle, medians."""
        workspace = self.workspace("treadle", "footprint")
        job = {"task": "footprint", "address": self.broker.bootstrap, "workspace": workspace, "count": BURST}
        made = [found for _ in range(rounds) if (found := self.finish(self.start(job), "footprint"))]
        if not made:
            return {}
        names = ("import_ms", "import_rss_mb", "rss_added_mb")
        return {name: median(m[name] for m in made) for name in names} | {"rounds": made}


def _wait(child: subprocess.Popen[str], word: str) -> None:
    assert child.stdout is not None
    line = child.stdout.readline().strip()
    if line != word:
        print(f"a child said {line!r} instead of {word!r}", file=sys.stderr)


def _go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it failed; `finish` says how
        child.stdin.write("\n")
        child.stdin.flush()


def _quantiles(ordered: list[float]) -> dict[str, float]:
    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return {"p50_us": at(0.5), "p99_us": at(0.99), "max_us": ordered[-1]}


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds of one scenario, with the samples of each."""
    quantiles = [_quantiles(sorted(found["took_us"])) for found in rounds]
    return {
        "p50_us": round(median(q["p50_us"] for q in quantiles), 1),
        "p99_us": round(median(q["p99_us"] for q in quantiles), 1),
        "max_us": max(q["max_us"] for q in quantiles),
        "cpu_us": round(median(found["cpu_us"] for found in rounds), 2),
        "caller_cpu_us": round(median(found["caller_cpu_us"] for found in rounds), 2),
        "saturated_call_us": round(median(found["call_us"] for found in rounds), 2),
        "rss_mb": round(max(found["rss_mb"] for found in rounds), 1),
        "errors": {k: v for found in rounds for k, v in found["errors"].items()},
        "rounds": [
            {k: found[k] for k in ("cpu_us", "caller_cpu_us", "stats")} | {"samples_us": found["took_us"]}
            for found in rounds
        ],
    }


def targets(results: dict[str, Any], footprint: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What treadle is meant to reach, and what it reached in this run."""

    def of(name: str, scenario: str, what: str) -> float | None:
        found = results.get(name, {}).get("scenarios", {}).get(scenario)
        return None if found is None else float(found[what])

    floor = of("orjson", HEADLINE, "p50_us")
    own = of("treadle", HEADLINE, "p50_us")
    rows: list[tuple[str, float | None, float]] = [
        ("p50 as a multiple of orjson", round(own / floor, 2) if own and floor else None, 2.5),
        ("p99_us", of("treadle", HEADLINE, "p99_us"), 150.0),
        ("cpu_us", of("treadle", HEADLINE, "cpu_us"), 20.0),
        ("p99_us with secrets masked", of("treadle_secrets", HEADLINE, "p99_us"), 1000.0),
        ("p99_us at 300 KB", of("treadle", "300kb/up", "p99_us"), 2000.0),
        ("import_ms", footprint.get("import_ms"), 100.0),
        ("rss_added_mb", footprint.get("rss_added_mb"), 64.0),
    ]
    return {
        name: {"measured": found, "at_most": bound, "reached": found is not None and found <= bound}
        for name, found, bound in rows
    }


def compact(value: Any, indent: int = 0) -> str:
    """JSON with lists of numbers on one line."""
    pad = " " * (indent + 1)
    if isinstance(value, dict) and value:
        rows = [f"{pad}{json.dumps(k)}: {compact(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"
    if isinstance(value, list) and any(isinstance(x, dict | list) for x in value):
        return "[\n" + ",\n".join(pad + compact(x, indent + 1) for x in value) + "\n" + " " * indent + "]"
    return json.dumps(value, separators=(",", ":"))


def main() -> int:
    """Run everything, write the file, print a line for each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and events; a missing library is no failure")
    parser.add_argument("--only", help="names, comma-separated")
    parser.add_argument("--scenarios", help="scenarios, comma-separated; without burst, outage and footprint")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else list(NAMES)
    names = [name for name in wanted if all(map(_installed, PACKAGES[name]))]
    missing = sorted({p for name in wanted for p in PACKAGES[name] if not _installed(p)})
    scenarios = args.scenarios.split(",") if args.scenarios else list(SCENARIOS)
    if args.quick:
        for spec in SCENARIOS.values():
            spec |= {"paced": max(100, spec["paced"] // 2)}
    rounds = {s: (3 if s == HEADLINE else 1) if args.quick else (5 if s == HEADLINE else 2) for s in scenarios}
    machine = describe(*dict.fromkeys(p for name in names for p in PACKAGES[name]))
    with tempfile.TemporaryDirectory(prefix="treadle-capture-", ignore_cleanup_errors=True) as home:
        bench = Bench(Path(home), names)
        try:
            found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in names}
            for turn in range(max(rounds.values())):
                for scenario in (s for s in scenarios if rounds[s] > turn):
                    for name in names:
                        made = bench.latency(name, scenario)
                        if made is not None:
                            found[name].setdefault(scenario, []).append(made)
                            print(f"{turn} {scenario} {name}: {_line(summary([made]))}", flush=True)
            whole = args.scenarios is None
            burst = {name: made for name in names if name != "orjson" and (made := bench.burst(name))} if whole else {}
            outage = bench.outage() if whole else {}
            footprint = bench.footprint(3 if args.quick else 5) if whole else {}
        finally:
            bench.broker.kill()
    results: dict[str, Any] = {}
    for name in names:
        by_scenario = {scenario: summary(made) for scenario, made in found[name].items()}
        head = by_scenario.get(HEADLINE, {})
        results[name] = {k: head[k] for k in ("p50_us", "p99_us", "cpu_us", "caller_cpu_us") if k in head}
        results[name] |= {"burst": burst.get(name), "outage": outage.get(name), "scenarios": by_scenario}
    lost = [
        f"{what} {name}"
        for what, by_name in (("burst", burst), ("outage", outage))
        for name, made in by_name.items()
        if name.startswith("treadle") and made["arrived"] != made["recorded"]
    ]
    ended = describe()
    if ended["commit"] != machine["commit"]:
        print(f"the tree changed from {machine['commit']} to {ended['commit']} while it was measured", file=sys.stderr)
    report = {
        "machine": machine | {"load_at_end": ended["load"], "commit_at_end": ended["commit"]},
        "quick": args.quick,
        "texts": origin(),
        "headline": HEADLINE,
        "missing": missing,
        "failures": bench.failures,
        "lost": lost,
        "targets": targets(results, footprint),
        "footprint": footprint,
        "results": results,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(compact(report) + "\n")
    print(json.dumps({k: report[k] for k in ("missing", "failures", "lost", "targets")}, indent=1))
    return 1 if bench.failures or lost or (missing and not args.quick) else 0


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _line(made: dict[str, Any]) -> str:
    return " ".join(f"{k}={made[k]}" for k in ("p50_us", "p99_us", "cpu_us", "caller_cpu_us")) + (
        f" errors={made['errors']}" if made["errors"] else ""
    )


if __name__ == "__main__":
    sys.exit(main())
