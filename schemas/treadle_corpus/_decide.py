"""Which rows are in a version. Pure: a function of the rows' last settled revisions and the policy, in no particular order."""

from __future__ import annotations

from collections.abc import Mapping

from treadle_corpus._rows import Key, RowMeta, Status

__all__ = ["decide"]

_BOTH_SIDES = 3


def decide(rows: Mapping[Key, RowMeta], dedupe: str) -> dict[Key, Status]:
    """The status of every row. Each `decision` must be made.

    In this order, so that what leaves early cannot push out another row:
    1. not settled any more: pending; not to be used whatever the filter says: erased, redacted, rights; settled revisions on both
       sides of the split: split_moved, for good;
    2. the filter: rejected, or unknown;
    3. leak: a train row whose normalised messages equal those of a held-out row that is still in;
    4. dedupe, inside a side: of rows with equal messages and tools the best reward wins (none is the lowest), then the smallest id.
    """
    statuses: dict[Key, Status] = {key: _alone(meta) for key, meta in rows.items()}
    heldout = {rows[k].twin for k, s in statuses.items() if s == "member" and rows[k].side == "heldout"}
    for key, status in statuses.items():
        if status == "member" and rows[key].side == "train" and rows[key].twin in heldout:
            statuses[key] = "leak"
    if dedupe == "exact":
        best: dict[tuple[str, bytes], Key] = {}
        for key, status in statuses.items():
            if status == "member":
                group = (rows[key].side, rows[key].exact)
                if group not in best or _rank(key, rows[key]) < _rank(best[group], rows[best[group]]):
                    best[group] = key
        winners = set(best.values())
        for key, status in statuses.items():
            if status == "member" and key not in winners:
                statuses[key] = "duplicate"
    return statuses


def _alone(meta: RowMeta) -> Status:
    if not meta.settled:
        return "pending"
    if meta.drop:
        return meta.drop
    if meta.sides == _BOTH_SIDES:
        return "split_moved"
    match meta.decision:
        case "selected":
            return "member"
        case "rejected":
            return "rejected"
        case "pending" | "absent":
            return "unknown"
        case "undecided":
            raise AssertionError("a settled row must be decided before it gets a status")


def _rank(key: Key, meta: RowMeta) -> tuple[float, Key]:
    return (-meta.reward if meta.reward is not None else float("inf"), key)
