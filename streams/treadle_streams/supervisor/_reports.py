"""What workers and trainers on this machine say of themselves: `home/run/worker-*.json`, rewritten once a second, and `trainer*.json`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import msgspec

__all__ = ["trainer_reports", "worker_reports"]

_FRESH_S: Final = 10.0
"""A worker writes its status each second; one that has not for so long is not at work."""
_TRAINER_FRESH_S: Final = 30.0
"""A trainer writes its report every five seconds, also while a job runs."""


def trainer_reports(run: Path) -> list[dict[str, Any]]:
    """What the trainers on this machine report that are at work: `slots` by name (state, job, reason, problem), `use` in bytes or None."""
    found = []
    for path in sorted(run.glob("trainer*.json")):
        try:
            report = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
            if 0 <= time.monotonic() - float(report["monotonic_s"]) < _TRAINER_FRESH_S:
                found.append({name: report[name] for name in ("at", "pid", "slots", "use")})
        except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
            continue
    return found


def worker_reports(run: Path) -> dict[str, dict[str, Any]]:
    """By workspace, what its workers on this machine report. Several share the partitions, so their counts add up."""
    by_workspace: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(run.glob("worker-*.json")):
        try:
            report = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
            # the monotonic clock is one for all processes of a boot, and no one sets it
            age_s = time.monotonic() - float(report["monotonic_s"])
            report["fresh"] = 0 <= age_s < _FRESH_S
            by_workspace.setdefault(str(report["workspace"]), []).append(report)
        except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
            continue  # being removed this moment, or none of ours
    merged = {}
    for name, several in by_workspace.items():
        # what a dead one last knew of, others have taken over
        chosen = [r for r in several if r["fresh"]] or [max(several, key=lambda r: str(r.get("updated_at", "")))]
        merged[name] = _merge(chosen)
    return merged


def _merge(reports: list[dict[str, Any]]) -> dict[str, Any]:
    if len(reports) == 1:
        return reports[0]
    total = dict(reports[0])
    for count in ("captured", "pending", "settled", "corrections"):
        total[count] = sum(r.get(count) or 0 for r in reports)
    total["orphans"] = sum(r.get("orphans") or 0 for r in reports)
    total["state_bytes"] = sum(r.get("state_bytes") or 0 for r in reports)
    every = {name for r in reports for name in r.get("counts", {})}
    total["counts"] = {name: sum(r.get("counts", {}).get(name, 0) for r in reports) for name in every}
    lags = [r.get("lag") for r in reports]
    total["lag"] = None if None in lags else sum(lag or 0 for lag in lags)
    total["clock_ms"] = min((r["clock_ms"] for r in reports if r.get("clock_ms") is not None), default=None)
    total["dead_letters"] = {"all": sum(sum(r.get("dead_letters", {}).values()) for r in reports)}
    return total
