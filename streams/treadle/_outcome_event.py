"""From what a caller says became of something to the outcome event and its key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from treadle_schemas.errors import FieldError
from treadle_schemas.events import OutcomeValue, read_episode_end, read_outcome
from treadle_schemas.moments import now

from treadle import targets
from treadle._given import Moment, moment_text, plain_message, scalar
from treadle.errors import TargetError

__all__ = ["Kind", "end_event", "outcome_event"]

Kind = Literal["metric", "comment", "preference", "demonstration", "rights"]


def outcome_event(
    workspace: str,
    target: Any,
    name: str,
    value: OutcomeValue = None,
    *,
    kind: Kind = "metric",
    op: Literal["set", "retract"] = "set",
    outcome_id: str | None = None,
    observed_at: Moment | None = None,
    source: str | None = None,
    over: Any = None,
    messages: Sequence[Any] | None = None,
    usage: Mapping[str, Any] | None = None,
    subject: str | None = None,
) -> tuple[dict[str, Any], str]:
    """The value of an outcome event and its key. `target` and `over` are whatever treadle.targets understands.

    Raises HandleError or TargetError for a target that is none, FieldError for one of another workspace and for each field that breaks
    the contract.
    """
    found = _own(target, workspace, "target")
    said = {
        "name": name,
        "value": scalar(value),
        "observed_at": moment_text(observed_at, "$.observed_at") or now(),
        "op": op if op != "set" else None,
        "outcome_id": outcome_id,
        "interaction_id": found.interaction_id,
        "episode_id": found.episode_id,
        "reference": found.reference,
        "kind": kind if kind != "metric" else None,
        "over": None if over is None else _interaction_of(over, workspace),
        "messages": None if messages is None else [plain_message(message) for message in messages],
        "source": source,
        "usage": None if usage is None else dict(usage),
        "subject": subject,
    }
    body = {key: given for key, given in said.items() if given is not None or (key == "value" and op == "set")}
    return body, read_outcome(body).key


def end_event(workspace: str, episode: Any, ended_at: Moment | None) -> tuple[dict[str, Any], str]:
    """The value of an end event and its key. Raises HandleError or TargetError for what names no episode, FieldError for the rest."""
    found = _own(targets.WholeEpisode(episode, workspace), workspace, "episode")
    body = {"episode_id": found.episode_id, "ended_at": moment_text(ended_at, "$.ended_at") or now()}
    return body, read_episode_end(body).episode_id


def _own(given: Any, workspace: str, what: str) -> targets.Target:
    found = targets.resolve(given, workspace)
    if found.workspace not in (None, workspace):
        raise FieldError(what, f"{found} is of another workspace than this recorder's {workspace}; use treadle.outcome")
    return found


def _interaction_of(over: Any, workspace: str) -> str:
    found = _own(over, workspace, "over")
    if found.interaction_id is None:
        raise TargetError(f"over: {found} is not known here as an interaction; give its handle")
    return found.interaction_id
