"""Run the demo over several seeds, with the same settings for all, and report mean, worst and spread.

    python benchmarks/demo_seeds.py [--quick] [--seeds 0-9] [--profile cpu|gpu] --json FILE

Each seed is a whole `treadle demo` with a broker of its own, one after the other. `--quick` runs two seeds of two turns.
Exit code 1 when a seed fails, gains less than 0.3 in live success, or promotes fewer than two candidates (one with --quick).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from _machine import describe
from treadle_demo.profiles import PROFILES

MIN_GAIN = 0.3
MIN_PROMOTED = 2


def run_seed(seed: int, turns: int, environment: str | None, profile: str = "cpu") -> dict[str, Any]:
    """One demo in a folder of its own, which is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="treadle-seeds-") as home:
        file = Path(home) / "demo.json"
        command = [
            sys.executable,
            "-m",
            "treadle",
            "demo",
            "--seed",
            str(seed),
            "--turns",
            str(turns),
            "--json",
            str(file),
        ]
        command += ["--profile", profile]
        if environment:
            command += ["--env", environment]
        environ = {k: v for k, v in os.environ.items() if k != "TREADLE_BOOTSTRAP_SERVERS"}
        done = subprocess.run(
            command, env={**environ, "TREADLE_HOME": home}, capture_output=True, text=True, check=False
        )
        report: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"turns": []}
    lives = [turn["live_success"] for turn in report["turns"]]
    return {
        "seed": seed,
        "exit_code": done.returncode,
        "error": done.stderr.strip().splitlines()[-1] if done.returncode else None,
        "live_success": [round(x, 3) for x in lives],
        "final_live_success": round(report.get("final_live_success") or 0.0, 3),
        "gain": round(lives[-1] - lives[0], 3) if lives else 0.0,
        "promoted": sum(turn["decision"] == "promoted" for turn in report["turns"]),
        "decisions": [turn["decision"] for turn in report["turns"]],
        "poisoned": (report.get("poisoned") or {}).get("decision"),
        "guard": report.get("guard"),
        "cycle_seconds": report.get("cycle_seconds"),
        "wall_seconds": report.get("wall_seconds"),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Mean, worst (smallest), best and standard deviation."""
    return {
        "mean": round(mean(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "sd": round(stdev(values), 3) if len(values) > 1 else 0.0,
    }


def main() -> int:
    """Run all seeds, write the file after each, print a line a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-9", help="first-last")
    parser.add_argument("--quick", action="store_true", help="two seeds of two turns")
    parser.add_argument("--env", help="environment PKG:CLASS")
    parser.add_argument("--profile", choices=["cpu", "gpu"], default="cpu", help="profile of the demo")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    first, _, last = args.seeds.partition("-")
    seeds = [0, 1] if args.quick else list(range(int(first), int(last or first) + 1))
    turns, promoted = (2, 1) if args.quick else (4, MIN_PROMOTED)
    machine = describe("torch", "transformers", "trl", "deeplake", "faust-streaming", "confluent-kafka")
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        run = run_seed(seed, turns, args.env, args.profile)
        runs.append(run)
        print(json.dumps(run), flush=True)
        result = {
            "machine": machine,
            "turns": turns,
            "profile": args.profile,
            "environment": args.env or PROFILES[args.profile].environment,
            "runs": runs,
        }
        done = [run for run in runs if run["exit_code"] == 0]
        if done:
            result["summary"] = {
                name: spread([float(run[name]) for run in done])
                for name in ("gain", "final_live_success", "wall_seconds", "cycle_seconds")
            }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    bad = [r["seed"] for r in runs if r["exit_code"] or r["gain"] < MIN_GAIN or r["promoted"] < promoted]
    print(json.dumps({"summary": result.get("summary"), "seeds_below_the_bar": bad}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
