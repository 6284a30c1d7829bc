"""What is left of a row whose episode was erased: that it was there. Pure.

An erasure takes an episode away as a whole, and wins over whatever is said in it before or after, so nothing of what is left may depend on
what came first: the ids, and of the row's time the earliest end. No outcome, right, part or name is kept, and no hash of a text.
"""

from __future__ import annotations

from treadle_schemas.records import Grade

from treadle_streams.join.state import ERASED_GROUP, Captured, RowState, nothing_of

__all__ = ["erased_grade", "forget", "is_empty"]


def is_empty(captured: Captured) -> bool:
    """Is it what `nothing_of` leaves?"""
    # without a task the group of anything else is a hash
    return captured.task_id is None and captured.group == ERASED_GROUP


def forget(row: RowState) -> bool:
    """Leave nothing in a row but that it was there. False: it was so already."""
    changed = row.lost or bool(row.outcomes or row.retracted_ids or row.retracted_until or row.rights or row.imports)
    if row.captured is not None and not is_empty(row.captured):
        row.captured = nothing_of(row.captured, row.episode_id, row.interaction_id)
        changed = True
    row.outcomes.clear()
    row.retracted_ids.clear()
    row.retracted_until.clear()
    row.rights.clear()
    row.imports.clear()
    row.outcome_bytes = row.said_ms = row.after = 0
    row.complained = row.waiting = row.parked = row.lost = False
    return changed


def erased_grade(version: int) -> Grade:
    """The grade of such a row: nothing is waited for."""
    return Grade(metrics={}, reward=None, completeness=1.0, settled=True, grading_version=version)
