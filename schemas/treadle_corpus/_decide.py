"""Which rows are in a version. Pure: a function of the rows' last settled revisions and the policy, in no particular order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from treadle_corpus._rows import Key, RowMeta, Status
from treadle_corpus.policy import Policy

__all__ = ["decide"]

_BOTH_SIDES = 3


def decide(rows: Mapping[Key, RowMeta], policy: Policy, watermark_ms: int = 0) -> dict[Key, Status]:
    """The status of every row. Each `decision` must be made, and with near-duplicates on every settled row have its sketch.

    In this order, so that what leaves early cannot push out another row:
    1. not settled any more: pending; not to be used whatever the policy says: erased, redacted, rights; settled revisions on both
       sides of the split: split_moved, for good;
    2. the policy: expired by its retention before `watermark_ms`, rights or incomplete by what it asks for, rejected by its filter, or
       unknown;
    3. leak: a train row whose normalised messages equal those of a held-out row that is still in; with near-duplicates on also one that
       is directly near such a row;
    4. duplicate, inside a side: of rows with equal normalised messages the best reward wins (none is the lowest), then the smallest id;
    5. near_duplicate, inside a side: of the winners that near ones connect, the same one wins.
    """
    oldest_ms = None if policy.retention_s is None else watermark_ms - policy.retention_s * 1000
    statuses: dict[Key, Status] = {key: _alone(meta, oldest_ms) for key, meta in rows.items()}
    _leaks(rows, statuses, policy.near)
    if policy.dedupe == "id":
        return statuses
    for side in ("train", "heldout"):
        members = [key for key in _members(statuses) if rows[key].side == side]
        winners = _winners(rows, statuses, members, [rows[key].twin for key in members], "duplicate")
        if policy.near is not None:
            from treadle_corpus._near import components

            groups = components([rows[key].sketch for key in winners], policy.near)
            _winners(rows, statuses, winners, groups.tolist(), "near_duplicate")
    return statuses


def _leaks(rows: Mapping[Key, RowMeta], statuses: dict[Key, Status], near: float | None) -> None:
    heldout = {rows[key].twin: rows[key].sketch for key in _members(statuses) if rows[key].side == "heldout"}
    train = [key for key in _members(statuses) if rows[key].side == "train"]
    for key in train:
        if rows[key].twin in heldout:
            statuses[key] = "leak"
    if near is not None:
        from treadle_corpus._near import near_any

        left = [key for key in train if statuses[key] == "member"]
        found = near_any([rows[key].sketch for key in left], list(heldout.values()), near)
        for key, leaks in zip(left, found.tolist(), strict=True):
            if leaks:
                statuses[key] = "leak"


def _winners(
    rows: Mapping[Key, RowMeta],
    statuses: dict[Key, Status],
    members: Iterable[Key],
    groups: Iterable[object],
    reason: Status,
) -> list[Key]:
    """The best of each group; the others get `reason`."""
    grouped = list(zip(members, groups, strict=True))
    best: dict[object, Key] = {}
    for key, group in grouped:
        if group not in best or _rank(key, rows[key]) < _rank(best[group], rows[best[group]]):
            best[group] = key
    for key, group in grouped:
        if best[group] != key:
            statuses[key] = reason
    return list(best.values())


def _members(statuses: Mapping[Key, Status]) -> list[Key]:
    return [key for key, status in statuses.items() if status == "member"]


def _alone(meta: RowMeta, oldest_ms: float | None) -> Status:
    if not meta.settled:
        return "pending"
    if meta.drop:
        return meta.drop
    if meta.sides == _BOTH_SIDES:
        return "split_moved"
    if oldest_ms is not None and meta.append_ms < oldest_ms:
        return "expired"
    match meta.decision:
        case "selected":
            return "member"
        case "rejected" | "rights" | "incomplete":
            return meta.decision
        case "pending" | "absent":
            return "unknown"
        case "undecided":
            raise AssertionError("a settled row must be decided before it gets a status")


def _rank(key: Key, meta: RowMeta) -> tuple[float, Key]:
    return (-meta.reward if meta.reward is not None else float("inf"), key)
