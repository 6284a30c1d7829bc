"""Reading a decoded export: typed access by name, and errors that say where."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from treadle_schemas.canonical import loads
from treadle_schemas.errors import FieldError, shown
from treadle_schemas.moments import from_micros, to_micros

__all__ = ["Node", "milliseconds", "turns"]

_NO_ZONE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?")


class Node:
    """An object of the export and its path. Each reader takes several names, since products write one field in several ways."""

    __slots__ = ("path", "value")

    def __init__(self, value: Any, path: str = "$") -> None:
        if not isinstance(value, dict):
            raise FieldError(path, f"is {shown(value)}, not an object")
        self.value: dict[str, Any] = value
        self.path = path

    def __contains__(self, name: str) -> bool:
        return self.value.get(name) is not None

    def where(self, *names: str) -> str:
        """The path of the first of the names that is there."""
        return f"{self.path}.{next((n for n in names if n in self), names[0])}"

    def any(self, *names: str) -> Any:
        """The first of the names that is there and not null, or None."""
        return next((self.value[n] for n in names if n in self), None)

    def text(self, *names: str) -> str | None:
        """A string, or None. The empty string counts as none."""
        found = self.any(*names)
        if found is not None and not isinstance(found, str):
            raise FieldError(self.where(*names), f"is {shown(found)}, not a string")
        return found or None

    def needed(self, *names: str) -> str:
        """A string that has to be there."""
        found = self.text(*names)
        if found is None:
            raise FieldError(self.where(*names), "is missing")
        return found

    def number(self, *names: str) -> int | float | None:
        """A number, also one written as text (products write prices so), or None."""
        found = self.any(*names)
        if isinstance(found, str):
            try:
                found = float(found)
            except ValueError:
                pass
        if found is not None and (isinstance(found, bool) or not isinstance(found, int | float)):
            raise FieldError(self.where(*names), f"is {shown(found)}, not a number")
        return found

    def object(self, *names: str) -> Node | None:
        """An object, also one written as JSON text, or None."""
        found = self.any(*names)
        if isinstance(found, str):
            found = loads(found, self.where(*names)) if found.strip() else None
        return None if found is None else Node(found, self.where(*names))

    def list(self, *names: str) -> list[Any]:
        """A list; empty where it is not there."""
        found = self.any(*names)
        if found is not None and not isinstance(found, list):
            raise FieldError(self.where(*names), f"is {shown(found)}, not a list")
        return found or []

    def nodes(self, *names: str) -> Iterator[tuple[str, Any]]:
        """The items of a list with the path of each."""
        where = self.where(*names)
        for n, item in enumerate(self.list(*names)):
            yield f"{where}[{n}]", item

    def time(self, *names: str) -> str | None:
        """RFC 3339, or None. A time without a zone is UTC, as the products mean it. Numbers are epoch milliseconds."""
        found = self.any(*names)
        if found is None or found == "":
            return None
        where = self.where(*names)
        if isinstance(found, int | float) and not isinstance(found, bool):
            try:
                return from_micros(round(found * 1000))
            except (OverflowError, ValueError):
                raise FieldError(where, f"{shown(found)} is no time") from None
        if isinstance(found, str) and _NO_ZONE.fullmatch(found):
            found = found.replace(" ", "T") + "Z"
        if not isinstance(found, str):
            raise FieldError(where, f"is {shown(found)}, not a time")
        to_micros(found, where)
        return found

    def when(self, *names: str) -> str:
        """A time that has to be there."""
        found = self.time(*names)
        if found is None:
            raise FieldError(self.where(*names), "is missing")
        return found


def turns(node: Node, name: str) -> list[dict[str, Any]]:
    """The messages of a conversation: at least one, each with a role."""
    found = node.list(name)
    if not found:
        raise FieldError(f"{node.path}.{name}", "is missing or empty")
    for path, turn in node.nodes(name):
        Node(turn, path).needed("role")
    return found


def milliseconds(start: str, end: str) -> float:
    """From one time to another; 0 where the clocks disagree."""
    return max(0.0, (to_micros(end, "$") - to_micros(start, "$")) / 1000)
