"""The join under simulated faults: many schedules of one seed each, and bugs that the same schedules must find.

`make simulate SEEDS=100000` runs more of them; tests/simulation says what is real and what is simulated.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).resolve().parent.parent
sys.path.append(str(_TESTS))

from simulation.bugs import BUGS, COINCIDENCES  # noqa: E402
from simulation.schedule import Result, run  # noqa: E402

pytestmark = pytest.mark.fault

SEEDS = 1_000
FOUND_WITHIN = 400
"""Schedules in which each planted bug must show."""


@pytest.mark.timeout(900)
def test_a_thousand_schedules_lose_repeat_and_change_nothing_and_strike_every_step_with_every_kind_of_event() -> None:
    command = [sys.executable, str(_TESTS / "simulation"), "--seeds", str(SEEDS), "--first", "0", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout)
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    assert lines[-1] == f"seeds 0 to {SEEDS - 1}: {SEEDS} run, 0 with violations"
    assert "combinations never hit: 0" in lines
    assert done.returncode == 0


def _first_found(bug: str, without: frozenset[str] | None = None) -> Result:
    """The first schedule that shows the bug; with `without` the first that does not show it without those faults."""
    with BUGS[bug]():
        for seed in range(FOUND_WITHIN):
            result = run(seed)
            if result.violations and not (without and run(seed, without=without).violations):
                print(f"{bug}: seed {seed}: {result.violations[0][:200]}")
                return result
    raise AssertionError(f"{bug}: not found in {FOUND_WITHIN} schedules")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug not in COINCIDENCES])
def test_a_planted_bug_is_found(bug: str) -> None:
    found = _first_found(bug)
    assert run(found.seed).violations == [], "without the bug there is nothing to find"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", COINCIDENCES)
def test_a_planted_bug_that_takes_two_coinciding_faults_is_found(bug: str) -> None:
    # others are enough for one fault: a worker that has a copy takes over while a commit is still on its way
    found = _first_found(bug, COINCIDENCES[bug])
    assert run(found.seed).violations == [], "without the bug there is nothing to find"
