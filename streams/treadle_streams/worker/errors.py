"""Every error that ends a worker. The process says it on stderr and exits with `exit_code`; a supervisor starts it again.

StreamsError (treadle_streams.errors)
└── WorkerError
    ├── StateLost          the partition's state cannot be what it was: refusing beats grading rows anew with other revisions
    ├── TransactionFailed  Kafka did not take a batch for a reason that the group's generation does not explain
    ├── InputFailed        an input topic cannot be read on
    ├── StateUnwritable    the folder of local state takes nothing more: a full disk, most often
    ├── WorkerStuck        a thread of the worker ended or stopped making progress
    └── WorkerDirectory    no folder for local state could be had
"""

from __future__ import annotations

from treadle_streams.errors import StreamsError

__all__ = [
    "InputFailed",
    "StateLost",
    "StateUnwritable",
    "TransactionFailed",
    "WorkerDirectory",
    "WorkerError",
    "WorkerStuck",
]


class WorkerError(StreamsError):
    """Base of what ends a worker."""


class StateLost(WorkerError):
    """A partition's state cannot be what it was. The message names the partition, what was found, and the way out."""

    def __init__(self, workspace: str, partition: int, found: str) -> None:
        super().__init__(
            f"workspace {workspace}, partition {partition}: {found}. The join's state is lost or older than its inputs; going on would "
            f"grade rows anew. `treadle restore {workspace} --from-log` rebuilds it from the inputs"
        )
        self.workspace = workspace
        self.partition = partition


class TransactionFailed(WorkerError):
    """Kafka did not take a batch. State is rebuilt from the log at the next start; nothing counts that was not committed."""

    retriable = True
    exit_code = 5


class InputFailed(WorkerError):
    """An input topic cannot be read on."""

    retriable = True
    exit_code = 5


class StateUnwritable(WorkerError):
    """The folder of local state takes nothing more. The changelog has it all: the next start goes on from there."""

    retriable = True

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"local state in {path} cannot be written: {reason}. Free some space, or set TREADLE_HOME to a larger disk; nothing is lost, "
            "the worker goes on from the changelog"
        )
        self.path = path


class WorkerStuck(WorkerError):
    """A thread of the worker ended or stopped making progress."""

    retriable = True


class WorkerDirectory(WorkerError):
    """No folder for local state could be had."""
