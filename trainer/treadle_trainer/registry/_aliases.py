"""Who serves, who did before, who is kept: pure values and the moves among them."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace
from treadle_schemas import ReleaseEvent

__all__ = ["Aliases"]


class Aliases(msgspec.Struct, frozen=True, kw_only=True):
    """The content of aliases.json. Replacing that file is the one step that moves anything; everything else follows from it.

    Numbers are those of `rN`.
    """

    champion: int | None = None
    history: tuple[int, ...] = ()
    """The champions before, newest last. A promotion pushes, a rollback only pops: it can never toggle between two."""
    champion_term: int = 0
    """Sequence number of the move that made it champion: a second term starts without the evidence of the first."""
    canary: int | None = None
    """On trial: it serves `canary_share` of the episodes beside the champion."""
    canary_share: float = 0.0
    canary_term: int = 0
    """Sequence number of its admission: evidence from an earlier trial does not count for a later one."""
    control: int | None = None
    """Serves `control_share` of the episodes for good: what the lift of everything since is measured against."""
    control_share: float = 0.0
    quarantined: dict[str, str] = {}
    """Number as text -> why. A quarantined release is promoted by force only and never rolled back to."""
    pins: dict[str, str] = {}
    """Number as text -> why. A pinned release is never collected."""
    entries: tuple[ReleaseEvent, ...] = ()
    """Audit entries of the newest move. A crash may leave them out of the audit log; the next open puts them there."""

    @property
    def predecessor(self) -> int | None:
        """The newest champion before this one that is not quarantined."""
        return next((n for n in reversed(self.history) if str(n) not in self.quarantined), None)

    @property
    def serving(self) -> tuple[int, ...]:
        """Champion, canary and control, as far as there are any."""
        return tuple(n for n in (self.champion, self.canary, self.control) if n is not None)

    def promoted(self, number: int, term: int = 0) -> Aliases:
        """After `number` became champion by the move `term`. It leaves quarantine; as canary it has arrived."""
        history = self.history if self.champion is None else (*self.history, self.champion)
        kept = {n: why for n, why in self.quarantined.items() if n != str(number)}
        moved = replace(self, champion=number, champion_term=term, history=history, quarantined=kept, entries=())
        return moved._without_canary() if self.canary == number else moved

    def rolled_back(self, *, quarantine: str | None, term: int = 0) -> Aliases | None:
        """After a rollback to the predecessor, None without one. `quarantine` says why the present champion is never to return."""
        quarantined = dict(self.quarantined)
        if quarantine is not None and self.champion is not None:
            quarantined[str(self.champion)] = quarantine
        left = list(self.history)
        while left and (str(left[-1]) in quarantined or left[-1] == self.champion):
            left.pop()
        if not left:
            return None
        moved = replace(
            self,
            champion=left[-1],
            champion_term=term,
            history=tuple(left[:-1]),
            quarantined=quarantined,
            entries=(),
        )
        # a canary that is the new champion, or was made from the bad one, has nothing left to be tried against
        moved = moved._without_canary() if moved.canary == moved.champion else moved
        return moved._without_control() if str(moved.control) in quarantined else moved

    def admitted(self, number: int, share: float, term: int) -> Aliases:
        """After `number` became the canary."""
        return replace(self, canary=number, canary_share=share, canary_term=term, entries=())

    def withdrawn(self, *, quarantine: str | None) -> Aliases:
        """After the canary went. `quarantine` says why it is never to return."""
        quarantined = dict(self.quarantined)
        if quarantine is not None and self.canary is not None:
            quarantined[str(self.canary)] = quarantine
        return replace(self, quarantined=quarantined, entries=())._without_canary()

    def condemned(self, number: int, why: str) -> Aliases:
        """After a release that serves nothing was quarantined."""
        return replace(self, quarantined={**self.quarantined, str(number): why}, entries=())

    def controlled(self, number: int | None, share: float) -> Aliases:
        """After `number` became the control; None: there is none any more."""
        if number is None:
            return replace(self, entries=())._without_control()
        return replace(self, control=number, control_share=share, entries=())

    def pinned(self, number: int, why: str | None) -> Aliases:
        """After `number` was pinned, or with None unpinned."""
        pins = {n: text for n, text in self.pins.items() if n != str(number)}
        return replace(self, pins=pins if why is None else {**pins, str(number): why}, entries=())

    def _without_canary(self) -> Aliases:
        return replace(self, canary=None, canary_share=0.0)

    def _without_control(self) -> Aliases:
        return replace(self, control=None, control_share=0.0)
