"""`python tests/simulation --seeds 1000 --first 0 [--jobs 2] [--trace]`: run schedules.

The last line says how many, and how many went wrong.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from simulation.campaign import run_all  # noqa: E402
from simulation.schedule import run  # noqa: E402


def main() -> int:
    """1 where a schedule violated something."""
    parser = argparse.ArgumentParser(prog="make simulate", description="Run schedules of the simulated join.")
    parser.add_argument("--seeds", type=int, default=1_000, help="how many")
    parser.add_argument(
        "--first", type=int, default=0, help="the first seed; with --seeds 1 a failing schedule is replayed"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--limit-s", type=float, default=math.inf, help="begin no more schedules after so many seconds")
    parser.add_argument("--trace", action="store_true", help="print every step of the first schedule, and run no other")
    args = parser.parse_args()
    if args.trace:
        result = run(args.first, trace=True)
        print(*result.trace or (), *result.violations, sep="\n")
        return int(bool(result.violations))
    started = time.monotonic()
    totals = run_all(args.first, args.seeds, args.jobs, args.limit_s)
    print(*totals.lines(), sep="\n")
    print(f"{(time.monotonic() - started) / max(1, totals.seeds) * 1_000:.0f} ms a schedule in {args.jobs} process(es)")
    last = args.first + totals.seeds - 1
    print(f"seeds {args.first} to {last}: {totals.seeds} run, {len(totals.violated)} with violations")
    return int(bool(totals.violated))


if __name__ == "__main__":
    sys.exit(main())
