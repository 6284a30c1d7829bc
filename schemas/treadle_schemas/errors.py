"""Every error this package raises.

TreadleError                      anything treadle raises on purpose
├── ContractError                 a value from outside breaks a contract
│   ├── FieldError                one field has a wrong type, range or size
│   ├── UnknownType               an event type or major version this reader does not know
│   ├── PartMissing               an interaction names a part of its episode that is not there
│   ├── PartErased                an interaction names a part whose content was erased
│   └── HandleError               a string that should be a handle or a release id is none
├── SealedError                   a sealed value cannot be opened
│   ├── KeyErased                 its subject was erased: the key was destroyed, for good
│   └── KeyUnavailable            nothing is known of its key here
├── SettingError                  a workspace setting, argument or environment variable is wrong
└── NotYetSupported               understood, but this version cannot do it; nothing was changed

Each knows whether trying again unchanged can help (`retriable`). The packages above derive their own trees from `TreadleError`.
"""

from __future__ import annotations

__all__ = [
    "ContractError",
    "FieldError",
    "HandleError",
    "KeyErased",
    "KeyUnavailable",
    "NotYetSupported",
    "PartErased",
    "PartMissing",
    "SealedError",
    "SettingError",
    "TreadleError",
    "UnknownType",
    "shown",
]


def shown(value: object, limit: int = 80) -> str:
    """`value` as an error message shows it: its repr, cut to `limit` characters, so that a message never carries a whole payload."""
    if isinstance(value, str | bytes) and len(value) > limit:
        return f"{value[:limit]!r}... ({len(value)} long)"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


class TreadleError(Exception):
    """Base of all errors that treadle raises on purpose.

    `retriable` says whether the same call can succeed later without a change; `exit_code` is what a command returns.
    """

    retriable: bool = False
    exit_code: int = 1


class ContractError(TreadleError):
    """A value from outside breaks a contract."""


class FieldError(ContractError):
    """One field has a wrong type, range or size. `field` is its JSON path, `problem` what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class UnknownType(ContractError):
    """An event type, or the major version of a known one, that this reader does not know."""


class PartMissing(ContractError):
    """An interaction names a part of its episode that is not there. It may still come."""

    retriable = True

    def __init__(self, part: str) -> None:
        super().__init__(f"part {part} of the episode is not there: read its records of type dev.treadle.part.v1 first")
        self.part = part


class PartErased(ContractError):
    """An interaction names a part whose content was erased."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"part {part} of the episode was erased: {shown(reason)}")
        self.part = part
        self.reason = reason


class HandleError(ContractError):
    """A string that should be a handle (`workspace/episode/interaction`) or a release id (`workspace/slot/rN`) is none."""


class SettingError(TreadleError):
    """A workspace setting, argument or environment variable is wrong. The message names it, its value and the way out."""

    exit_code = 2


class SealedError(TreadleError):
    """A sealed value cannot be opened. `key_id` names the key, which says nothing of the subject."""

    def __init__(self, key_id: str, message: str) -> None:
        super().__init__(message)
        self.key_id = key_id


class KeyErased(SealedError):
    """The subject of a sealed value was erased: its key was destroyed, and nobody can read it any more."""

    def __init__(self, key_id: str) -> None:
        super().__init__(key_id, f"key {key_id} was destroyed: what it sealed is erased")


class KeyUnavailable(SealedError):
    """Nothing is known of a key here, not even that it was destroyed. All machines of a workspace need the same key store."""

    retriable = True
    exit_code = 5

    def __init__(self, key_id: str, where: str) -> None:
        super().__init__(
            key_id,
            f"key {key_id} is not in the key store {where}, and was not destroyed there: mount the store that all machines of the "
            "workspace share, or name it with TREADLE_KEYS",
        )
        self.where = where


class NotYetSupported(TreadleError):
    """The request is understood, but this version cannot do it. Nothing was changed."""

    exit_code = 2
