"""Outcomes from anywhere: whatever was kept of an interaction is enough to say later what became of it.

    treadle.outcome(handle, "pr_merged", True)                                  # the handle, or its text, from any process
    treadle.outcome(answer, "csat", 0.9)                                        # the client library's answer itself
    treadle.outcome("chatcmpl-7", "csat", 0.9, workspace="shop")                # its id
    treadle.outcome("pr:org/repo#12", "pr_merged", True, workspace="shop")      # what it was recorded with as a reference

A handle knows its workspace. References and ids that this process did not record do not: `workspace=`, or TREADLE_WORKSPACE. See
treadle.targets for all that a target may be. One recorder a workspace is kept for the process; `flush` waits for what is in flight.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from treadle_schemas.errors import TreadleError
from treadle_schemas.events import OutcomeValue, Right

from treadle import targets
from treadle._delivery import Delivery
from treadle._given import Moment, under_pytest
from treadle._ledger import Ledger
from treadle._outcome_event import Kind
from treadle.errors import TargetError
from treadle.recorder import Recorder
from treadle.settings import Settings

__all__ = [
    "comment",
    "demonstration",
    "end_episode",
    "episode_outcome",
    "flush",
    "outcome",
    "preference",
    "retract",
    "rights",
]

_SOURCE_AGENT: Final = "outcomes"
_recorders: dict[str, Recorder] = {}
_homeless: list[Ledger] = []
"""Complains about what belongs to no workspace. Made at the first need: importing makes no lock."""

_sink: Delivery | None = None


def outcome(
    target: Any,
    name: str,
    value: OutcomeValue = None,
    *,
    workspace: str | None = None,
    observed_at: Moment | None = None,
    outcome_id: str | None = None,
    source: str | None = None,
    subject: str | None = None,
) -> str | None:
    """Publish an outcome of what `target` names, and return the outcome's id: Recorder.outcome, from anywhere.

    None when nothing can be published, which is logged (and raised under pytest).
    """
    recorder = _recorder_of(target, workspace)
    if recorder is None:
        return None
    return recorder.outcome(
        target, name, value, observed_at=observed_at, outcome_id=outcome_id, source=source, subject=subject
    )


def episode_outcome(
    episode: Any,
    name: str,
    value: OutcomeValue = None,
    *,
    workspace: str | None = None,
    observed_at: Moment | None = None,
    outcome_id: str | None = None,
    source: str | None = None,
    subject: str | None = None,
) -> str | None:
    """Publish what became of a whole episode: its id, its open scope, or the handle of any of its interactions."""
    recorder = _recorder_of(targets.WholeEpisode(episode, workspace), workspace)
    if recorder is None:
        return None
    return recorder.episode_outcome(
        episode, name, value, observed_at=observed_at, outcome_id=outcome_id, source=source, subject=subject
    )


def end_episode(episode: Any, *, workspace: str | None = None, ended_at: Moment | None = None) -> None:
    """Say that an episode is over: Recorder.end_episode, from anywhere."""
    recorder = _recorder_of(targets.WholeEpisode(episode, workspace), workspace)
    if recorder is not None:
        recorder.end_episode(episode, ended_at=ended_at)


def retract(
    target: Any,
    name: str,
    outcome_id: str | None = None,
    *,
    workspace: str | None = None,
    observed_at: Moment | None = None,
    source: str | None = None,
    kind: Kind = "metric",
) -> None:
    """Take back one outcome by its id, or without one every outcome of that name observed until now."""
    recorder = _recorder_of(target, workspace)
    if recorder is not None:
        recorder.retract(target, name, outcome_id=outcome_id, observed_at=observed_at, source=source, kind=kind)


def comment(
    target: Any,
    text: str,
    *,
    name: str = "comment",
    workspace: str | None = None,
    observed_at: Moment | None = None,
    outcome_id: str | None = None,
    source: str | None = None,
    subject: str | None = None,
) -> str | None:
    """Say in words what was good or bad."""
    recorder = _recorder_of(target, workspace)
    if recorder is None:
        return None
    return recorder.comment(
        target, text, name=name, observed_at=observed_at, outcome_id=outcome_id, source=source, subject=subject
    )


def preference(
    target: Any,
    *,
    over: Any = None,
    messages: Sequence[Any] | None = None,
    name: str = "preference",
    workspace: str | None = None,
    observed_at: Moment | None = None,
    outcome_id: str | None = None,
    source: str | None = None,
    subject: str | None = None,
) -> str | None:
    """Say that the target is better than another interaction (`over`), or than an answer that was never recorded (`messages`)."""
    recorder = _recorder_of(target, workspace)
    if recorder is None:
        return None
    return recorder.preference(
        target,
        over=over,
        messages=messages,
        name=name,
        observed_at=observed_at,
        outcome_id=outcome_id,
        source=source,
        subject=subject,
    )


def demonstration(
    target: Any,
    messages: Sequence[Any] | str,
    *,
    name: str = "demonstration",
    workspace: str | None = None,
    observed_at: Moment | None = None,
    outcome_id: str | None = None,
    source: str | None = None,
    subject: str | None = None,
) -> str | None:
    """Say what the answer should have been: chat messages, or the text of one assistant message."""
    recorder = _recorder_of(target, workspace)
    if recorder is None:
        return None
    return recorder.demonstration(
        target, messages, name=name, observed_at=observed_at, outcome_id=outcome_id, source=source, subject=subject
    )


def rights(
    target: Any,
    *,
    train: Right | None = None,
    eval: Right | None = None,
    recall: Right | None = None,
    workspace: str | None = None,
    observed_at: Moment | None = None,
    source: str | None = None,
) -> list[str]:
    """Allow or deny what may be done with recorded work; deny wins over allow. One outcome each: their ids."""
    recorder = _recorder_of(target, workspace)
    if recorder is None:
        return []
    return recorder.rights(target, train=train, eval=eval, recall=recall, observed_at=observed_at, source=source)


def flush(timeout_s: float = 10.0) -> int:
    """Wait until the outcomes of this process are acknowledged; how many are not."""
    deadline = time.monotonic() + timeout_s
    return sum(recorder.flush(max(0.0, deadline - time.monotonic())) for recorder in list(_recorders.values()))


def _recorder_of(target: Any, workspace: str | None) -> Recorder | None:
    try:
        return _kept(workspace_of(target, workspace))
    except TreadleError as err:
        if under_pytest():
            raise
        if not _homeless:
            _homeless.append(Ledger())
        _homeless[0].complain(f"outcome refused, {type(err).__name__}", err)
        return None


def workspace_of(target: Any, workspace: str | None = None) -> str:
    """The workspace that an outcome of `target` belongs to: the one named, else the target's own, else TREADLE_WORKSPACE.

    Raises HandleError or TargetError for a target that is none, and TargetError where nobody says which workspace it is.
    """
    if workspace is not None:
        return workspace
    found = targets.resolve(target)
    known = found.workspace or Settings.load().workspace
    if known is None:
        raise TargetError(
            f"{found} does not say which workspace it is of: pass workspace=, set TREADLE_WORKSPACE, or give a handle, which says it"
        )
    return known


def redirect(sink: Delivery | None) -> Delivery | None:
    """Send all outcomes to `sink` from now on, None: to Kafka; gives the sink before. For treadle.testing."""
    global _sink
    before, _sink = _sink, sink
    return before


def _kept(workspace: str) -> Recorder:
    if _sink is not None:
        return Recorder(workspace, agent=_SOURCE_AGENT, sink=_sink)
    recorder = _recorders.get(workspace)
    if recorder is None:
        recorder = Recorder(workspace, agent=_SOURCE_AGENT)
        if recorder.usable:
            # without a lock, which a fork could inherit held: of two threads one wins, the other's recorder never sends
            recorder = _recorders.setdefault(workspace, recorder)
    return recorder
