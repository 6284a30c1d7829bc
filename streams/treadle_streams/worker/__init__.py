"""The worker: a Faust app per workspace around the join, on a lane whose every batch is one fenced Kafka transaction.

    Faust (membership, assignment, RocksDB files) -> Lane (poll, plan, commit, apply) <- Clockwork (clock records, ends, status)

`run_worker` is one process for one workspace; `_pool` one for all workspaces of one partition, with the same lane and an app each.
`treadle worker` without a workspace keeps such processes for all (`_children`).
"""

from treadle_streams.worker._settings import WorkerSettings
from treadle_streams.worker._status import status_path
from treadle_streams.worker._worker import run_worker
from treadle_streams.worker.errors import (
    InputFailed,
    StateLost,
    TransactionFailed,
    WorkerDirectory,
    WorkerError,
    WorkerStuck,
)

__all__ = [
    "InputFailed",
    "StateLost",
    "TransactionFailed",
    "WorkerDirectory",
    "WorkerError",
    "WorkerSettings",
    "WorkerStuck",
    "run_worker",
    "status_path",
]
