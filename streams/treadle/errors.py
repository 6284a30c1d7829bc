"""Every error of the SDK.

TreadleError (treadle_schemas.errors)
└── SdkError
    ├── LogError             Kafka said no; `retriable` tells whether trying again can help
    │   ├── LogUnreachable   no broker answered in time
    │   ├── TopicMissing     the workspace (or one of its topics) does not exist
    │   └── NotDelivered     records were handed over but not acknowledged in time
    ├── TargetError          what an outcome shall be about names no interaction, episode or reference
    ├── RecorderClosed       the recorder was closed, or its process is ending
    ├── QueueFull            the recorder's bounded queue is full: Kafka is away, or slower than the agent
    ├── SpoolFull            the spool reached its bound, or the disk is full
    ├── SpoolUnwritable      the spool's folder cannot be written; events go straight to Kafka
    ├── RedactionRefused     the PII policy refuses events that hold what this one held
    ├── ReleaseUnusable      a release is not there, or a file of it is not what its manifest says
    ├── AddressInUse         a server's address cannot be listened on
    ├── AppFailed            a server could not start
    ├── EncryptionMissing    the workspace encrypts, and the package that does it is not installed
    └── MissingExtra         a command needs a package that this installation lacks
"""

from __future__ import annotations

from pathlib import Path

from treadle_schemas.errors import TreadleError

__all__ = [
    "AddressInUse",
    "AppFailed",
    "EncryptionMissing",
    "LogError",
    "LogUnreachable",
    "MissingExtra",
    "NotDelivered",
    "QueueFull",
    "RecorderClosed",
    "RedactionRefused",
    "ReleaseUnusable",
    "SdkError",
    "SpoolFull",
    "SpoolUnwritable",
    "TargetError",
    "TopicMissing",
]


class SdkError(TreadleError):
    """Base of the SDK's errors."""


class LogError(SdkError):
    """Kafka said no. The message carries its words and what was asked."""

    def __init__(self, message: str, *, retriable: bool = False) -> None:
        super().__init__(message)
        self.retriable = retriable


class LogUnreachable(LogError):
    """No broker answered in time."""

    exit_code = 5

    def __init__(self, message: str) -> None:
        super().__init__(message, retriable=True)


class TopicMissing(LogError):
    """The workspace, or one of its topics, does not exist."""


class NotDelivered(LogError):
    """Records were handed over but not acknowledged in time; `left` is how many."""

    def __init__(self, message: str, left: int) -> None:
        super().__init__(message, retriable=True)
        self.left = left


class TargetError(SdkError):
    """What an outcome shall be about names no interaction, episode or reference, or not whose workspace it is in."""

    exit_code = 2


class RecorderClosed(SdkError):
    """The recorder was closed, or its process is ending."""


class QueueFull(SdkError):
    """The recorder's bounded queue is full: Kafka is away, or slower than the agent. The event was refused, and counted."""

    retriable = True


class SpoolFull(SdkError):
    """The spool reached its bound, or the disk is full. The event was refused, and counted."""

    retriable = True


class SpoolUnwritable(SdkError):
    """The spool's folder cannot be written. The recorder says so once and sends straight to Kafka."""


class RedactionRefused(SdkError):
    """The PII policy refuses events that hold `kind`. Nothing was written; the event is counted as refused."""

    exit_code = 3

    def __init__(self, kind: str, policy: str, version: int) -> None:
        super().__init__(
            f"the event holds {kind}, which the PII policy {policy} (version {version}) refuses; "
            "take it out before recording, or change the action with `treadle workspace set`"
        )
        self.kind = kind


class ReleaseUnusable(SdkError):
    """A release must not be loaded. `path` is the file or folder that is wrong; `missing`: it is not there (yet)."""

    def __init__(self, path: Path, problem: str, *, missing: bool = False) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.missing = missing


class EncryptionMissing(SdkError):
    """The workspace encrypts by subject, and this installation lacks the package that does it. Nothing was written."""

    def __init__(self) -> None:
        super().__init__(
            "the workspace encrypts what is recorded of subjects, and the package cryptography is not installed. "
            "Install it with: pip install 'treadle[encryption]'"
        )


class MissingExtra(SdkError):
    """A command needs a package that this installation lacks; `extra` is the one that brings it."""

    def __init__(self, command: str, package: str, extra: str) -> None:
        super().__init__(
            f"`treadle {command}` needs the package {package}, which is not installed. "
            f"Install it with: pip install 'treadle[{extra}]'"
        )
        self.extra = extra


class AddressInUse(SdkError):
    """A server's address cannot be listened on."""

    exit_code = 2


class AppFailed(SdkError):
    """A server could not start; its log says why."""
