"""The fold: (row, event) -> (row, losers), and the evaluation of a row under the clock. Pure and free of order.

What a row keeps after any permutation of its events is the same: of interactions the smaller (ended_at, content hash), of outcomes with one
id the greater (observed_at, content hash), of retracts their union. Which outcomes count is decided at grading only. Every event that
loses is a dead letter `conflict`, whichever came first.

Exempt from this are rows beyond MAX_OUTCOMES or MAX_OUTCOME_BYTES: what arrives then is a dead letter `row_full`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
from treadle_schemas import codec
from treadle_schemas.canonical import content_hash, loads

from treadle_streams.join.arrivals import Arrival, InteractionEvent, OutcomeEvent, Refused, RightsEvent, RowEvent
from treadle_streams.join.contents import Availability
from treadle_streams.join.emissions import Emission, graded, graded_hash, graded_tail, progress, progress_hash
from treadle_streams.join.grading import Grading
from treadle_streams.join.state import NEVER_MS, Captured, RowState, Seen

__all__ = ["MAX_OUTCOMES", "MAX_OUTCOME_BYTES", "Evaluated", "FoldResult", "evaluate", "fold"]

MAX_OUTCOMES: Final = 10_000
"""Most outcomes, and most retracts with an outcome id, that one row keeps."""
MAX_OUTCOME_BYTES: Final = 3 * 1024 * 1024
"""Most bytes of outcome events that one row keeps, so that state and graded row (with an interaction of 8 MiB) stay below 16 MiB."""


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
    elif isinstance(event, RightsEvent):
        result = _rights(row, event)
    elif event.op == "retract":
        result = _retract(row, event)
    else:
        result = _outcome(row, event, workspace)
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
) -> Evaluated:
    """Grade the row as of `clock_ms`, raise its revision where its content changed, and set when time changes it next.

    While an import that touched the row is not over, the row's time stands still: what was absent stays absent, nothing else goes absent.
    While a part that it names is `missing` the row does not settle; when its time is up a dead letter `part_missing` says so, once.
    """
    row.imports = {import_id for import_id in row.imports if import_open(import_id)}
    captured = row.captured
    if captured is None:
        row.deadline_ms, row.parked = NEVER_MS, False
        return Evaluated([], [])
    if not row.imports:
        row.lapsed_ms = max(row.lapsed_ms, clock_ms)
    grade, next_ms = grading.grade(row, row.lapsed_ms)
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
    tail = graded_tail(_in_force(row, captured), content == "erased")
    fingerprint = graded_hash(captured, grade, tail)
    if (grade.settled or row.revision) and fingerprint != row.graded_hash:
        row.revision += 1
        row.graded_hash = fingerprint
        emissions.append(graded(row, captured, grade, partition, graded_at, tail))
    said = progress_hash(row, captured, grade)
    if said != row.progress_hash:
        row.progress_hash = said
        emissions.append(progress(row, captured, grade))
    return Evaluated(emissions, refused)


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
            row, moved, [_lost(event.arrival, "an interaction with an earlier ended_at", new_rank, old_rank)]
        )
    row.captured = new
    headers = _known_headers(codec.INTERACTION, workspace, old.import_id)
    loser = Arrival(
        "interactions",
        event.arrival.partition,
        old.offset,
        old.append_ms,
        row.episode_id.encode(),
        old.body,
        headers,
    )
    return FoldResult(row, True, [_lost(loser, "an interaction with an earlier ended_at", old_rank, new_rank)])


def _outcome(row: RowState, event: OutcomeEvent, workspace: str) -> FoldResult:
    new = event.seen
    old = row.outcomes.get(new.outcome_id)
    if old is None:
        size = len(event.arrival.value or b"")
        if len(row.outcomes) >= MAX_OUTCOMES or row.outcome_bytes + size > MAX_OUTCOME_BYTES:
            detail = f"the row keeps {len(row.outcomes)} outcomes of {row.outcome_bytes} bytes; it takes no more"
            return FoldResult(row, False, [Refused(event.arrival, "row_full", detail)])
        row.outcomes[new.outcome_id] = new
        row.outcome_bytes += size
        return FoldResult(row, True, [])
    if old.raw == new.raw:
        return FoldResult(row, False, [])
    old_rank, new_rank = _outcome_rank(old), _outcome_rank(new)
    if old_rank == new_rank:
        return FoldResult(row, False, [])
    if old_rank > new_rank:
        return FoldResult(
            row, False, [_lost(event.arrival, "an outcome of that id observed later", new_rank, old_rank)]
        )
    row.outcomes[new.outcome_id] = new
    row.outcome_bytes += len(new.raw.encode()) - len(old.raw.encode())
    said = loads(old.raw)
    loser = Arrival(
        "outcomes",
        event.arrival.partition,
        old.offset,
        old.append_ms,
        str(said.get("episode_id") or said.get("interaction_id")).encode(),
        old.raw.encode(),
        _known_headers(codec.OUTCOME, workspace, None),
    )
    return FoldResult(row, True, [_lost(loser, "an outcome of that id observed later", old_rank, new_rank)])


def _retract(row: RowState, event: OutcomeEvent) -> FoldResult:
    name, outcome_id, at = event.seen.name, event.seen.outcome_id, event.seen.observed_us
    if not outcome_id:
        known = row.retracted_until.get(name)
        if known is not None and known >= at:
            return FoldResult(row, False, [])
        if known is None and len(row.retracted_until) >= MAX_OUTCOMES:
            return FoldResult(row, False, [_too_many_retracts(event.arrival)])
        row.retracted_until[name] = at
        return FoldResult(row, True, [])
    if (name, outcome_id) in row.retracted_ids:
        return FoldResult(row, False, [])
    size = len(name.encode(errors="surrogatepass")) + len(outcome_id.encode())
    if len(row.retracted_ids) >= MAX_OUTCOMES or row.outcome_bytes + size > MAX_OUTCOME_BYTES:
        return FoldResult(row, False, [_too_many_retracts(event.arrival)])
    row.retracted_ids.add((name, outcome_id))
    row.outcome_bytes += size
    return FoldResult(row, True, [])


def _rights(row: RowState, event: RightsEvent) -> FoldResult:
    """The later word counts; of two at one time, deny."""
    known, said = row.rights.get(event.right), (event.observed_us, event.value)
    if known is not None and known >= said:  # "deny" > "allow"
        return FoldResult(row, False, [])
    row.rights[event.right] = said
    return FoldResult(row, True, [])


def _in_force(row: RowState, captured: Captured) -> dict[str, str]:
    """What is denied of a row: its interaction says how it begins, later words change it."""
    said = dict.fromkeys(captured.denied, "deny") | {name: value for name, (_, value) in row.rights.items()}
    return {name: value for name, value in said.items() if value == "deny"}


def _incomplete(row: RowState, captured: Captured, partition: int, workspace: str) -> Refused:
    arrival = Arrival(
        "interactions",
        partition,
        captured.offset,
        captured.append_ms,
        row.episode_id.encode(),
        captured.body,
        _known_headers(codec.INTERACTION, workspace, captured.import_id),
    )
    detail = (
        f"its time is up and not all of its parts are there ({', '.join(captured.parts[:3])}); the row stays pending"
    )
    return Refused(arrival, "part_missing", detail)


def _too_many_retracts(arrival: Arrival) -> Refused:
    return Refused(
        arrival, "row_full", f"the row keeps {MAX_OUTCOMES} retracts or {MAX_OUTCOME_BYTES} bytes of outcomes"
    )


def _interaction_rank(captured: Captured) -> tuple[int, str]:
    return captured.ended_us, content_hash(loads(captured.body))


def _outcome_rank(seen: Seen) -> tuple[int, str]:
    # the value as the metric keeps it: 1 and 1.0 of a float metric are one content
    said = loads(seen.raw)
    said["value"] = seen.value
    return seen.observed_us, content_hash(said)


def _lost(
    loser: Arrival,
    kept: Literal["an interaction with an earlier ended_at", "an outcome of that id observed later"],
    rank: tuple[int, str],
    winner: tuple[int, str],
) -> Refused:
    how = (
        "is kept"
        if rank[0] != winner[0]
        else "is not there, but one with the same time and another content hash is kept"
    )
    return Refused(loser, "conflict", f"{kept} {how}: {winner[1][:16]} over {rank[1][:16]}")


def _known_headers(event_type: str, workspace: str, import_id: str | None) -> list[tuple[str, bytes | str | None]]:
    # rows keep no headers; these are what a replay needs, the rest lies at the offset
    headers: list[tuple[str, bytes | str | None]] = [
        ("ce_specversion", b"1.0"),
        ("ce_type", event_type.encode()),
        ("ce_workspace", workspace.encode()),
    ]
    if import_id is not None:
        headers.append(("ce_importid", import_id.encode()))
    return headers
