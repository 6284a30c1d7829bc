"""What the next version would be: which rows are decided anew, where each stands then, and what that changes.

Everything that is remembered here only makes the next version cheap: forgotten, all rows are looked at again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from treadle_corpus._affected import Affected
from treadle_corpus._decide import decide
from treadle_corpus._lines import Lines, merged
from treadle_corpus._rows import Key, RowMeta, Status
from treadle_corpus._state import State
from treadle_corpus._stored import BLOCK_ROWS, StoredRows
from treadle_corpus._tally import Counts
from treadle_corpus.policy import Policy
from treadle_corpus.selector import Selector

__all__ = ["Draft", "Drafts"]


@dataclass(frozen=True)
class Draft:
    """Every row decided, nothing written."""

    changed: dict[Key, RowMeta]
    """Rows that another status or decision changed."""
    moved: dict[Key, RowMeta]
    """Rows that the version holds otherwise than the one before."""
    came: list[Key]
    went: list[Key]
    counts: Counts


class Drafts:
    """Makes one draft after the other of a state that grows."""

    def __init__(self, state: State, stored: StoredRows) -> None:
        self._state = state
        self._stored = stored
        self._lines = Lines(stored.lines)
        self._counts: Counts | None = None
        self._affected: Affected | None = None
        self._members: list[Key] | None = None

    @property
    def counts(self) -> Counts:
        """How many rows stand where, since the last draft that was settled."""
        return self._counts or Counts.of(self._state.rows.values())

    def folded(self, key: Key, before: RowMeta | None, after: RowMeta, line: bytes | None) -> None:
        """A row changed since; its line now, if it is at hand."""
        self._lines.offer(key, line)
        if self._affected is not None:
            self._affected.change(key, before, after)
        if self._counts is not None:
            self._counts.replace(before, after)

    def draft(self, selector: Selector, policy: Policy) -> Draft:
        """Decide the rows.

        1. decide what is undecided (everything, when the selector is another one), and sketch what near-duplicates need
        2. statuses of all rows that what changed can move, and what changed since the version before
        3. count

        Raises CorpusDamaged.
        """
        before = self._state.rows
        decided = self._decided(self._scope(selector, policy), selector)  # 1
        if policy.near is not None:
            decided = self._stored.sketched(decided)
        statuses = decide(decided, policy, self._state.control.watermark_ms)  # 2
        changed: dict[Key, RowMeta] = {}
        for key, meta in decided.items():
            after = _with_status(meta, statuses[key])
            if after is not before[key]:
                changed[key] = after
        moved = {
            key: meta
            for key in self._state.touched | changed.keys()
            if (meta := changed.get(key) or before[key]).published != _line(meta)
        }
        counts = (  # 3
            Counts.of(changed.get(key, meta) for key, meta in before.items())
            if self._counts is None
            else self._counts.changed((before[key], meta) for key, meta in changed.items())
        )
        return Draft(
            changed=changed,
            moved=moved,
            came=[key for key, meta in moved.items() if not meta.published],
            went=[key for key, meta in moved.items() if meta.status != "member"],
            counts=counts,
        )

    def members(self, draft: Draft) -> list[Key]:
        """Members of the version that a draft makes, sorted."""
        if self._members is not None:
            return merged(self._members, draft.came, draft.went)
        rows = self._state.rows
        return sorted(key for key, meta in rows.items() if (draft.changed.get(key) or meta).status == "member")

    def content_hash(self, members: list[Key], draft: Draft) -> str:
        """content_hash over members, from the first change on. Raises CorpusDamaged."""
        return self._lines.digest(members, draft.moved)

    def settle(self, draft: Draft, members: list[Key] | None = None) -> None:
        """The draft was committed, and made a version of `members`: from here on only changes are looked at."""
        if members is not None:
            self._members = members
        self._counts = draft.counts
        if self._affected is None:
            self._affected = Affected(self._state.rows)
        self._affected.settle()

    def _scope(self, selector: Selector, policy: Policy) -> Mapping[Key, RowMeta]:
        """The rows to decide: all, or those that what changed since the last draft can move."""
        rows, control = self._state.rows, self._state.control
        if selector.identity != control.selector or control.policy != policy:
            return rows
        if self._affected is None or self._counts is None or not _by_equality(policy):
            return rows
        return {key: rows[key] for key in self._affected.take(rows)}

    def _decided(self, scope: Mapping[Key, RowMeta], selector: Selector) -> dict[Key, RowMeta]:
        fresh = selector.identity != self._state.control.selector
        asked = [key for key, meta in scope.items() if meta.settled and (fresh or meta.decision == "undecided")]
        decided = dict(scope)
        for start in range(0, len(asked), BLOCK_ROWS):
            block = asked[start : start + BLOCK_ROWS]
            decisions = selector.select(list(self._stored.graded(block)))
            for key, decision in zip(block, decisions, strict=True):
                if decided[key].decision != decision:
                    decided[key] = msgspec.structs.replace(decided[key], decision=decision)
        return decided


def _by_equality(policy: Policy) -> bool:
    """Whether a row's status depends on the row itself and on those that equal it, as `_affected` has it. Near-duplicates and retention
    depend on more, and so may what is not known here.
    """
    known = ("filter", "require", "rights", "name", "threshold")
    return policy.dedupe in ("id", "exact") and policy == Policy(
        dedupe=policy.dedupe, **{name: getattr(policy, name) for name in known}
    )


def _line(meta: RowMeta) -> bytes:
    """What a version made now would hold of the row."""
    return meta.line if meta.status == "member" else b""


def _with_status(meta: RowMeta, status: Status) -> RowMeta:
    return meta if meta.status == status else msgspec.structs.replace(meta, status=status)
