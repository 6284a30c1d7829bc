"""Outcomes from anywhere: a handle's text is enough to say later what became of an interaction."""

from __future__ import annotations

import time
from typing import Final

from treadle_schemas.events import OutcomeValue
from treadle_schemas.ids import Handle

from treadle.recorder import Moment, Recorder

__all__ = ["flush", "outcome", "retract"]

_SOURCE_AGENT: Final = "outcomes"
_recorders: dict[str, Recorder] = {}


def outcome(
    target: Handle | str,
    name: str,
    value: OutcomeValue = None,
    *,
    observed_at: Moment | None = None,
    outcome_id: str | None = None,
    source: str | None = None,
) -> str | None:
    """Publish an outcome of the interaction that `target` (a handle or its text) names, and return the outcome's id.

    Like Recorder.outcome, through one recorder a workspace that this process keeps. `flush` waits for what is in flight.
    """
    return _recorder_of(target).outcome(
        target, name, value, observed_at=observed_at, outcome_id=outcome_id, source=source
    )


def retract(
    target: Handle | str,
    name: str,
    outcome_id: str | None = None,
    *,
    observed_at: Moment | None = None,
    source: str | None = None,
) -> None:
    """Take back one outcome by its id, or without one every outcome of that name observed until now."""
    _recorder_of(target).retract(target, name, outcome_id=outcome_id, observed_at=observed_at, source=source)


def flush(timeout_s: float = 10.0) -> int:
    """Wait until the outcomes of this process are acknowledged; how many are not."""
    deadline = time.monotonic() + timeout_s
    return sum(recorder.flush(max(0.0, deadline - time.monotonic())) for recorder in list(_recorders.values()))


def _recorder_of(target: Handle | str) -> Recorder:
    # a text that is no handle is reported by the recorder, in the way that never hurts its host
    workspace = target.workspace if isinstance(target, Handle) else target.partition("/")[0]
    recorder = _recorders.get(workspace)
    if recorder is None:
        recorder = Recorder(workspace, agent=_SOURCE_AGENT)
        if recorder.usable:
            # without a lock, which a fork could inherit held: of two threads one wins, the other's recorder never sends
            recorder = _recorders.setdefault(workspace, recorder)
    return recorder
