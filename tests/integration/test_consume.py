"""`treadle.consume` and `aconsume` on a real broker: named readers, batches, latest revisions, asyncio, processes that share and die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import treadle
from treadle.consuming import group_of
from treadle.log import Admin, Sender
from treadle_schemas import FieldError, Grade, Progress, WorkspaceSettings
from treadle_schemas.codec import CLOCK, OUTCOME, PROGRESS, encode, make_headers, to_json
from treadle_schemas.errors import ContractError
from treadle_schemas.topics import topic
from treadle_streams import workspaces

PARTITIONS = 2
GRADE = Grade(metrics={"reward": ("observed", 1.0)}, reward=1.0, completeness=1.0, settled=True, grading_version=1)


@pytest.fixture
def workspace(broker: str, workspace_name: str) -> str:
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS))
    return workspace_name


def change(name: str, revision: int = 1) -> Progress:
    return Progress(
        episode_id=name,
        interaction_id=name,
        task_id=None,
        agent="a",
        slot="main",
        release=None,
        grade=GRADE,
        split="train",
        revision=revision,
        append_ms=0,
        ended_at="2026-01-01T00:00:00Z",
    )


def publish(broker: str, workspace: str, changes: list[Progress]) -> None:
    sender = Sender(broker)
    for number, one in enumerate(changes):
        headers = make_headers(PROGRESS, workspace, source="test")
        name = topic(workspace, "progress")
        sender.send(name, one.episode_id.encode(), encode(to_json(one)), headers, partition=number % PARTITIONS)
        sender.send(name, None, b"{}", make_headers(CLOCK, workspace, source="test"), partition=number % PARTITIONS)
    sender.flush()


def names(rows: list[Progress]) -> list[str]:
    return sorted(row.interaction_id for row in rows)


def test_a_named_reader_goes_on_after_its_last_commit(broker: str, workspace: str) -> None:
    publish(broker, workspace, [change(f"i{n}") for n in range(4)])
    with treadle.consume(workspace, "progress", name="w", bootstrap_servers=broker, idle_s=1) as rows:
        first = [next(rows), next(rows)]
        rows.commit()
        uncommitted = next(rows)
    with treadle.consume(workspace, "progress", name="w", bootstrap_servers=broker, idle_s=1) as rows:
        rest = list(rows)
        rows.commit()
    assert uncommitted in rest
    assert names(first + rest) == ["i0", "i1", "i2", "i3"]
    end = Admin(broker).end_offsets((topic(workspace, "progress"), p) for p in range(PARTITIONS))
    assert Admin(broker).committed(group_of(workspace, "w"), end) == end  # past the clock records too
    with treadle.consume(workspace, "progress", bootstrap_servers=broker, idle_s=0.5) as rows:
        assert len(list(rows)) == 4  # another reader is not concerned
        with pytest.raises(ValueError, match="name"):
            rows.commit()


def test_a_name_that_begins_at_the_end_keeps_that_end(broker: str, workspace: str) -> None:
    publish(broker, workspace, [change("before")])
    with treadle.consume(workspace, "progress", name="late", start="end", bootstrap_servers=broker):
        pass  # killed before it saw or committed anything
    publish(broker, workspace, [change("between")])
    with treadle.consume(workspace, "progress", name="late", start="end", bootstrap_servers=broker, idle_s=1) as rows:
        assert names(list(rows)) == ["between"]


def test_two_processes_of_one_name_share_the_partitions(broker: str, workspace: str) -> None:
    publish(broker, workspace, [change(f"i{n}") for n in range(20)])
    with (
        treadle.consume(workspace, "progress", name="w", bootstrap_servers=broker) as one,
        treadle.consume(workspace, "progress", name="w", bootstrap_servers=broker) as two,
    ):
        seen: list[list[Progress]] = [[], []]
        while {len(one.positions), len(two.positions)} != {1}:
            for rows, mine in zip((one, two), seen, strict=True):
                mine += rows.batch(0.2)
        publish(broker, workspace, [change(f"later{n}") for n in range(20)])
        fresh: list[list[str]] = [[], []]
        while sum(map(len, fresh)) < 20:
            for rows, mine in zip((one, two), fresh, strict=True):
                mine += [row.interaction_id for row in rows.batch(0.2) if row.interaction_id.startswith("later")]
        assert [len(mine) for mine in fresh] == [10, 10]
        assert not set(fresh[0]) & set(fresh[1])
        one.commit()
        two.commit()
    assert {row.interaction_id for rows in seen for row in rows} >= {f"i{n}" for n in range(20)}


CHILD = """
import os, signal, sys
import treadle
workspace, out, most = sys.argv[1], sys.argv[2], int(sys.argv[3])
with treadle.consume(workspace, "progress", name="w", idle_s=3) as rows:
    for number, row in enumerate(rows, 1):
        with open(out, "a") as file:
            file.write(row.interaction_id + "\\n")
        if number == most:
            os.kill(os.getpid(), signal.SIGKILL)
        if number % 5 == 0:
            rows.commit()
    rows.commit()
"""


def test_killed_readers_miss_nothing_and_repeat_no_more_than_since_the_last_commit(
    broker: str, workspace: str, tmp_path: Path
) -> None:
    publish(broker, workspace, [change(f"i{n}") for n in range(30)])
    out = tmp_path / "seen"
    environment = {**os.environ, "TREADLE_BOOTSTRAP_SERVERS": broker}
    codes = [
        subprocess.run([sys.executable, "-c", CHILD, workspace, str(out), most], env=environment, timeout=60).returncode
        for most in ("8", "99")
    ]
    assert codes == [-signal.SIGKILL, 0]
    seen = Counter(out.read_text().split())
    assert set(seen) == {f"i{n}" for n in range(30)}
    assert sum(seen.values()) == 30 + 3


def test_latest_gives_each_row_once_and_then_what_changes(broker: str, workspace: str) -> None:
    # publish puts every second record on the same partition: both revisions of a row lie together
    old = [change(f"i{n}", 1) for n in range(4)]
    publish(broker, workspace, [*old, change("i0", 2), change("i1", 2)])
    with treadle.consume(workspace, "progress", revisions="latest", bootstrap_servers=broker, idle_s=1) as rows:
        found = rows.batch(5)
        while more := rows.batch(0.5):
            found += more
        assert {row.interaction_id: row.revision for row in found} == {"i0": 2, "i1": 2, "i2": 1, "i3": 1}
        assert len(found) == 4
        publish(broker, workspace, [change("i2", 2), change("i3", 2), change("i2", 3)])
        assert sorted((row.interaction_id, row.revision) for row in rows) == [("i2", 2), ("i2", 3), ("i3", 2)]
    with pytest.raises(ValueError, match="no revisions"):
        treadle.consume(workspace, "interactions", revisions="latest", bootstrap_servers=broker)


def test_an_unreadable_record_is_raised_again_and_again_and_holds_its_place(broker: str, workspace: str) -> None:
    publish(broker, workspace, [change("good")])
    sender = Sender(broker)
    sender.send(topic(workspace, "progress"), b"k", b"{}", make_headers(PROGRESS, workspace, source="t"), partition=0)
    sender.flush()
    publish(broker, workspace, [change("behind")])
    with treadle.consume(workspace, "progress", bootstrap_servers=broker, idle_s=1) as rows:
        assert next(rows).interaction_id == "good"
        for _ in range(2):
            with pytest.raises(ContractError, match=r"\[0\]@2"):
                next(rows)
        assert rows.positions[0] == 2
    with treadle.consume(workspace, "progress", bootstrap_servers=broker, start={0: 3}, idle_s=1) as rows:
        assert [row.interaction_id for row in rows] == ["behind"]  # stepping over it is said, not done by itself


def test_outcomes_come_typed_and_what_is_none_is_counted(broker: str, workspace: str) -> None:
    with treadle.Recorder(workspace, bootstrap_servers=broker) as recorder:
        handle = recorder.record(messages=[{"role": "user", "content": "hi"}])
        recorder.outcome(handle, "reward", 0.5, source="desk")
        assert recorder.flush(30) == 0
    sender = Sender(broker)
    sender.send(topic(workspace, "outcomes"), b"k", b"{}", make_headers(OUTCOME, workspace, source="test"))
    sender.flush()
    with treadle.consume(workspace, "outcomes", bootstrap_servers=broker, idle_s=1) as outcomes:
        (found,) = list(outcomes)
        assert (found.name, found.value, found.source) == ("reward", 0.5, "desk")
        assert outcomes.refused == 1


def test_async_for_gives_the_same_and_a_cancelled_wait_loses_nothing(broker: str, workspace: str) -> None:
    async def read() -> list[str]:
        found = []
        async with treadle.aconsume(workspace, "progress", name="a", bootstrap_servers=broker, idle_s=2) as rows:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(rows), 0.01)  # it goes on waiting in its thread
            await asyncio.to_thread(publish, broker, workspace, [change(f"i{n}") for n in range(6)])
            async for row in rows:
                found.append(row.interaction_id)
                if len(found) == 3:
                    await rows.commit()
                    break
        async with treadle.aconsume(workspace, "progress", name="a", bootstrap_servers=broker, idle_s=1) as rows:
            async for row in rows:
                found.append(row.interaction_id)
            assert sum(rows.positions.values()) == 12
        return found

    assert sorted(asyncio.run(read())) == [f"i{n}" for n in range(6)]


def test_a_reader_s_name_is_checked(broker: str, workspace: str) -> None:
    with pytest.raises(FieldError, match="consumer's name"):
        treadle.consume(workspace, "graded", name="No Name", bootstrap_servers=broker)
