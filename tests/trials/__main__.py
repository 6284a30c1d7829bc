"""`python tests/trials`: false promotions, power, false rollbacks and delays, as tables. Exits 1 where a bound is broken."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from _machine import describe  # noqa: E402

from trials.bounds import most_by_chance  # noqa: E402
from trials.gate import ALPHA, campaign, power  # noqa: E402
from trials.guard import Outcome, Traffic, lift, trial, watch  # noqa: E402


def main() -> int:
    """Run everything, print it, and say whether every error rate is within its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--campaigns", type=int, default=100, help="Campaigns of 50 turns.")
    parser.add_argument("--runs", type=int, default=300, help="Runs of everything else.")
    parser.add_argument("--json", type=Path, help="Write the numbers to this file.")
    args = parser.parse_args()
    start = time.monotonic()
    report: dict[str, Any] = {"machine": describe("numpy"), "campaigns": args.campaigns, "runs": args.runs}
    broken = [*_promotions(args.campaigns, report), *_guard(args.runs, report), *_lifts(args.runs, report)]
    _powers(args.runs, report)
    report["broken"] = broken
    report["seconds"] = round(time.monotonic() - start, 1)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    for line in broken:
        print(f"BROKEN: {line}")
    print(f"{report['seconds']:g} s; {'every error rate is within its bound' if not broken else 'see above'}")
    return 1 if broken else 0


def _promotions(campaigns: int, report: dict[str, Any]) -> list[str]:
    print(f"gate: candidates that are no better, 50 turns, {campaigns} campaigns, alpha {ALPHA:g}")
    broken, rows = [], {}
    for name, fresh in (("fresh tasks each turn", True), ("one held-out set", False)):
        for effect in (0.0, -0.02):
            found = [campaign(seed, fresh=fresh, effect=effect) for seed in range(campaigns)]
            turns = sum(one.turns for one in found)
            promoted = sum(one.promoted for one in found)
            some = sum(one.promoted > 0 for one in found)
            drift = statistics.mean(one.drift for one in found)
            rows[f"{name}, effect {effect:+.2f}"] = {
                "per_turn": promoted / turns,
                "campaigns_with_one": some / campaigns,
                "drift": drift,
            }
            print(
                f"  {name:<22} effect {effect:+.2f}  a turn {promoted / turns:6.2%}  campaigns with any {some / campaigns:6.1%}"
                f"  true quality {drift:+.3f}"
            )
            runs, errors = (turns, promoted) if fresh else (campaigns, some)
            if errors > most_by_chance(runs, ALPHA):
                broken.append(f"{name}, effect {effect}: {errors} of {runs}")
    report["false_promotion"] = rows
    return broken


def _powers(runs: int, report: dict[str, Any]) -> None:
    print(f"gate: verdicts by true effect and number of tasks, {runs} runs, 30 % of tasks differ")
    print("  tasks  effect   promote  reject  not enough evidence")
    rows = report["power"] = []
    for tasks in (128, 256, 512):
        for effect in (-0.05, 0.0, 0.03, 0.05, 0.1, 0.15):
            said = power(effect, tasks=tasks, runs=runs)
            rows.append({"tasks": tasks, "effect": effect, **said})
            print(
                f"  {tasks:>5}  {effect:+.2f}  {said['promote']:8.1%} {said['reject']:7.1%} {said['not_enough_evidence']:9.1%}"
            )


def _guard(runs: int, report: dict[str, Any]) -> list[str]:
    broken, rows = [], report.setdefault("guard", [])
    print(f"guard: {runs} runs; wins arrive after 2 minutes on average, losses after 20; age 10 minutes")
    for absent in (None, 0.0):
        rule = "left out" if absent is None else f"as {absent:g}"
        for new in (0.6, 0.5, 0.4, 0.2):
            found = [watch(Traffic(old=0.6, new=new, absent=absent), seed=seed, episodes=600) for seed in range(runs)]
            rows.append(_said(f"champion, absent {rule}", new, found))
            if new == 0.6 and (bad := sum(o.decision is not None for o in found)) > most_by_chance(runs, 0.01):
                broken.append(f"false rollback of a champion, absent {rule}: {bad} of {runs}")
        for new in (0.6, 0.7, 0.8, 0.5, 0.4, 0.2):
            found = [trial(Traffic(old=0.6, new=new, absent=absent), seed=seed, episodes=1000) for seed in range(runs)]
            rows.append(_said(f"canary, absent {rule}", new, found))
            if new != 0.6:
                continue
            for decision in ("promote", "withdraw"):
                if (bad := sum(o.decision == decision for o in found)) > most_by_chance(runs, 0.05):
                    broken.append(f"an equal canary, absent {rule}, {decision}: {bad} of {runs}")
    return broken


def _lifts(runs: int, report: dict[str, Any]) -> list[str]:
    broken, rows = [], report.setdefault("lift", [])
    print(
        f"control: {runs} runs of 5,000 episodes, the control serves 2 %; is the true lift in the interval at every moment?"
    )
    for new in (0.6, 0.7, 0.9):
        found = [lift(Traffic(old=0.6, new=new, absent=0.0), seed=seed, episodes=5000) for seed in range(runs)]
        missed = sum(not one.always for one in found)
        width = statistics.mean(one.width for one in found)
        rows.append({"new": new, "always_covered": 1 - missed / runs, "width": width})
        print(f"  0.60 -> {new:.2f}  always covered {1 - missed / runs:6.1%}  width in the end {width:.3f}")
        if missed > most_by_chance(runs, 0.05):
            broken.append(f"lift over the control, {new}: {missed} of {runs} intervals missed it")
    return broken


def _said(what: str, new: float, found: list[Outcome]) -> dict[str, Any]:
    shares = {d: sum(o.decision == d for o in found) / len(found) for d in ("roll back", "withdraw", "promote")}
    decided = [o.after for o in found if o.decision in shares and o.after is not None]
    delay = statistics.median(decided) if decided else None
    words = "  ".join(f"{name} {share:6.1%}" for name, share in shares.items() if share)
    print(
        f"  {what:<26} true mean 0.60 -> {new:.2f}  median {'-' if delay is None else round(delay):>5} episodes  {words}"
    )
    return {"what": what, "new": new, "median_episodes": delay, **shares}


if __name__ == "__main__":
    sys.exit(main())
