"""From items to the lines that the import sends. Pure but for the index."""

from __future__ import annotations

from typing import Any

from treadle_schemas.canonical import content_hash
from treadle_schemas.errors import FieldError

from treadle_streams.importing.formats._index import Index
from treadle_streams.importing.formats._items import Call, Score

__all__ = ["interaction_line", "outcome_line"]


def interaction_line(call: Call, index: Index, agent: str) -> dict[str, Any]:
    """The line of an interaction. `agent` is the name where the export has none. Raises FieldError."""
    place = index.place(call)
    messages = call.messages
    if not messages:
        raise FieldError("$.messages", "is empty: the export holds no input of this call")
    line: dict[str, Any] = {
        "interaction_id": call.id,
        "episode_id": place.episode,
        "agent": place.agent or agent,
        "slot": place.slot,
        "messages": messages,
        # empty for a call that failed before it answered
        "response": list(range(len(messages) - call.response, len(messages))),
        "started_at": call.started_at,
        "ended_at": call.ended_at,
        "subject": place.subject,
    }
    fields = dict(call.fields)
    tags = {**place.tags, **(fields.pop("tags", None) or {})}
    references = [*fields.pop("references", ())]
    if call.trace_id != call.id and index.last_of(call.trace_id) == call.id:
        references.append(f"trace:{call.trace_id}")
    line |= {"tags": tags or None, "references": references or None} | fields
    if place.episode == call.id:
        del line["episode_id"]
    return {name: given for name, given in line.items() if given is not None}


def outcome_line(score: Score, index: Index) -> dict[str, Any]:
    """The line of an outcome. Raises FieldError."""
    line: dict[str, Any] = {"name": score.name, "value": score.value, "observed_at": score.observed_at}
    if score.kind != "metric":
        line["kind"] = score.kind
    if score.messages is not None:
        line["messages"] = score.messages
    if score.source is not None:
        line["source"] = score.source
    line |= index.judged(score)
    if score.id is not None:
        line["outcome_id"] = score.id
    elif score.kind != "metric":
        line["outcome_id"] = content_hash(line)[:32]
    return line
