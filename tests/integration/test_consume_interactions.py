"""`treadle.consume(..., "interactions")`: what was recorded, put together, whatever else lies on the topic."""

from __future__ import annotations

import pytest
import treadle
from treadle.log import Sender
from treadle_schemas import WorkspaceSettings
from treadle_schemas.codec import IMPORT_MARKER, INTERACTION, encode, make_headers
from treadle_schemas.topics import topic
from treadle_streams import workspaces


@pytest.fixture
def workspace(broker: str, workspace_name: str) -> str:
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=1))
    return workspace_name


def test_interactions_come_whole_and_in_order_also_from_the_middle(broker: str, workspace: str) -> None:
    said = [{"role": "user", "content": f"{n}: " + "long " * 300} for n in range(6)]
    with treadle.Recorder(workspace, bootstrap_servers=broker) as recorder:
        for n in range(1, 7):
            recorder.record(messages=said[:n], interaction_id=f"i{n}", episode_id="e", step=n)
        assert recorder.flush(30) == 0
    with treadle.consume(workspace, "interactions", bootstrap_servers=broker, idle_s=1) as found:
        first = [next(found) for _ in range(3)]
        middle = found.positions
    with treadle.consume(workspace, "interactions", start=middle, bootstrap_servers=broker, idle_s=1) as found:
        rest = list(found)
    assert [i.interaction_id for i in first + rest] == [f"i{n}" for n in range(1, 7)]
    assert [i.messages for i in first + rest] == [said[:n] for n in range(1, 7)]
    assert all(i.transcript is None for i in first + rest)


def test_what_is_no_interaction_is_counted_and_holds_up_nobody(
    broker: str, workspace: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = topic(workspace, "interactions")
    sender = Sender(broker)
    marker = make_headers(IMPORT_MARKER, workspace, source="test")
    sender.send(name, None, encode({"import_id": "x", "phase": "begin"}), marker)
    sender.send(name, b"k", b"{no json", make_headers(INTERACTION, workspace, source="test"))
    sender.send(name, b"k", encode({"interaction_id": "k"}), make_headers(INTERACTION, workspace, source="test"))
    sender.flush()
    with treadle.Recorder(workspace, bootstrap_servers=broker) as recorder:
        recorder.record(messages=[{"role": "user", "content": "hi"}], interaction_id="good")
        assert recorder.flush(30) == 0
    with treadle.consume(workspace, "interactions", bootstrap_servers=broker, idle_s=1) as found:
        assert [i.interaction_id for i in found] == ["good"]
        assert found.refused == 2
    assert caplog.text.count("is no interaction") == 2


def test_an_interaction_whose_parts_are_missing_says_so(broker: str, workspace: str) -> None:
    sender = Sender(broker)
    value = {
        "interaction_id": "i",
        "episode_id": "e",
        "agent": "a",
        "messages": [],
        "transcript": {"head": "0" * 32, "count": 2},
        "started_at": "2026-01-01T00:00:00Z",
        "ended_at": "2026-01-01T00:00:00Z",
    }
    sender.send(topic(workspace, "interactions"), b"e", encode(value), make_headers(INTERACTION, workspace, source="t"))
    sender.flush()
    with treadle.consume(workspace, "interactions", bootstrap_servers=broker, idle_s=1) as found:
        (alone,) = found
    assert alone.messages == []
    assert alone.transcript is not None
    assert alone.transcript.count == 2
