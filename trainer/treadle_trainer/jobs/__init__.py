"""Jobs: the processes that train and evaluate. Long-lived services stay light; torch lives and dies with a job.

A job is a folder: `spec.json` (what to do), `log.txt` (all it printed), `progress.jsonl` (one JSON object a line while it runs) and
`result.json` (what came of it).
"""

from treadle_trainer.jobs._contents import CHECKPOINTS, MODEL, remove, rows_in, size_of, tidy
from treadle_trainer.jobs._lines import new_lines
from treadle_trainer.jobs._outcome import NO_ROOM
from treadle_trainer.jobs._runner import JobRunner, has_cuda
from treadle_trainer.jobs._spec import EnvironmentSpec, JobSpec, ScorecardSpec, TrainSpec

__all__ = [
    "CHECKPOINTS",
    "MODEL",
    "NO_ROOM",
    "EnvironmentSpec",
    "JobRunner",
    "JobSpec",
    "ScorecardSpec",
    "TrainSpec",
    "has_cuda",
    "new_lines",
    "remove",
    "rows_in",
    "size_of",
    "tidy",
]
