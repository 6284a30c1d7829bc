"""The fold: (row, event) -> (row, losers), and the evaluation of a row under the clock. Pure and free of order.

What a row keeps after any permutation of its events is the same: of interactions the smaller (ended_at, content hash), of what was said
of it what `ledger` keeps. An interaction that loses is a dead letter `conflict`, whichever came first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from treadle_schemas import codec
from treadle_schemas.canonical import content_hash, loads

from treadle_streams.join.arrivals import Arrival, InteractionEvent, OutcomeEvent, Refused, RightsEvent, RowEvent
from treadle_streams.join.contents import Availability
from treadle_streams.join.credit import Share, share
from treadle_streams.join.emissions import Emission, graded, graded_hash, graded_tail, progress, progress_hash
from treadle_streams.join.episode_state import EpisodeState
from treadle_streams.join.erasing import erased_grade
from treadle_streams.join.grading import Grading, counted
from treadle_streams.join.ledger import Taken, known_headers, lost, take_outcome, take_retract, take_right
from treadle_streams.join.state import NEVER_MS, Captured, RowState

__all__ = ["Evaluated", "FoldResult", "evaluate", "fold", "unsettled"]


@dataclass(slots=True)
class FoldResult:
    """The row, whether it changed, and what lost against what is kept."""

    row: RowState
    changed: bool
    refused: list[Refused]


@dataclass(slots=True)
class Evaluated:
    """What an evaluation has to say: records to write, and what becomes a dead letter."""

    emissions: list[Emission]
    refused: list[Refused]


def fold(row: RowState | None, event: RowEvent, workspace: str) -> FoldResult:
    """Take one event into its row. The row is changed in place; a new one is made where there was none."""
    row = row or RowState(event.episode_id, event.interaction_id)
    if isinstance(event, InteractionEvent):
        result = _interaction(row, event, workspace)
    else:
        taken = _said(row, event, workspace)
        result = FoldResult(row, taken.changed, list(taken.refused))
        if isinstance(event, RightsEvent) or event.op == "retract":
            row.said_ms = max(row.said_ms, event.arrival.append_ms)
    if result.changed and event.import_id is not None:
        row.imports.add(event.import_id)
    return result


def evaluate(
    row: RowState,
    grading: Grading,
    clock_ms: int,
    *,
    partition: int,
    graded_at: str,
    import_open: Callable[[str], bool],
    workspace: str = "",
    content: Availability = "whole",
    episode: EpisodeState | None = None,
) -> Evaluated:
    """Grade the row as of `clock_ms`, raise its revision where its content changed, and set when time changes it next.

    `episode` is what is kept of its episode as a whole, None where that is nothing.
    While an import that touched the row is not over, the row's time stands still: what was absent stays absent, nothing else goes absent.
    While a part that it names is `missing` the row does not settle; when its time is up a dead letter `part_missing` says so, once.
    """
    captured = row.captured
    if episode is not None and episode.erased:
        return Evaluated(_erased(row, grading, partition, graded_at), [])
    said_of_all = share(row, episode, grading.settings.credit)
    if captured is not None:
        row.imports |= said_of_all.imports
    if row.imports:
        row.imports = {import_id for import_id in row.imports if import_open(import_id)}
    if row.version != grading.settings.grading_version:
        grading.refit(row.outcomes)
        row.version = grading.settings.grading_version
    if captured is None:
        row.deadline_ms, row.parked = NEVER_MS, False
        return Evaluated([], [])
    if not row.imports:
        row.lapsed_ms = max(row.lapsed_ms, clock_ms)
    outcomes = counted(row, said_of_all)
    grade, next_ms = grading.grade(row, row.lapsed_ms, said_of_all, outcomes)
    refused: list[Refused] = []
    row.waiting = content == "missing"
    if row.waiting:
        grade = msgspec.structs.replace(grade, settled=False)
        patience_ms = grading.patience_ms(row)
        if row.complained or row.lapsed_ms <= patience_ms:
            next_ms = next_ms if row.complained else min(next_ms, patience_ms)
        else:
            row.complained = True
            refused.append(_incomplete(row, captured, partition, workspace))
    row.settled = grade.settled
    row.parked = bool(row.imports) and next_ms < NEVER_MS
    row.deadline_ms = NEVER_MS if row.parked else next_ms
    emissions: list[Emission] = []
    if grade.settled or row.revision:
        tail = graded_tail(_in_force(row, captured, said_of_all), content == "erased", outcomes)
        fingerprint = graded_hash(captured, grade, tail)
        if fingerprint != row.graded_hash:
            row.revision += 1
            row.graded_hash = fingerprint
            emissions.append(graded(row, captured, grade, partition, graded_at, outcomes, tail))
    said = progress_hash(row, captured, grade)
    if said != row.progress_hash:
        row.progress_hash = said
        emissions.append(progress(row, captured, grade))
    return Evaluated(emissions, refused)


def _erased(row: RowState, grading: Grading, partition: int, graded_at: str) -> list[Emission]:
    """What is to be said of a row that `forget` has emptied."""
    captured, version = row.captured, grading.settings.grading_version
    row.version, row.deadline_ms = version, NEVER_MS
    if captured is None:
        return []
    row.settled = True
    grade, tail = erased_grade(version), graded_tail({}, True)
    emissions: list[Emission] = []
    fingerprint = graded_hash(captured, grade, tail)
    if fingerprint != row.graded_hash:
        row.revision += 1
        row.graded_hash = fingerprint
        emissions.append(graded(row, captured, grade, partition, graded_at, (), tail))
    said = progress_hash(row, captured, grade, erased=True)
    if said != row.progress_hash:
        row.progress_hash = said
        emissions.append(progress(row, captured, grade, erased=True))
    return emissions


def _said(row: RowState, event: OutcomeEvent | RightsEvent, workspace: str) -> Taken:
    if isinstance(event, RightsEvent):
        return take_right(row, event.right, event.observed_us, event.value)
    seen = event.seen
    if event.op == "retract":
        return take_retract(row, seen.name, seen.outcome_id, seen.observed_us, event.arrival)
    return take_outcome(row, seen, event.arrival, workspace)


def _interaction(row: RowState, event: InteractionEvent, workspace: str) -> FoldResult:
    first_ms = min(row.append_ms, event.captured.append_ms)
    moved, row.append_ms = first_ms != row.append_ms, first_ms
    old, new = row.captured, event.captured
    if old is None:
        row.captured = new
        return FoldResult(row, True, [])
    if old.body == new.body:
        return FoldResult(row, moved, [])
    old_rank, new_rank = _interaction_rank(old), _interaction_rank(new)
    if old_rank == new_rank:
        return FoldResult(row, moved, [])
    if old_rank < new_rank:
        return FoldResult(
            row, moved, [lost(event.arrival, "an interaction with an earlier ended_at", new_rank, old_rank)]
        )
    row.captured = new
    headers = known_headers(codec.INTERACTION, workspace, old.import_id)
    loser = Arrival(
        "interactions",
        event.arrival.partition,
        old.offset,
        old.append_ms,
        row.episode_id.encode(),
        old.body,
        headers,
        old.key_id,
    )
    return FoldResult(row, True, [lost(loser, "an interaction with an earlier ended_at", old_rank, new_rank)])


def _in_force(row: RowState, captured: Captured, said_of_all: Share) -> dict[str, str]:
    """What is denied of a row: its interaction says how it begins, later words about it or its whole episode change it."""
    said = dict.fromkeys(captured.denied, "deny")
    for name in {*row.rights, *said_of_all.rights}:
        _, said[name] = max(rights[name] for rights in (row.rights, said_of_all.rights) if name in rights)
    return {name: value for name, value in said.items() if value == "deny"}


def unsettled(row: RowState, captured: Captured, partition: int, workspace: str) -> Refused:
    """The dead letter of a row that ends without having settled."""
    return Refused(_copy(row, captured, partition, workspace), "row_expired", "its time is over, and it never settled")


def _incomplete(row: RowState, captured: Captured, partition: int, workspace: str) -> Refused:
    detail = (
        f"its time is up and not all of its parts are there ({', '.join(captured.parts[:3])}); the row stays pending"
    )
    return Refused(_copy(row, captured, partition, workspace), "part_missing", detail)


def _copy(row: RowState, captured: Captured, partition: int, workspace: str) -> Arrival:
    return Arrival(
        "interactions",
        partition,
        captured.offset,
        captured.append_ms,
        row.episode_id.encode(),
        captured.body,
        known_headers(codec.INTERACTION, workspace, captured.import_id),
        captured.key_id,
    )


def _interaction_rank(captured: Captured) -> tuple[int, str]:
    return captured.ended_us, content_hash(loads(captured.body))
