"""The split group of a row, and whether all is there that it names: where parts and episodes decide it. Works on one batch."""

from __future__ import annotations

import msgspec
from treadle_schemas.canonical import loads
from treadle_schemas.parts import resolve
from treadle_schemas.split import Split, split_group

from treadle_streams.join.contents import Availability, Contents
from treadle_streams.join.episode_state import EpisodeState
from treadle_streams.join.state import Captured, RowState

__all__ = ["Grouping"]


class Grouping:
    """Groups of a workspace with this split."""

    def __init__(self, contents: Contents, split: Split) -> None:
        self._contents = contents
        self._split = split

    def prepare(self, row: RowState, episode: EpisodeState | None) -> Availability:
        """Before a row is graded: is all there that it names? Its side of the split is set by what is there.

        A row without task belongs to the group of its episode's first step; alone, to that of its own messages.
        """
        captured = row.captured
        if captured is None:
            return "whole"
        found: Availability = "whole"
        if captured.parts:
            found = self._contents.availability(row.episode_id, captured.parts, captured.messages)
        group = captured.group
        if captured.task_id is None and episode is not None:
            group = episode.group
        elif not captured.grouped:
            stands_in = captured.parts[0]
            if found != "whole":
                group = stands_in
            elif group == stands_in:
                group = self._by_messages(row.episode_id, captured)
        if group != captured.group:
            row.captured = msgspec.structs.replace(captured, group=group, side=self._split.side(group))
        return found

    def of_messages(self, row: RowState) -> str:
        """The group of a row by its own messages, whatever its task. While they are not all there its first part's name stands in."""
        captured = row.captured
        assert captured is not None
        if captured.parts and self._contents.availability(row.episode_id, captured.parts, captured.messages) != "whole":
            said = loads(captured.body)
            if captured.messages or any(pointer.startswith("/messages/") for pointer in said.get("claims") or ()):
                return captured.parts[0]
            return split_group(None, said["messages"])
        return self._by_messages(row.episode_id, captured)

    def _by_messages(self, episode_id: str, captured: Captured) -> str:
        interaction = loads(captured.body)
        if captured.messages and not interaction["messages"]:
            return self._contents.group(episode_id, captured.parts[0])
        if captured.parts:
            interaction = resolve(interaction, lambda name: self._contents.part(episode_id, name))
        return split_group(None, interaction["messages"])
