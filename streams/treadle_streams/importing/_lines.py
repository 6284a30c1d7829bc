"""From lines of a file to the values of events. Pure but for reading the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from treadle_schemas.canonical import loads
from treadle_schemas.errors import ContractError, FieldError
from treadle_schemas.events import default_outcome_id, read_interaction, read_outcome

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""Longest line that is read into memory: twice the largest event, for what escapes and spaces add."""
SOURCE_WORKSPACE: Final = "source_workspace"

_PLACEHOLDER_ID = "none"


class BadLine(NamedTuple):
    """A line that was left out, and why."""

    file: str
    line: int
    """Counting from 1."""
    reason: str


class Lines:
    """The objects of a JSON-lines file, one line in memory at a time. `bytes_read` tells how far it has got."""

    def __init__(self, path: Path, longest: int = MAX_LINE_BYTES) -> None:
        self.path = path
        self.bytes_read = 0
        self._longest = longest

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any] | BadLine]]:
        """(line number, its object or what is wrong with it). Empty lines are skipped. Raises OSError."""
        with self.path.open("rb") as file:
            number = 0
            while raw := file.readline(self._longest + 1):
                number += 1
                self.bytes_read += len(raw)
                too_long = len(raw) > self._longest
                while too_long and not raw.endswith(b"\n") and (raw := file.readline(self._longest)):
                    self.bytes_read += len(raw)
                if too_long:
                    yield number, self.bad(number, f"is longer than {self._longest} bytes")
                elif raw.strip():
                    yield number, self._object(number, raw)

    def bad(self, number: int, reason: object) -> BadLine:
        """A bad line of this file."""
        return BadLine(str(self.path), number, str(reason))

    def _object(self, number: int, raw: bytes) -> dict[str, Any] | BadLine:
        try:
            value = loads(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)
        except ContractError as err:
            return self.bad(number, err)
        return value if isinstance(value, dict) else self.bad(number, f"is a {type(value).__name__}, not an object")


def interaction_of(line: dict[str, Any]) -> tuple[dict[str, Any], str, str]:
    """The value of the event, its episode and its interaction id. Raises FieldError naming the field."""
    value = _tagged(line)
    event = read_interaction(value)
    return value, event.episode, event.interaction_id


def outcome_of(line: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The value of the event, with an outcome_id, and the interaction whose episode it should be told (None: it needs none).

    Raises FieldError naming the field.
    """
    value = _tagged(line)
    identified = value.get("outcome_id") is not None or value.get("op") == "retract"
    event = read_outcome(value if identified else {**value, "outcome_id": _PLACEHOLDER_ID})
    if not identified:
        value["outcome_id"] = default_outcome_id(event)
    return value, event.interaction_id if event.episode_id is None else None


def _tagged(line: dict[str, Any]) -> dict[str, Any]:
    # the workspace is the one that the import was told, the line's own is kept as a tag
    value = dict(line)
    if "workspace" in value:
        name = value.pop("workspace")
        tags = value.get("tags")
        if tags is not None and not isinstance(tags, dict):
            raise FieldError("$.tags", "is not an object")
        value["tags"] = {SOURCE_WORKSPACE: name, **(tags or {})}
    return value
