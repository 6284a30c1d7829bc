"""`python tests/soak --minutes 30 [--seed N]`: rounds of drawn faults, each on a fresh workspace and checked at its end.

Prints first what it needs. The last line says what struck and what was found; the exit code is 1 where anything was.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Final

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from treadle_streams import workspaces  # noqa: E402

from soak.bench import BROKER_MB, HOMES_MB, Bench, Disk, Standstill, own_broker  # noqa: E402
from soak.faults import FAULTS, Driver, feasible  # noqa: E402

FAULTS_A_ROUND: Final = 12
FINDINGS: Final = ("lost", "wrong", "duplicate", "unsettled")
_PLACES: Final = re.compile(r"/\S+|\d+\.\d+\.\d+\.\d+:\d+")
OVERLAP: Final = 0.5
"""How often a fault strikes while the one before still holds."""


def main() -> int:
    """1 where something was lost, wrong, repeated or never settled."""
    parser = argparse.ArgumentParser(prog="make soak", description="Real faults on a real broker for a while.")
    parser.add_argument("--minutes", type=float, default=30.0, help="begin no round after this time")
    parser.add_argument("--seed", type=int, help="of history and faults; drawn and printed where it is not given")
    parser.add_argument("--folder", type=Path, help="where broker, workers and logs lie; default: a new one in TMPDIR")
    args = parser.parse_args()
    os.environ.pop("TREADLE_HOME", None)
    seed = args.seed if args.seed is not None else int.from_bytes(os.urandom(4))
    folder = Path(tempfile.mkdtemp(prefix="treadle-soak-", dir=args.folder))
    return _Soak(seed, folder, args.minutes * 60).run()


class _Soak:
    def __init__(self, seed: int, folder: Path, duration_s: float) -> None:
        self.seed, self.folder, self.duration_s = seed, folder, duration_s
        self.random = Random(seed)
        self.faults: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self.deck: list[str] = []

    def run(self) -> int:
        free_mb = shutil.disk_usage(self.folder).free >> 20
        print(
            f"needs {BROKER_MB + HOMES_MB} MB at most, in memory where root may mount a tmpfs; {self.folder} has {free_mb} MB free"
        )
        print(f"seed {self.seed}, {self.duration_s / 60:g} minutes", flush=True)
        started = time.monotonic()
        with own_broker(self.folder, die_with_parent=True) as (broker, broker_disk):
            homes = Disk(self.folder / "homes", HOMES_MB)
            try:
                while time.monotonic() < started + self.duration_s:
                    name = f"soak-{self.totals['rounds']}"
                    made = Bench(
                        broker.bootstrap,
                        name,
                        homes,
                        seed=self.random.getrandbits(32),
                        broker=broker,
                        broker_disk=broker_disk,
                        standbys=self.totals["rounds"] % 2,
                    )
                    found = self._round(made, started + self.duration_s)
                    if found:
                        self._keep(made, found)
                    workspaces.delete(broker.bootstrap, name)
                    shutil.rmtree(made.home)
            finally:
                homes.close()
        self._report(time.monotonic() - started)
        bad = sum(self.totals[name] for name in FINDINGS)
        if not bad:
            shutil.rmtree(self.folder)
        return 1 if bad else 0

    def _round(self, bench: Bench, end: float) -> str:
        """What was found, in full; nothing, if all is well."""
        print(f"round {self.totals['rounds']}, standbys: {bench.standbys}", flush=True)
        found = ""
        self.totals["rounds"] += 1
        try:
            for name in ("a", "b"):
                bench.start(name)
            bench.advanced("the start")
            driver = Driver(bench, self.random, lambda line: print(line, flush=True))
            for _ in range(FAULTS_A_ROUND // 4):
                if time.monotonic() < end:
                    driver.run([self._draw(bench) for _ in range(4)], OVERLAP)
            done = bench.verify()
            print(f"  {done}", flush=True)
            if done.findings:
                found = "\n".join(f"{n}: {one}" for n in FINDINGS for one in getattr(done.findings, n))
            self.totals += Counter(events=done.events, poison=done.poison, rows=done.rows, revisions=done.revisions)
            self.totals += Counter({n: len(getattr(done.findings, n)) for n in FINDINGS})
        except Standstill as err:
            print(f"  {err}", flush=True)
            found = str(err)
            self.totals["unsettled"] += 1
        finally:
            bench.close()
        self.faults += bench.struck
        for said, n in bench.ends.items():
            self.ends[_PLACES.sub("...", said)] += n
        return found

    def _keep(self, bench: Bench, found: str) -> None:
        """The log's segments and the workers' state of a round in which something was found."""
        assert bench.broker is not None
        kept = self.folder / bench.workspace
        for one in bench.broker.directory.glob(f"data/treadle.{bench.workspace}.*"):
            shutil.copytree(one, kept / "log" / one.name)
        shutil.copytree(bench.home, kept / "state")
        (kept / "findings.txt").write_text(found + "\n")
        print(f"  kept in {kept}", flush=True)

    def _draw(self, bench: Bench) -> str:
        """Each kind once before any kind twice; after that by weight."""
        names = feasible(bench)
        if not self.deck and not self.totals["dealt"]:
            self.totals["dealt"] = 1
            self.deck = self.random.sample(names, len(names))
        return self.deck.pop() if self.deck else self.random.choices(names, [FAULTS[n][0] for n in names])[0]

    def _report(self, took_s: float) -> None:
        print("faults by kind:")
        for name in FAULTS:
            print(f"  {self.faults[name]:4}  {name}")
        print("workers that ended by themselves, and what they said:")
        for said, n in self.ends.most_common():
            print(f"  {n:4}  {said}")
        t = self.totals
        print(
            f"seed {self.seed}, {took_s / 60:.1f} minutes, {t['rounds']} rounds, {sum(self.faults.values())} faults of "
            f"{sum(1 for n in self.faults.values() if n)} kinds, {t['events']} events ({t['poison']} poison), {t['rows']} rows, "
            f"{t['revisions']} revisions: lost {t['lost']}, wrong {t['wrong']}, duplicate {t['duplicate']}, never settled {t['unsettled']}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
