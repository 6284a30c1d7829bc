"""The inside of a job process: read the spec, do it, write the result. Everything heavy is imported here, not in the services."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import msgspec

from treadle_trainer._files import write_atomically
from treadle_trainer.jobs._outcome import attempt
from treadle_trainer.jobs._spec import EnvironmentSpec, JobSpec, ScorecardSpec, TrainSpec

__all__ = ["Progress", "perform"]


class Progress:
    """Appends JSON objects to a job's progress file; each carries `t`, the seconds since the job began."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = time.monotonic()

    def __call__(self, **values: Any) -> None:
        """Add one line."""
        with self._path.open("a") as file:
            file.write(json.dumps({"t": round(time.monotonic() - self._start, 3), **values}) + "\n")


def perform(folder: Path) -> int:
    """Do the job in `folder`. Returns the exit code: 0, or 1 with the reason in result.json."""
    started = time.monotonic()

    def work() -> dict[str, Any]:
        spec = msgspec.json.decode((folder / "spec.json").read_bytes(), type=JobSpec)
        result = _dispatch(spec, Progress(folder / "progress.jsonl"))
        result["seconds"] = round(time.monotonic() - started, 3)
        result["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return result

    result = attempt(work)
    write_atomically(folder / "result.json", json.dumps(result).encode())
    return 1 if "error" in result else 0


def _dispatch(spec: JobSpec, progress: Progress) -> dict[str, Any]:
    match spec:
        case TrainSpec():
            from treadle_trainer.methods import train

            return train(spec, progress)
        case EnvironmentSpec():
            from treadle_trainer.evaluate._environment import score

            return score(spec, progress)
        case ScorecardSpec():
            from treadle_trainer.scorecard.measure import measure

            return measure(spec, progress)
