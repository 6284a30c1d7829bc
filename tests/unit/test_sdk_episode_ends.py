"""Who says that an episode is over: its scope where that made it, the caller otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import treadle
from treadle_schemas.codec import EPISODE_END
from treadle_schemas.errors import FieldError
from treadle_schemas.events import read_episode_end

USER = {"role": "user", "content": "hi"}


def ends(sink: treadle.MemorySink) -> list[dict[str, Any]]:
    for sent in sink.sent:
        if sent.event.type == EPISODE_END:
            assert sent.topic == "treadle.shop.interactions"
            assert sent.key.decode() == sent.event.data["episode_id"]
            read_episode_end(sent.event.data)
    return [sent.event.data for sent in sink.sent if sent.event.type == EPISODE_END]


def test_a_scope_says_that_its_episode_is_over_after_all_that_it_recorded() -> None:
    sink = treadle.MemorySink()
    recorder = treadle.Recorder("shop", sink=sink)
    with recorder.episode() as episode:
        with recorder.episode(slot="helper"):
            recorder.record(messages=[USER])
        recorder.record(messages=[USER])
        assert ends(sink) == [], "a sub-agent's part ends nothing"
    (said,) = ends(sink)
    assert said["episode_id"] == episode.episode_id
    assert sink.sent[-1].event.type == EPISODE_END
    assert all(said["ended_at"] >= i["started_at"] for i in sink.interactions)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 1), ({"ends": False}, 0), ({"episode_id": "s1"}, 0), ({"episode_id": "s1", "ends": True}, 1)],
)
def test_a_scope_that_was_given_its_episode_leaves_the_end_open_unless_told(options: Any, expected: int) -> None:
    sink = treadle.MemorySink()
    recorder = treadle.Recorder("shop", sink=sink)
    with recorder.episode(**options):
        recorder.record(messages=[USER])
    assert len(ends(sink)) == expected


def test_a_scope_in_which_nothing_happened_and_a_lone_interaction_say_nothing() -> None:
    sink = treadle.MemorySink()
    recorder = treadle.Recorder("shop", sink=sink)
    with recorder.episode():
        pass
    with recorder.interaction(messages=[USER]) as turn:
        turn.respond("hello")
    assert ends(sink) == []


def test_an_end_can_be_said_from_anywhere() -> None:
    sink = treadle.MemorySink()
    recorder = treadle.Recorder("shop", sink=sink)
    handle = recorder.record(messages=[USER], episode_id="s1")
    recorder.end_episode(handle)
    recorder.end_episode("s2", ended_at="2026-01-31T09:30:00Z")
    assert [said["episode_id"] for said in ends(sink)] == ["s1", "s2"]
    assert ends(sink)[1]["ended_at"] == "2026-01-31T09:30:00Z"
    with pytest.raises(FieldError):
        recorder.end_episode("s3", ended_at="yesterday")
    with pytest.raises(FieldError):
        recorder.end_episode("toys/s1/i1")
