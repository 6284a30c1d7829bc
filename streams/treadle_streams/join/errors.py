"""Every error of the join's domain.

SettingError (treadle_schemas.errors)
└── RewardError           the reward expression is not one; knows the position and what was probably meant

ContractError (treadle_schemas.errors)
└── StateError            bytes that should be join state are none: written by a newer treadle, or damaged

An event that breaks a contract raises nothing here: it becomes a dead letter with its reason, and the stream goes on.
"""

from __future__ import annotations

from treadle_schemas.errors import ContractError, SettingError

__all__ = ["RewardError", "StateError"]


class RewardError(SettingError):
    """The reward expression is not one.

    `position` is the 0-based character at which it goes wrong (None: not known), `suggestion` the nearest known name, if any.
    """

    def __init__(
        self, expression: str, problem: str, *, position: int | None = None, suggestion: str | None = None
    ) -> None:
        where = "" if position is None else f" at character {position + 1}"
        hint = "" if suggestion is None else f" Did you mean {suggestion!r}?"
        super().__init__(f"reward {expression!r}{where}: {problem}.{hint}")
        self.expression = expression
        self.problem = problem
        self.position = position
        self.suggestion = suggestion


class StateError(ContractError):
    """Bytes that should be join state are none."""
