"""Many schedules: run, counted, and told."""

from __future__ import annotations

import ctypes
import gc
import math
import signal
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from typing import Final

from simulation.events import KINDS
from simulation.faults import POINTS
from simulation.schedule import Result, run

__all__ = ["ROWS", "Totals", "run_all"]

ROWS: Final = (*KINDS, "timer", "regrade")
"""Event kinds of the coverage matrix. `timer`: a batch that time alone brought; `regrade`: one that grades kept rows by new settings."""
_CHUNK: Final = 50


@dataclass(slots=True)
class Totals:
    """What came of all of them."""

    seeds: int = 0
    violated: dict[int, list[str]] = field(default_factory=dict)
    """By seed."""
    events: int = 0
    fewest_events: int = 1 << 30
    faults: Counter[str] = field(default_factory=Counter)
    fewest_faults: int = 1 << 30
    ends: Counter[str] = field(default_factory=Counter)
    coverage: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, result: Result) -> None:
        """Take one in."""
        self.seeds += 1
        if result.violations:
            self.violated[result.seed] = result.violations
        self.events += result.events
        self.fewest_events = min(self.fewest_events, result.events)
        self.faults += result.faults
        self.fewest_faults = min(self.fewest_faults, sum(result.faults.values()))
        self.ends += result.ends
        self.coverage += result.coverage

    def merge(self, other: Totals) -> None:
        """Take in those of other schedules."""
        self.seeds += other.seeds
        self.violated |= other.violated
        self.events += other.events
        self.fewest_events = min(self.fewest_events, other.fewest_events)
        self.faults += other.faults
        self.fewest_faults = min(self.fewest_faults, other.fewest_faults)
        self.ends += other.ends
        self.coverage += other.coverage

    @property
    def uncovered(self) -> list[tuple[str, str]]:
        """(point, event kind) where no fault struck."""
        return [(point, kind) for point in POINTS for kind in ROWS if not self.coverage[point, kind]]

    def lines(self) -> Iterator[str]:
        """The report: faults, the coverage of crash point by event kind, violations."""
        struck = ", ".join(f"{name} {n}" for name, n in sorted(self.faults.items()))
        yield f"{self.events} events, {sum(self.faults.values())} faults: {struck}"
        yield f"fewest in a schedule: {self.fewest_events} events, {self.fewest_faults} faults, 2 workers"
        yield f"workers that ended by themselves: {dict(sorted(self.ends.items()))}"
        yield "kills and stops by the kinds of event that they hit (rows) and the step after which they came (columns):"
        yield from (f"  {chr(ord('A') + n)} {point}" for n, point in enumerate(POINTS))
        yield f"{'':18}" + "".join(f"{chr(ord('A') + n):>7}" for n in range(len(POINTS)))
        for kind in ROWS:
            yield f"{kind:18}" + "".join(f"{self.coverage[point, kind]:7}" for point in POINTS)
        yield f"combinations never hit: {len(self.uncovered)}"
        for seed, found in sorted(self.violated.items()):
            yield f"seed {seed}:"
            yield from (f"  {line}" for line in found[:5])


def _begin() -> None:
    """A process of the pool waits for work for good when the one that gives it is killed, unless it dies with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    # a fifth of the time went into looking for cycles
    gc.freeze()
    gc.set_threshold(500_000, 20, 50)


def _some(seeds: Iterable[int]) -> Totals:
    totals = Totals()
    for seed in seeds:
        totals.add(run(seed))
    return totals


def run_all(first: int, count: int, jobs: int, limit_s: float = math.inf) -> Totals:
    """Run the schedules of `count` seeds from `first` on, in so many processes; after `limit_s` no more are begun."""
    end_s = time.monotonic() + limit_s
    chunks = (range(at, min(at + _CHUNK, first + count)) for at in range(first, first + count, _CHUNK))
    totals = Totals()
    # forked: the modules are loaded, and no thread is running yet
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork"), initializer=_begin) as pool:
        under_way = deque(pool.submit(_some, chunk) for chunk in islice(chunks, 2 * jobs))
        while under_way:
            totals.merge(under_way.popleft().result())
            if time.monotonic() < end_s:
                under_way.extend(pool.submit(_some, chunk) for chunk in islice(chunks, 1))
    return totals
