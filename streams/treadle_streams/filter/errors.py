"""The errors of filters.

TreadleError (treadle_schemas.errors)
└── FilterError            the expression is not one that treadle evaluates; it shows where
    ├── FilterSyntaxError  it does not parse, is too long or too deep
    ├── FilterNameError    it names what is neither a column nor a metric that is declared or was seen
    └── FilterTypeError    it is no condition, or compares what cannot be compared
"""

from __future__ import annotations

from treadle_schemas.errors import TreadleError

__all__ = ["FilterError", "FilterNameError", "FilterSyntaxError", "FilterTypeError"]


class FilterError(TreadleError):
    """The expression is not one that treadle evaluates. `position` is the index of the first character concerned, None: all of it."""

    exit_code = 2

    def __init__(self, text: str, problem: str, position: int | None = None, length: int = 1) -> None:
        where = "" if position is None else f" at character {position + 1}"
        shown = "" if position is None else "\n" + _pointer(text, position, length)
        super().__init__(f"filter{where}: {problem}{shown}")
        self.text = text
        self.problem = problem
        self.position = position


class FilterSyntaxError(FilterError):
    """It does not parse, uses what filters may not use, is too long or too deep."""


class FilterNameError(FilterError):
    """It names what is neither a column nor a metric that is declared or was seen."""


class FilterTypeError(FilterError):
    """It is no condition, or compares what cannot be compared."""


def _pointer(text: str, position: int, length: int) -> str:
    """The line around a position and a row of carets under it."""
    start = text.rfind("\n", 0, position) + 1
    line = text[start:].split("\n", 1)[0]
    column = position - start
    cut = max(0, column - 60)
    line = line[cut : cut + 100]
    return f"  {line}\n  {' ' * (column - cut)}{'^' * max(1, min(length, len(line) - column + cut))}"
