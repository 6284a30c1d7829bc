"""Every error of the SDK.

TreadleError (treadle_schemas.errors)
└── SdkError
    ├── LogError             Kafka said no; `retriable` tells whether trying again can help
    │   ├── LogUnreachable   no broker answered in time
    │   ├── TopicMissing     the workspace (or one of its topics) does not exist
    │   └── NotDelivered     records were handed over but not acknowledged in time
    └── RecorderClosed       the recorder was closed, or its process is ending
"""

from __future__ import annotations

from treadle_schemas.errors import TreadleError

__all__ = ["LogError", "LogUnreachable", "NotDelivered", "RecorderClosed", "SdkError", "TopicMissing"]


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


class RecorderClosed(SdkError):
    """The recorder was closed, or its process is ending."""
