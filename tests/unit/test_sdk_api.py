"""Scopes, decorators and outcome targets of the SDK, on a recorder that keeps everything in memory."""

from __future__ import annotations

import pytest
import treadle


@pytest.fixture
def sink() -> treadle.MemorySink:
    return treadle.MemorySink()


@pytest.fixture
def recorder(sink: treadle.MemorySink) -> treadle.Recorder:
    return treadle.Recorder("shop", sink=sink, agent="desk")


def test_three_lines_capture_an_interaction(recorder: treadle.Recorder, sink: treadle.MemorySink) -> None:
    with recorder.interaction(messages=[{"role": "user", "content": "hi"}], model="m") as turn:
        turn.respond("ho")
    (value,) = sink.interactions
    assert value["messages"] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert value["response"] == [1]
    assert turn.handle == str(sink.handles[0])
