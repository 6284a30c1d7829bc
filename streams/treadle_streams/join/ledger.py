"""What was said of one target, a row or a whole episode: outcomes, retracts and rights, kept free of order. Pure.

Of outcomes with one id the greater (observed_at, content hash) stays, of retracts their union, of rights the later word. Which outcomes
count is decided at grading only. Every outcome that loses is a dead letter `conflict`, whichever came first.

Exempt from this are targets beyond MAX_OUTCOMES or MAX_OUTCOME_BYTES: what arrives then is a dead letter `row_full`.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from treadle_schemas import codec
from treadle_schemas.canonical import content_hash, loads

from treadle_streams.join.arrivals import Arrival, Refused
from treadle_streams.join.kept import Keeps
from treadle_streams.join.state import Seen

__all__ = [
    "MAX_OUTCOMES",
    "MAX_OUTCOME_BYTES",
    "Taken",
    "kept_arrival",
    "known_headers",
    "lost",
    "take_outcome",
    "take_retract",
    "take_right",
]

MAX_OUTCOMES: Final = 10_000
"""Most outcomes, and most retracts with an outcome id, that one target keeps."""
MAX_OUTCOME_BYTES: Final = 3 * 1024 * 1024
"""Most bytes of outcome events that one target keeps, so that state and graded row (with an interaction of 8 MiB) stay below 16 MiB."""


class Taken(NamedTuple):
    """Whether anything changed, and what lost against what is kept."""

    changed: bool
    refused: tuple[Refused, ...] = ()


def take_outcome(kept: Keeps, new: Seen, arrival: Arrival, workspace: str) -> Taken:
    """Take an outcome in."""
    old = kept.outcomes.get(new.outcome_id)
    if old is None:
        size = len(arrival.value or b"")
        if len(kept.outcomes) >= MAX_OUTCOMES or kept.outcome_bytes + size > MAX_OUTCOME_BYTES:
            detail = f"the row keeps {len(kept.outcomes)} outcomes of {kept.outcome_bytes} bytes; it takes no more"
            return Taken(False, (Refused(arrival, "row_full", detail),))
        kept.outcomes[new.outcome_id] = new
        kept.outcome_bytes += size
        return Taken(True)
    if old.raw == new.raw:
        return Taken(False)
    old_rank, new_rank = _rank(old), _rank(new)
    if old_rank == new_rank:
        return Taken(False)
    if old_rank > new_rank:
        return Taken(False, (lost(arrival, "an outcome of that id observed later", new_rank, old_rank),))
    kept.outcomes[new.outcome_id] = new
    kept.outcome_bytes += len(new.raw.encode()) - len(old.raw.encode())
    loser = kept_arrival(old, arrival.partition, workspace)
    return Taken(True, (lost(loser, "an outcome of that id observed later", old_rank, new_rank),))


def take_retract(kept: Keeps, name: str, outcome_id: str, observed_us: int, arrival: Arrival) -> Taken:
    """Take a retract in: of one outcome, or with an empty `outcome_id` of all observed up to its own time."""
    if not outcome_id:
        known = kept.retracted_until.get(name)
        if known is not None and known >= observed_us:
            return Taken(False)
        if known is None and len(kept.retracted_until) >= MAX_OUTCOMES:
            return Taken(False, (_too_many_retracts(arrival),))
        kept.retracted_until[name] = observed_us
        return Taken(True)
    if (name, outcome_id) in kept.retracted_ids:
        return Taken(False)
    size = len(name.encode(errors="surrogatepass")) + len(outcome_id.encode())
    if len(kept.retracted_ids) >= MAX_OUTCOMES or kept.outcome_bytes + size > MAX_OUTCOME_BYTES:
        return Taken(False, (_too_many_retracts(arrival),))
    kept.retracted_ids.add((name, outcome_id))
    kept.outcome_bytes += size
    return Taken(True)


def take_right(kept: Keeps, right: str, observed_us: int, value: str) -> Taken:
    """The later word counts; of two at one time, deny."""
    known, said = kept.rights.get(right), (observed_us, value)
    if known is not None and known >= said:  # "deny" > "allow"
        return Taken(False)
    kept.rights[right] = said
    return Taken(True)


def lost(
    loser: Arrival,
    kept: Literal["an interaction with an earlier ended_at", "an outcome of that id observed later"],
    rank: tuple[int, str],
    winner: tuple[int, str],
) -> Refused:
    """The dead letter of what lost, by its rank and the winner's."""
    how = (
        "is kept"
        if rank[0] != winner[0]
        else "is not there, but one with the same time and another content hash is kept"
    )
    return Refused(loser, "conflict", f"{kept} {how}: {winner[1][:16]} over {rank[1][:16]}")


def kept_arrival(seen: Seen, partition: int, workspace: str) -> Arrival:
    """The record that brought what is kept; `partition` is that of its row."""
    said = loads(seen.raw)
    return Arrival(
        "outcomes",
        partition if seen.partition < 0 else seen.partition,
        seen.offset,
        seen.append_ms,
        str(said.get("episode_id") or said.get("interaction_id") or said.get("reference")).encode(),
        seen.raw.encode(),
        known_headers(codec.OUTCOME, workspace, None),
        seen.key_id,
    )


def known_headers(event_type: str, workspace: str, import_id: str | None) -> list[tuple[str, bytes | str | None]]:
    """Headers of a kept event. State keeps none; these are what a replay needs, the rest lies at the offset."""
    headers: list[tuple[str, bytes | str | None]] = [
        ("ce_specversion", b"1.0"),
        ("ce_type", event_type.encode()),
        ("ce_workspace", workspace.encode()),
    ]
    if import_id is not None:
        headers.append(("ce_importid", import_id.encode()))
    return headers


def _rank(seen: Seen) -> tuple[int, str]:
    # the value as the metric keeps it: 1 and 1.0 of a float metric are one content
    said = loads(seen.raw)
    said["value"] = seen.value
    # by which name its target was found is no content: one outcome may come by two of them
    for name in ("episode_id", "interaction_id", "reference"):
        said.pop(name, None)
    return seen.observed_us, content_hash(said)


def _too_many_retracts(arrival: Arrival) -> Refused:
    return Refused(
        arrival, "row_full", f"the row keeps {MAX_OUTCOMES} retracts or {MAX_OUTCOME_BYTES} bytes of outcomes"
    )
