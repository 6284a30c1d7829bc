"""The receiver's errors.

TreadleError (treadle_schemas.errors)
└── StreamsError (treadle_streams.errors)
    └── IngestError
        ├── AccessFileUnusable     the file of tokens and secrets cannot be used
        └── Refused                answered instead of done; knows its HTTP status and code
            ├── Malformed          400: the body is not what its type says
            ├── NotAuthorised      401: no token, an unknown one, or a wrong signature
            ├── Forbidden          403: a token of another workspace
            ├── TooSlow            408: the body did not come in time
            ├── TooLarge           413: a body or an event beyond the limit
            ├── UnsupportedType    415: a content type or encoding that is not read here
            ├── Invalid            422: JSON, but no event that the workspace takes
            └── NotNow             503: the same request can succeed later
"""

from __future__ import annotations

from typing import Any, ClassVar

from treadle_streams.errors import StreamsError

__all__ = [
    "AccessFileUnusable",
    "Forbidden",
    "IngestError",
    "Invalid",
    "Malformed",
    "NotAuthorised",
    "NotNow",
    "Refused",
    "TooLarge",
    "TooSlow",
    "UnsupportedType",
]


class IngestError(StreamsError):
    """Base of the receiver's errors."""


class AccessFileUnusable(IngestError):
    """The file of tokens and secrets cannot be read or written, or others may read it. The message says what to do."""

    exit_code = 2


class Refused(IngestError):
    """What the receiver answers instead of doing what was asked. Never carries a payload, a token or a secret."""

    status: ClassVar[int] = 500
    code: str = "internal"

    def __init__(
        self, message: str, *, code: str | None = None, field: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code or self.code
        self.field = field
        self.hint = hint

    def to_json(self) -> dict[str, Any]:
        """The value of `error` in the answer."""
        said: dict[str, Any] = {"code": self.code, "message": str(self), "field": self.field, "hint": self.hint}
        said |= {"retriable": True} if self.retriable else {}
        return {name: given for name, given in said.items() if given is not None}


class Malformed(Refused):
    """The body is not what its type says."""

    status = 400
    code = "malformed"


class NotAuthorised(Refused):
    """No token, an unknown one, or a wrong signature."""

    status = 401
    code = "not_authorised"


class Forbidden(Refused):
    """A token of another workspace. The answer is the same whether the workspace asked for exists or not."""

    status = 403
    code = "forbidden"


class TooSlow(Refused):
    """The body did not come in time."""

    status = 408
    code = "too_slow"


class TooLarge(Refused):
    """A body or an event beyond the limit."""

    status = 413
    code = "too_large"


class UnsupportedType(Refused):
    """A content type or encoding that is not read here."""

    status = 415
    code = "unsupported_type"


class Invalid(Refused):
    """JSON, but no event that the workspace takes."""

    status = 422
    code = "invalid"


class NotNow(Refused):
    """The same request can succeed later, after `retry_after_s`."""

    status = 503
    code = "not_now"
    retriable = True

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int = 5) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s
