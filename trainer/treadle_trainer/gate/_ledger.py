"""Alpha is spent per generation of held-out groups.

Each decision on the same groups is one more chance of being fooled by them, and the champion itself was chosen on them. So the k-th
decision on a generation gets alpha / (k (k + 1)), which sums to alpha over all k. Groups that arrive later were never used: once they are
enough for a decision of their own they open the next generation, and from then on decisions are made on them alone. A single new group
beside old ones opens nothing: that would hand out the same evidence again with a fresh alpha.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
from treadle_schemas import content_hash

__all__ = ["Chosen", "Generation", "GenerationLedger", "group_key"]


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """Held-out groups that became usable together, and what each decision on them was given."""

    groups: frozenset[str] = frozenset()
    """Keys of its groups (`group_key`)."""
    spent: tuple[tuple[str, float], ...] = ()
    """(decision key, alpha given), in order."""


class Chosen(NamedTuple):
    """What a decision may use: the ledger with it in, its alpha, and the keys of the groups to judge by."""

    ledger: GenerationLedger
    alpha: float
    groups: frozenset[str]


class GenerationLedger(msgspec.Struct, frozen=True, kw_only=True):
    """What a slot has spent. Immutable: `spend` and `spend_whole` return the next one."""

    generations: tuple[Generation, ...] = ()
    """Of groups that are used again, oldest first."""
    whole: tuple[tuple[str, float], ...] = ()
    """(decision key, alpha given) of decisions on tasks that were drawn for them alone."""

    def spend(self, key: str, groups: Iterable[str], alpha: float, *, min_groups: int = 1) -> Chosen:
        """What decision `key` may use of the held-out `groups` that are there.

        The newest generation, unless at least `min_groups` groups were in none so far: these open the next. The same key again gets what
        it got, so a repeated job is one decision. A generation of fewer than `min_groups` decides nothing, and nothing is spent on it.
        """
        here = {group_key(group) for group in groups}
        for known in self.generations:
            for decided, share in known.spent:
                if decided == key:
                    return Chosen(self, share, known.groups & here)
        fresh = here.difference(*(one.groups for one in self.generations))
        opened = list(self.generations)
        if not opened or len(fresh) >= min_groups:
            opened.append(Generation(groups=frozenset(fresh)))
        last = opened[-1]
        k = len(last.spent) + 1
        share = max(0.0, min(alpha - sum(given for _, given in last.spent), alpha / (k * (k + 1))))
        usable = last.groups & here
        if len(usable) < min_groups:
            return Chosen(self, share, usable)
        opened[-1] = Generation(groups=last.groups, spent=(*last.spent, (key, share)))
        return Chosen(GenerationLedger(generations=tuple(opened), whole=self.whole), share, usable)

    def spend_whole(self, key: str, alpha: float) -> Chosen:
        """The same for tasks that were drawn fresh for this decision and will never be used again: it may spend all of alpha."""
        for decided, share in self.whole:
            if decided == key:
                return Chosen(self, share, frozenset())
        return Chosen(
            GenerationLedger(generations=self.generations, whole=(*self.whole, (key, alpha))), alpha, frozenset()
        )


def group_key(group: str) -> str:
    """The name of a held-out group in the ledger: 16 hex digits, so that no task text is kept there."""
    return content_hash(group)[:16]
