"""What is done with the events of one request, in a thread: each is taken or refused, the disk is waited for, the answer is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from treadle_schemas.codec import OUTCOME
from treadle_schemas.events import MAX_EVENT_BYTES

from treadle_streams.ingest import _events, _github, _otlp
from treadle_streams.ingest._desk import Desk
from treadle_streams.ingest.errors import Malformed, NotNow, Refused

__all__ = ["Answer", "take_body", "take_delivery", "take_spans"]


@dataclass(frozen=True)
class Answer:
    """A status and a JSON body."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


def take_body(desk: Desk, workspace: str, body: bytes, headers: Mapping[str, str], only: str | None) -> Answer:
    """The events of a body. Raises Refused where none of them can be taken, or the body not be read."""
    events, many = _events.given(body, headers, only)
    if not events:
        raise Malformed("the body holds no event")
    return take_given(desk, workspace, events, many=many, only=only, large=len(body) > MAX_EVENT_BYTES)


def take_given(
    desk: Desk,
    workspace: str,
    events: Sequence[_events.Given | Refused],
    *,
    many: bool,
    only: str | None = None,
    large: bool = False,
) -> Answer:
    """202 when all were taken, 207 when some were, else the status of what is wrong. Raises Refused for a single one."""
    results: list[dict[str, Any]] = []
    problems: list[Refused] = []
    later: NotNow | None = None
    for event in events:
        try:
            prepared = _prepared(event, workspace, only, large)
            if later is not None:
                raise later  # one that cannot be taken now stops those behind it, so that their order stays
            desk.take(workspace, prepared)
        except Refused as err:
            if not many:
                raise
            later = err if isinstance(err, NotNow) else later
            problems.append(err)
            results.append({"status": "refused", "error": err.to_json()})
        else:
            results.append({"status": "accepted", **prepared.answer})
    taken = len(results) - len(problems)
    if taken:
        desk.sync(workspace)
    counts: dict[str, Any] = {"accepted": taken, "refused": len(problems), "results": results}
    wait = {"Retry-After": str(later.retry_after_s)} if later is not None else {}
    if not problems:
        return Answer(202, counts)
    if taken:
        return Answer(207, counts, wait)
    first = later or problems[0]
    return Answer(first.status, {"error": first.to_json(), **counts}, wait)


def take_delivery(desk: Desk, workspace: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    """The outcomes of a delivery of GitHub whose signature is right. Raises Refused."""
    if headers.get("x-github-event") == "ping":
        return Answer(200, {"status": "pong"})
    try:
        outcomes = _github.outcomes_of(_github.payload_of(body, headers), headers, workspace)
    except _github.Ignored as reason:
        return Answer(202, {"status": "ignored", "reason": str(reason)})
    return take_given(desk, workspace, outcomes, many=True, only=OUTCOME)


def take_spans(desk: Desk, workspace: str, body: bytes, form: str) -> bytes:
    """The calls among the spans of an OTLP request; the body of the answer. Raises Malformed, and NotNow: then all of it is sent again."""
    events, refused = _otlp.calls(body, form)
    rejected: list[object] = list(refused)
    for event in events:
        try:
            desk.take(workspace, _prepared(event, workspace, event.kind, len(body) > MAX_EVENT_BYTES))
        except NotNow:
            raise
        except Refused as err:
            rejected.append(f"{err.field}: {err}" if err.field else err)
    desk.sync(workspace)
    return _otlp.answer(form, rejected)


def _prepared(event: _events.Given | Refused, workspace: str, only: str | None, large: bool) -> _events.Prepared:
    if isinstance(event, Refused):
        raise event
    if large:
        _events.check_size(event)
    return _events.prepared(event, workspace, only)
