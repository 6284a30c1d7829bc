"""The parts of long contexts that a reader of `.graded` or `.interactions` saw: bounded, and read again from the topic where forgotten."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from treadle_schemas.errors import PartErased, PartMissing
from treadle_schemas.parts import Part, read_part, resolve
from treadle_schemas.records import GradedRow

__all__ = ["PartMemory"]

MAX_BYTES: Final = 64 * 1024 * 1024
"""JSON bytes of parts that are kept; those of the episodes used longest ago go first."""
Again = Callable[[], Iterable[tuple[dict[str, Any], int]]]
"""Gives the part records of an episode, each with its size, once more."""


class PartMemory:
    """Puts rows and interactions together from the parts that came before them."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._episodes: OrderedDict[str, tuple[dict[str, Part], int]] = OrderedDict()

    def take(self, value: dict[str, Any], size: int) -> None:
        """Keep the parts of one record of `size` bytes. Raises FieldError."""
        episode_id, parts = read_part(value)
        known, before = self._episodes.pop(episode_id, ({}, 0))
        for part in parts:
            if part.kind == "erased" or part.hash not in known:
                known[part.hash] = part
        self._episodes[episode_id] = (known, before + size)
        self._bytes += size
        while self._bytes > self._max_bytes and len(self._episodes) > 1:
            _, (_, freed) = self._episodes.popitem(last=False)
            self._bytes -= freed

    def whole(self, row: GradedRow, again: Again) -> GradedRow:
        """The row with its parts put back.

        A row that was erased, and an unsettled one whose parts have not come, stay as they are. Raises PartMissing, FieldError.
        """
        if row.erased:
            return row
        try:
            interaction = self.together(row.episode_id, row.interaction, again)
        except PartErased:
            return row
        except PartMissing:
            if row.grade.settled:
                raise
            return row
        return row if interaction is row.interaction else msgspec.structs.replace(row, interaction=interaction)

    def together(self, episode_id: str, interaction: dict[str, Any], again: Again) -> dict[str, Any]:
        """An interaction's value with its parts put back. `again` reads the part records of its episode anew, where some were forgotten
        or never seen. Raises PartMissing, PartErased, FieldError."""
        for last in (False, True):
            known = self._episodes.get(episode_id, ({}, 0))[0]
            try:
                found = resolve(interaction, known.get)
            except PartMissing:
                if last:
                    raise
                for value, size in again():
                    self.take(value, size)
                continue
            if episode_id in self._episodes:
                self._episodes.move_to_end(episode_id)
            return found
        raise AssertionError("unreachable: the second round returns or raises")
