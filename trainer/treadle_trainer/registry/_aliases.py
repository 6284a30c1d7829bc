"""Who is champion, who was before: pure values and the two moves, promotion and rollback."""

from __future__ import annotations

import msgspec
from treadle_schemas import ReleaseEvent

__all__ = ["Aliases"]


class Aliases(msgspec.Struct, frozen=True, kw_only=True):
    """The content of aliases.json. Replacing that file is the one step that moves the champion; everything else follows from it.

    Numbers are those of `rN`.
    """

    champion: int | None = None
    history: tuple[int, ...] = ()
    """The champions before, newest last. A promotion pushes, a rollback only pops: it can never toggle between two."""
    quarantined: dict[str, str] = {}
    """Number as text -> why. A quarantined release is promoted by force only and never rolled back to."""
    entries: tuple[ReleaseEvent, ...] = ()
    """Audit entries of the newest move. A crash may leave them out of the audit log; the next open puts them there."""

    @property
    def predecessor(self) -> int | None:
        """The newest champion before this one that is not quarantined."""
        return next((n for n in reversed(self.history) if str(n) not in self.quarantined), None)

    def promoted(self, number: int) -> Aliases:
        """After `number` became champion."""
        history = self.history if self.champion is None else (*self.history, self.champion)
        return Aliases(champion=number, history=history, quarantined=self.quarantined)

    def rolled_back(self, *, quarantine: str | None) -> Aliases | None:
        """After a rollback to the predecessor, None without one. `quarantine` says why the present champion is never to return."""
        quarantined = dict(self.quarantined)
        if quarantine is not None and self.champion is not None:
            quarantined[str(self.champion)] = quarantine
        left = list(self.history)
        while left and (str(left[-1]) in quarantined or left[-1] == self.champion):
            left.pop()
        if not left:
            return None
        return Aliases(champion=left[-1], history=tuple(left[:-1]), quarantined=quarantined)
