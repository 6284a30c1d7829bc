"""What a grader has spent: a small file, written before each call, so that no restart forgets a call that was made."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from treadle_schemas.errors import SettingError
from treadle_schemas.moments import now

from treadle_streams.grader.config import GraderConfig
from treadle_streams.grader.errors import BudgetSpent
from treadle_streams.grader.verdict import Usage

__all__ = ["Budget", "Spent", "read_spent"]

_KINDS: Final = ("calls", "tokens", "usd")


class Spent(msgspec.Struct, kw_only=True):
    """What was spent on one day (UTC) and ever. What is set aside for calls under way is in it."""

    day: str = ""
    calls_per_day: int = 0
    tokens_per_day: int = 0
    usd_per_day: float = 0.0
    calls_total: int = 0
    tokens_total: int = 0
    usd_total: float = 0.0

    def add(self, calls: int, tokens: int, usd: float) -> None:
        """Add to the day and to the total; negative numbers give back."""
        for kind, amount in zip(_KINDS, (calls, tokens, usd), strict=True):
            for period in ("per_day", "total"):
                name = f"{kind}_{period}"
                # never below zero: a call that ends after midnight gives back to a day that did not set it aside
                setattr(self, name, max(type(amount)(0), getattr(self, name) + amount))


class Budget:
    """Sets aside before a call, settles after it. May be used from any thread.

    A limit is passed by no more than the estimates are wrong: a call is refused when what is spent and set aside reaches the limit, or when
    its own estimate would go beyond it. What a killed process had set aside stays spent.
    """

    def __init__(self, config: GraderConfig, path: Path, clock: Callable[[], str] = now) -> None:
        self._limits = {
            f"{kind}_{period}": getattr(config, f"{kind}_{period}")
            for kind in _KINDS
            for period in ("total", "per_day")
        }
        self._path, self._clock = path, clock
        self._lock = threading.Lock()
        self.spent = read_spent(path)

    def set_aside(self, usage: Usage) -> None:
        """Make room for one call. Raises BudgetSpent, having set nothing aside."""
        amounts = (1, usage.input_tokens + usage.output_tokens, usage.usd)
        with self._lock:
            self._roll()
            for name, limit in self._limits.items():
                if limit is None:
                    continue
                amount = amounts[_KINDS.index(name.partition("_")[0])]
                before = getattr(self.spent, name)
                if before >= limit or before + amount > limit:
                    period = "ever" if name.endswith("total") else f"on {self.spent.day}"
                    raise BudgetSpent(
                        f"{name} is {limit:g}, {before:g} are spent {period} and the next call may take {amount:g}",
                        for_good=name.endswith("total"),
                    )
            self.spent.add(*amounts)
            self._write()

    def settle(self, estimate: Usage, used: Usage) -> None:
        """Put what a call used in the place of what was set aside for it."""
        with self._lock:
            self._roll()
            tokens = used.input_tokens + used.output_tokens - estimate.input_tokens - estimate.output_tokens
            self.spent.add(0, tokens, used.usd - estimate.usd)
            self._write()

    def _roll(self) -> None:
        day = self._clock()[:10]
        if day != self.spent.day:
            self.spent.day = day
            self.spent.calls_per_day, self.spent.tokens_per_day, self.spent.usd_per_day = 0, 0, 0.0

    def _write(self) -> None:
        part = self._path.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(self.spent))
        os.replace(part, self._path)


def read_spent(path: Path) -> Spent:
    """What the file says. Raises SettingError for one that cannot be read: an unknown sum is not zero."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Spent)
    except FileNotFoundError:
        return Spent()
    except (OSError, msgspec.DecodeError) as err:
        raise SettingError(
            f"{path}: what was spent cannot be read ({err}). Correct it, or remove it to begin at zero"
        ) from None
