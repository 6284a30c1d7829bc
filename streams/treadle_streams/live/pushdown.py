"""What of a filter the text index can select by itself: equalities that must all hold. The filter still decides; this saves looking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlglot import exp

from treadle_streams import filter as filters

__all__ = ["FACETS", "equalities", "facets_of"]

FACETS: Final[Mapping[str, str | None]] = {
    "agent": None,
    "model": None,
    "slot": "main",
    "release": None,
    "task_id": None,
    "status": "ok",
    "subject": None,
}
"""Columns that the text index knows, with what stands in where an interaction says nothing. They are texts of the interaction itself."""
_LONGEST: Final = 1_000
"""Characters of a value: the text index drops words that are much longer."""


def facets_of(captured: Mapping[str, Any]) -> Iterator[str]:
    """The words COLUMN=VALUE of an interaction."""
    for name, default in FACETS.items():
        value = captured.get(name, default)
        if _usable(value):
            yield f"{name}={value}"


def equalities(text: str) -> dict[str, str]:
    """Of a filter the conditions COLUMN = 'VALUE' that every selected row meets. Raises FilterSyntaxError."""
    found: dict[str, str] = {}
    left: list[Any] = [filters.check_syntax(text)]
    while left:
        node = left.pop()
        if isinstance(node, exp.Paren):
            left.append(node.this)
        elif isinstance(node, exp.And):
            left += [node.this, node.expression]
        elif isinstance(node, exp.EQ):
            for column, value in ((node.this, node.expression), (node.expression, node.this)):
                plain = isinstance(column, exp.Column) and not column.table and column.name in FACETS
                if plain and isinstance(value, exp.Literal) and value.is_string and _usable(value.this):
                    found[column.name] = value.this
    return found


def _usable(value: object) -> bool:
    if not isinstance(value, str) or len(value) > _LONGEST:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
