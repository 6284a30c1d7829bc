"""For tests of agents: what they record stays in memory.

    with treadle.testing.captured(app.recorder) as sink:
        app.answer("Where is my order?")
    assert sink.interactions[0]["task_id"] == "where-is-order"

The workspace's PII policy is in force as ever; where this machine never saw one, that is the strictest built-in one.

A recorder that a test makes itself needs none of this: Recorder("shop", sink=treadle.MemorySink()). Under pytest whatever is wrong with
an event is raised where it is recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from treadle import outcomes
from treadle.memory import MemorySink
from treadle.recorder import Recorder

__all__ = ["captured"]


@contextmanager
def captured(*recorders: Recorder) -> Iterator[MemorySink]:
    """Inside, the events of `recorders`, and of treadle.outcome and its like, go to the sink that this gives, and nowhere else."""
    sink = MemorySink()
    before = [recorder._redirect(sink) for recorder in recorders]
    kept = outcomes.redirect(sink)
    try:
        yield sink
    finally:
        outcomes.redirect(kept)
        for recorder, delivery in zip(recorders, before, strict=True):
            recorder._redirect(delivery)
