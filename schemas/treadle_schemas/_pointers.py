"""JSON pointers (RFC 6901) to places that hold null, where a part belongs."""

from __future__ import annotations

from typing import Any

from treadle_schemas.errors import FieldError, shown

__all__ = ["escaped", "place", "put"]


def put(root: Any, pointer: str, item: Any) -> Any:
    """`root` with `item` at a place that holds null; the containers on the way are copied."""
    steps = place(root, pointer)
    top = at = root.copy()
    for key in steps[:-1]:
        at[key] = at[key].copy()
        at = at[key]
    at[steps[-1]] = item
    return top


def place(root: Any, pointer: str) -> list[Any]:
    """The keys and indices of a JSON pointer (RFC 6901) to a place that holds null. Raises FieldError."""
    steps: list[Any] = []
    at = root
    for text in pointer.split("/")[1:] if pointer.startswith("/") else ():
        name = text.replace("~1", "/").replace("~0", "~")
        key: Any = name
        if isinstance(at, list):
            key = int(name) if name.isdecimal() and name.isascii() and int(name) < len(at) else None
        elif not isinstance(at, dict) or name not in at:
            key = None
        if key is None:
            raise FieldError("$.claims", f"{shown(pointer)} names no place")
        steps.append(key)
        at = at[key]
    if not steps or at is not None:
        raise FieldError("$.claims", f"{shown(pointer)} does not name a place that holds null")
    return steps


def escaped(key: str) -> str:
    """A key as one step of a pointer."""
    return key.replace("~", "~0").replace("/", "~1")
