"""Which episodes an import's interactions belong to: on disk, so that memory stays bounded whatever the size of the log."""

from __future__ import annotations

import sqlite3
from types import TracebackType
from typing import Self


class Episodes:
    """interaction_id -> episodes, in a temporary SQLite file that is gone with the object."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # an empty name is a temporary file, kept in memory while small
        self._database.execute(
            "CREATE TABLE seen (interaction TEXT, episode TEXT, PRIMARY KEY (interaction, episode)) WITHOUT ROWID"
        )

    def add(self, interaction_id: str, episode_id: str) -> None:
        """One more interaction was sent."""
        self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (interaction_id, episode_id))

    def of(self, interaction_id: str) -> list[str]:
        """The episodes in which it was sent, sorted; usually one."""
        rows = self._database.execute(
            "SELECT episode FROM seen WHERE interaction = ? ORDER BY episode", (interaction_id,)
        )
        return [episode for (episode,) in rows]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database.close()
