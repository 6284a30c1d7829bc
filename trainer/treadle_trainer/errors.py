"""Every error of the trainer.

TreadleError (treadle_schemas.errors)
└── TrainerError
    ├── RegistryError            the registry of a slot says no
    │   ├── ReleaseMissing       no release of that name, or none of the kind that is needed
    │   │   └── NoChampion       nothing was ever promoted in that slot
    │   ├── ReleaseTampered      a file of a release is not what its manifest says
    │   ├── ReleaseRefused       quarantined, or refused by the gate; `--force` overrules (exit 3)
    │   ├── AliasMoved           the champion is no longer the one to be replaced
    │   └── NoPredecessor        nothing to roll back to
    ├── DataRefused              rows that training must not see, or a corpus without rows to train on
    │   ├── TokenizerMismatch    token columns of another tokenizer or chat template
    │   └── StateRefused         the saved position of a reader that reads something else, or in another order
    ├── ColumnsMissing           no token columns are there; they can be made again
    ├── ColumnsDamaged           a file of token columns is not what was written; they can be made again
    ├── TemplateRefused          a chat template in which the response cannot be told from the rest
    ├── FolderRefused            what an external trainer left is no model folder, or holds code
    ├── LaunchRefused            this machine cannot train in that many processes, or in that way
    ├── EvaluationFailed         an evaluator gave no usable scores
    ├── DeployFailed             a server does not load a release, or the release does not answer there
    ├── MirrorFailed             MLflow cannot be reached, or does not take what the mirror writes; the registry is as it was
    ├── JobMissing               no job of that number
    ├── JobRefused               a job that is over is not to be cancelled, one that is not is not to be resumed (exit 3)
    └── JobFailed                a training or evaluation process ended badly; `log` names its log
        ├── BackendFailed        ... because the command of an external trainer did
        ├── RewardFailed         ... because what scores attempts did: a reward function, or an environment
        ├── JobTimedOut          ... because its time was up
        ├── JobTooLarge          ... because it took more memory than it may, or than there is
        ├── DiskFull             ... because the disk has no room for it, or the trainer's budget has none
        └── JobStopped           ... because its caller wanted it to end; it may be run again
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from treadle_schemas import TreadleError

__all__ = [
    "AliasMoved",
    "BackendFailed",
    "ColumnsDamaged",
    "ColumnsMissing",
    "DataRefused",
    "DeployFailed",
    "DiskFull",
    "EvaluationFailed",
    "FolderRefused",
    "JobFailed",
    "JobMissing",
    "JobRefused",
    "JobStopped",
    "JobTimedOut",
    "JobTooLarge",
    "LaunchRefused",
    "MirrorFailed",
    "NoChampion",
    "NoPredecessor",
    "RegistryError",
    "ReleaseMissing",
    "ReleaseRefused",
    "ReleaseTampered",
    "RewardFailed",
    "StateRefused",
    "TemplateRefused",
    "TokenizerMismatch",
    "TrainerError",
]


class TrainerError(TreadleError):
    """Base of the trainer's errors."""


class RegistryError(TrainerError):
    """The registry of a slot says no."""


class ReleaseMissing(RegistryError):
    """No release of that name, or none of the kind that is needed."""


class NoChampion(ReleaseMissing):
    """Nothing was ever promoted in that slot: register and promote what runs today."""


class ReleaseTampered(RegistryError):
    """A file of a release is not what its manifest says. The release must not be loaded."""


class ReleaseRefused(RegistryError):
    """The release is quarantined, or the gate refused it. Nothing was changed; `--force` overrules."""

    exit_code = 3


class AliasMoved(RegistryError):
    """Someone else moved the champion first. Nothing was changed; look again and decide anew."""

    def __init__(self, message: str, champion: str | None) -> None:
        super().__init__(message)
        self.champion = champion


class NoPredecessor(RegistryError):
    """The champion has no recorded predecessor that is not quarantined."""


class DataRefused(TrainerError):
    """Rows that training must not see, or a corpus version without rows to train on."""


class TokenizerMismatch(DataRefused):
    """Token columns belong to another tokenizer or chat template than the one that would read them."""

    def __init__(self, path: Path, *, expected: str, found: str) -> None:
        parts = ("tokenizer", "chat template")
        other = [name for name, a, b in zip(parts, expected.split("-"), found.split("-"), strict=True) if a != b]
        super().__init__(
            f"{path}: these are the tokens of another {' and '.join(other)} ({found}, not {expected}). Make columns for the model that "
            "is trained: they lie beside each other"
        )
        self.path = path


class StateRefused(DataRefused):
    """The saved position of a reader belongs to other columns, another share or another order."""


class ColumnsMissing(TrainerError):
    """No token columns are there. They are derived: make them again."""


class ColumnsDamaged(TrainerError):
    """A file of token columns is not what was written. They are derived: remove the folder, and make them again."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}. Remove the folder: token columns are made again from the corpus")
        self.path = path


class TemplateRefused(TrainerError):
    """A chat template in which the response cannot be told from the rest of the conversation."""


class FolderRefused(TrainerError):
    """What an external trainer left is no model folder that can be loaded without executing something of it."""

    def __init__(self, folder: Path, problems: Iterable[str]) -> None:
        super().__init__(f"{folder}: is no model folder to go on with: {'; '.join(problems)}")
        self.folder = folder


class LaunchRefused(TrainerError):
    """This machine cannot train in that many processes, or in that way."""


class EvaluationFailed(TrainerError):
    """An evaluator gave no usable scores."""


class DeployFailed(TrainerError):
    """A server does not load a release, or the release does not answer there. What served before goes on serving."""


class MirrorFailed(TrainerError):
    """MLflow cannot be reached, or does not take what the mirror writes. The registry is as it was; the next pass goes on."""

    retriable = True


class JobMissing(TrainerError):
    """No job of that number in the slot."""


class JobRefused(TrainerError):
    """A job that is over is not to be cancelled, one that is not over is not to be resumed. Nothing was changed."""

    exit_code = 3


class JobFailed(TrainerError):
    """A training or evaluation process ended badly. `log` is its log file."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class BackendFailed(JobFailed):
    """The command of an external trainer could not be started, or ended badly. `log` holds what it printed."""


class RewardFailed(JobFailed):
    """A reward function or an environment raised, or gave what is no reward. The log holds its traceback."""


class JobTimedOut(JobFailed):
    """The process was stopped because its time was up."""


class JobTooLarge(JobFailed):
    """The process was ended because it, with all that it started, took more memory than it may, or than there is."""


class DiskFull(JobFailed):
    """There is no room on the disk for what the job writes, or none within the trainer's budget. What was there is as it was."""


class JobStopped(JobFailed):
    """The process was stopped because its caller is ending. The job may be run again."""

    retriable = True
    exit_code = 130
