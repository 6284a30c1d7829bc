"""The consumer group's coordinator: members, sessions, generations. Assignments are eager, all at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from simulation.log import Refusal
from simulation.scheduler import Scheduler

__all__ = ["SESSION_S", "Group", "Joined"]

SESSION_S: Final = 6.0
_REBALANCE_S: Final = 60.0
_SYNC_S: Final = 0.05

Heard = Literal["fine", "rebalance", "unknown"]


@dataclass(frozen=True, slots=True)
class Joined:
    """What a member is told when a rebalance is over."""

    generation: int
    member_id: str
    partitions: list[int]


@dataclass(slots=True)
class _Member:
    heard_s: float
    reply: Callable[[Joined], None] | None = None


class Group:
    """One group over the partitions of one workspace."""

    def __init__(self, scheduler: Scheduler, partitions: int) -> None:
        self._scheduler = scheduler
        self._partitions = partitions
        self._members: dict[str, _Member] = {}
        self._numbers = 0
        self._since_s = 0.0
        self.generation = 0
        self.state: Literal["empty", "preparing", "completing", "stable"] = "empty"

    def join(self, member_id: str | None, reply: Callable[[Joined], None]) -> None:
        """A member joins, anew or again; `reply` is called when all have."""
        if member_id is None or member_id not in self._members:
            self._numbers += 1
            member_id = f"m{self._numbers}"
            self._members[member_id] = _Member(self._scheduler.now_s)
        member = self._members[member_id]
        member.heard_s, member.reply = self._scheduler.now_s, reply
        if self.state in ("empty", "stable"):
            self._prepare()
        self._complete()

    def leave(self, member_id: str) -> None:
        """A member goes in order."""
        if self._members.pop(member_id, None) is not None:
            self._rebalance()

    def rebalance(self) -> None:
        """What a change of the topics' metadata brings about: all must join again."""
        if self._members and self.state == "stable":
            self._prepare()

    def heartbeat(self, member_id: str, generation: int) -> Heard:
        """What a member hears when it says that it lives."""
        member = self._members.get(member_id)
        if member is None:
            return "unknown"
        member.heard_s = self._scheduler.now_s
        if generation != self.generation:
            return "unknown"
        return "fine" if self.state == "stable" else "rebalance"

    def check(self, member_id: str, generation: int) -> None:
        """May a member of that generation commit positions? Generation -1 without a member is never checked. Raises Refusal."""
        if generation < 0 and not member_id:
            return
        if member_id not in self._members:
            raise Refusal("UNKNOWN_MEMBER_ID")
        if generation != self.generation:
            raise Refusal("ILLEGAL_GENERATION")
        if self.state == "completing":
            raise Refusal("REBALANCE_IN_PROGRESS")

    def expire(self) -> None:
        """Put out who was silent for too long; a member that waits for the end of a rebalance is not silent."""
        now_s = self._scheduler.now_s
        late = [
            name
            for name, member in self._members.items()
            if member.reply is None
            and (
                now_s - member.heard_s > SESSION_S
                or (self.state == "preparing" and now_s - self._since_s > _REBALANCE_S)
            )
        ]
        for name in late:
            self._scheduler.note("group: session of", name, "is over")
            del self._members[name]
        if late:
            self._rebalance()

    def hold(self, seconds: float) -> None:
        """The coordinator was away: nobody's silence counts."""
        for member in self._members.values():
            member.heard_s += seconds

    def _rebalance(self) -> None:
        if not self._members:
            self.state = "empty"
        elif self.state == "stable":
            self._prepare()
        self._complete()

    def _prepare(self) -> None:
        self.state, self._since_s = "preparing", self._scheduler.now_s

    def _complete(self) -> None:
        if self.state != "preparing" or not self._members:
            return
        if any(member.reply is None for member in self._members.values()):
            return
        self.generation += 1
        self.state = "completing"
        generation = self.generation
        self._scheduler.after(_SYNC_S, lambda: self._synced(generation))

    def _synced(self, generation: int) -> None:
        if self.generation != generation or self.state != "completing":
            return
        self.state = "stable"
        names = list(self._members)
        self._scheduler.random.shuffle(names)
        numbers = list(range(self._partitions))
        self._scheduler.random.shuffle(numbers)
        shares: dict[str, list[int]] = {name: [] for name in names}
        for n, partition in enumerate(numbers):
            shares[names[n % len(names)]].append(partition)
        self._scheduler.note("group: generation", generation, shares)
        for name, member in self._members.items():
            reply, member.reply, member.heard_s = member.reply, None, self._scheduler.now_s
            if reply is not None:
                reply(Joined(generation, name, sorted(shares[name])))
