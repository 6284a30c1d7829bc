"""The errors of apps beside the join.

StreamsError (treadle_streams.errors)
└── AppError
    ├── AppInvalid     the module is not there, or defines no build(app)
    └── AppSendFailed  Kafka did not take a table change or a message: the process ends, and begins again at its last commit
"""

from __future__ import annotations

from treadle_streams.errors import StreamsError

__all__ = ["AppError", "AppInvalid", "AppSendFailed"]


class AppError(StreamsError):
    """Base of the apps' errors."""


class AppInvalid(AppError):
    """The module is not there, or defines no build(app)."""

    exit_code = 2


class AppSendFailed(AppError):
    """Kafka did not take a table change or a message: the process ends, and begins again at its last commit."""

    retriable = True
    exit_code = 5
