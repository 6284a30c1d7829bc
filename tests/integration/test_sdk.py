"""The SDK on a real Kafka: delivery, fork, exit, outages, releases, consume, and the log underneath."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import treadle
from confluent_kafka import Producer
from treadle.errors import LogUnreachable, NotDelivered, TopicMissing
from treadle.log import Admin, Record, Sender, TailReader, read
from treadle.spool import scan
from treadle_schemas import Grade, Progress, ReleaseEvent, WorkspaceSettings
from treadle_schemas.codec import CLOCK, PROGRESS, RELEASE, decode, encode, make_headers, to_json
from treadle_schemas.errors import ContractError
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.broker import LocalBroker

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
PARTITIONS = 2


@pytest.fixture
def workspace(broker: str, workspace_name: str) -> str:
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS))
    return workspace_name


@pytest.fixture
def interactions(broker: str, workspace: str) -> Callable[[], list[dict[str, Any]]]:
    """What arrived on the workspace's interactions topic."""
    name = topic(workspace, "interactions")
    return lambda: [decode(r.value, r.headers).data for r in read(broker, name, PARTITIONS)]


def test_everything_recorded_arrives_and_handles_become_outcomes(
    broker: str, workspace: str, interactions: Callable[[], list[dict[str, Any]]]
) -> None:
    with treadle.Recorder(workspace, bootstrap_servers=broker, agent="desk") as recorder:
        handles = [recorder.record(messages=MESSAGES, task_id=f"t{n}") for n in range(50)]
        for handle in handles:
            recorder.outcome(str(handle), "reward", 1.0)
        assert recorder.flush(30) == 0
        assert recorder.stats() == (100, 100, 0, 0, 0)
    assert {value["interaction_id"] for value in interactions()} == {h.interaction_id for h in handles}
    # the same key lies on the same partition of both topics, as Java's partitioner places it
    places = [
        {r.key: r.partition for r in read(broker, topic(workspace, kind), PARTITIONS)}
        for kind in ("interactions", "outcomes")
    ]
    assert places[0] == places[1]
    assert len(set(places[0].values())) == PARTITIONS


# Each child is a program of its own: fork and exit are about whole processes.
CHILD = """
import multiprocessing, os, signal, sys
import treadle
SERVERS = {broker!r}
recorder = treadle.Recorder({workspace!r}, bootstrap_servers=SERVERS, agent="child")
messages = [{{"role": "user", "content": "hi"}}]
def record(prefix, count=20):
    for n in range(count):
        recorder.record(messages=messages, interaction_id=f"{{prefix}}-{{n}}")
def stats():
    s = recorder.stats()
    assert s.produced == s.acked + s.spooled + s.refused, s
    return s
"""

ENDINGS = {
    "returns": ("record('a')", {"a": 20}, 0),
    "raises": ("record('a')\nraise ValueError('host')", {"a": 20}, 1),
    "exits": ("record('a')\nsys.exit(3)", {"a": 20}, 3),
    "is forked after sending": (
        """
        record("parent")
        pid = os.fork()
        if pid == 0:
            assert stats().produced == 0, "the child begins its own accounts"
            record("child")
            assert stats().produced == 20
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        record("later")
        """,
        {"parent": 20, "child": 20, "later": 20},
        0,
    ),
    "is forked before sending": (
        """
        pid = os.fork()
        if pid == 0:
            record("child")
            recorder.flush()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        record("parent")
        """,
        {"parent": 20, "child": 20},
        0,
    ),
    "uses multiprocessing": (
        """
        record("parent")
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=record, args=(f"mp{n}",)) for n in range(2)]
        for child in children: child.start()
        for child in children: child.join()
        assert [child.exitcode for child in children] == [0, 0]
        """,
        {"parent": 20, "mp0": 20, "mp1": 20},
        0,
    ),
    "is stopped by SIGTERM": (
        "record('a')\nos.kill(os.getpid(), signal.SIGTERM)\nrecord('never')",
        {"a": 20},
        -signal.SIGTERM,
    ),
    "is stopped by SIGTERM, recording straight to Kafka through a thread": (
        """
        recorder = treadle.Recorder(recorder.workspace, bootstrap_servers=SERVERS, durable=False, buffered=True)
        record("a")
        os.kill(os.getpid(), signal.SIGTERM)
        record("never")
        """,
        {"a": 20},
        -signal.SIGTERM,
    ),
    "leaves by os._exit, for its parent to send": (
        """
        import time
        if os.fork() == 0:
            record("child")
            os._exit(0)
        os.wait()
        record("parent")
        assert recorder.flush() == 0
        deadline = time.monotonic() + 20
        while len(list((treadle.Settings.load().spool_folder / recorder.workspace).glob("*.seg"))) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        """,
        {"child": 20, "parent": 20},
        0,
    ),
    "has a SIGTERM handler of its own": (
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        record("a")
        os.kill(os.getpid(), signal.SIGTERM)
        """,
        {"a": 20},
        7,
    ),
    "buffers": (
        "recorder = treadle.Recorder(recorder.workspace, bootstrap_servers=SERVERS, buffered=True)\nrecord('a')",
        {"a": 20},
        0,
    ),
    "waits for the disk": (
        "recorder = treadle.Recorder(recorder.workspace, bootstrap_servers=SERVERS, durable='fsync')\nrecord('a')",
        {"a": 20},
        0,
    ),
    "finds a spool that cannot be written": (
        "recorder = treadle.Recorder(recorder.workspace, bootstrap_servers=SERVERS, spool_dir='/proc/no')\nrecord('a')",
        {"a": 20},
        0,
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_lost_when_a_process(
    ending: str, broker: str, workspace: str, interactions: Callable[[], list[dict[str, Any]]]
) -> None:
    body, expected, code = ENDINGS[ending]
    program = CHILD.format(workspace=workspace, broker=broker) + textwrap.dedent(body)
    ran = subprocess.run(
        # Python 3.12 and later warn of every fork beside threads; that this one is safe is what is tested
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, "event refused" in ran.stderr) == (code, False), ran.stderr
    arrived = [value["interaction_id"] for value in interactions()]
    assert sorted(arrived) == sorted(f"{prefix}-{n}" for prefix, count in expected.items() for n in range(count))


@pytest.mark.parametrize(("how", "code"), [("pass", 0), ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM)])
def test_the_end_of_a_process_waits_for_an_absent_broker_no_longer_than_it_says(how: str, code: int) -> None:
    name = f"nowhere{-code}"
    program = CHILD.format(workspace=name, broker="127.0.0.1:9") + f"record('a')\n{how}"
    started = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == code
    assert 2.0 < time.monotonic() - started < 10.0
    assert ("20 events stay in the spool" in ran.stderr) == (code == 0)  # a signal handler may not log
    (segment,) = (treadle.Settings.load().spool_folder / name).glob("*.seg")
    assert len(scan(segment.read_bytes()).frames) == 20


def test_a_recorder_outlives_its_broker_and_accounts_for_every_event(own_broker: LocalBroker) -> None:
    servers = own_broker.bootstrap
    workspaces.create(servers, WorkspaceSettings(workspace="w", partitions=1))
    recorder = treadle.Recorder("w", bootstrap_servers=servers, raise_errors=False)
    recorder.record(messages=MESSAGES)
    assert recorder.flush() == 0
    own_broker.kill()
    longest_s = 0.0
    for _ in range(200):
        before = time.monotonic()
        recorder.record(messages=MESSAGES)
        longest_s = max(longest_s, time.monotonic() - before)
    during = recorder.stats()
    assert (during.produced, during.spooled) == (201, 200)
    own_broker.start()
    assert recorder.flush(60) == 0
    assert recorder.stats() == (201, 201, 0, 0, 0)
    recorder.close()
    assert sum(1 for _ in read(servers, topic("w", "interactions"), 1)) == 201
    assert longest_s < 0.5  # no call waited for the broker


def test_a_workspace_that_does_not_exist_is_told_by_flush(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from treadle import _delivery

    settings_in_a_hurry = {"topic.metadata.propagation.max.ms": 500}
    monkeypatch.setattr(_delivery, "PRODUCER_EXTRA", {**_delivery.PRODUCER_EXTRA, **settings_in_a_hurry})
    recorder = treadle.Recorder("made-late", bootstrap_servers=broker)
    recorder.record(messages=MESSAGES)
    with pytest.raises(NotDelivered, match=r"(?i)unknown topic"):
        recorder.flush(30)
    assert recorder.stats() == (1, 0, 1, 0, 0)
    # once somebody makes it, the event arrives
    workspaces.create(broker, WorkspaceSettings(workspace="made-late", partitions=1))
    deadline = time.monotonic() + 60
    while recorder.stats().acked == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert recorder.close() == 0
    assert sum(1 for _ in read(broker, topic("made-late", "interactions"), 1)) == 1


@pytest.mark.parametrize("durable", [True, False, "fsync"])
def test_closing_leaves_what_cannot_be_sent_to_the_next_recorder(
    durable: Any, broker: str, workspace: str, interactions: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    recorder = treadle.Recorder(workspace, bootstrap_servers="127.0.0.1:9", spool_dir=tmp_path, durable=durable)
    first = recorder.record(messages=MESSAGES)
    assert recorder.close(timeout_s=0.2) == 1
    assert recorder.stats() == (1, 0, 1, 0, 0)
    with treadle.Recorder(workspace, bootstrap_servers=broker, spool_dir=tmp_path) as after:
        second = after.record(messages=MESSAGES)
        assert after.flush(30) == 0
        wait_until_drained(tmp_path / workspace)
        assert after.stats() == (1, 1, 0, 0, 0)
    assert {v["interaction_id"] for v in interactions()} == {first.interaction_id, second.interaction_id}
    assert list((tmp_path / workspace).iterdir()) == []


def wait_until_drained(folder: Path, left: int = 1) -> None:
    """Until only the segment of the recorder that drains is left."""
    deadline = time.monotonic() + 30
    while len(list(folder.glob("*.seg"))) > left:
        assert time.monotonic() < deadline, list(folder.iterdir())
        time.sleep(0.02)


def test_outcomes_reach_the_workspace_of_their_handle(
    broker: str, workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREADLE_BOOTSTRAP_SERVERS", broker)
    handle = f"{workspace}/e/i"
    made = treadle.outcome(handle, "reward", 0.5, source="test")
    treadle.retract(handle, "reward", made)
    assert treadle.flush(30) == 0
    values = [decode(r.value, r.headers).data for r in read(broker, topic(workspace, "outcomes"), PARTITIONS)]
    assert [(v["name"], v.get("op"), v["outcome_id"]) for v in values] == [
        ("reward", None, made),
        ("reward", "retract", made),
    ]


def _event(sequence: int, event: Any, champion: str | None, slot: str = "main") -> ReleaseEvent:
    return ReleaseEvent(
        event=event,
        slot=slot,
        release=champion,
        champion=champion,
        actor="test",
        reason="",
        at="2026-01-01T00:00:00Z",
        sequence=sequence,
    )


def _publish(broker: str, workspace: str, kind: str, event_type: str, values: list[Any]) -> None:
    sender = Sender(broker)
    for value in values:
        data = {} if value is None else to_json(value)
        headers = make_headers(CLOCK if value is None else event_type, workspace, source="test")
        sender.send(topic(workspace, kind), b"k", encode(data), headers)
    sender.flush()


def test_releases_follow_the_champion_of_one_slot(broker: str, workspace: str) -> None:
    with treadle.Releases(workspace, bootstrap_servers=broker) as releases:
        assert releases.current() is None
        assert releases.poll() is None
        _publish(
            broker,
            workspace,
            "releases",
            RELEASE,
            [
                _event(1, "registered", None),
                _event(2, "promoted", "w/main/r1"),
                _event(3, "promoted", "w/other/r9", slot="other"),
                _event(4, "promoted", "w/main/r2"),
                _event(4, "promoted", "w/main/r2"),
                _event(5, "rejected", "w/main/r3"),
            ],
        )
        found = releases.current()
        assert found is not None
        assert found.champion == "w/main/r2"
        _publish(broker, workspace, "releases", RELEASE, [_event(6, "rolled_back", "w/main/r1")])
        moved = releases.poll(20)
        assert moved is not None
        assert (moved.event, moved.champion) == ("rolled_back", "w/main/r1")
    with pytest.raises(TopicMissing):
        treadle.Releases("no-such-workspace", bootstrap_servers=broker).current()


def test_consume_gives_typed_values_and_can_go_on_where_it_was(broker: str, workspace: str) -> None:
    def progress(n: int) -> Progress:
        return Progress(
            episode_id=f"e{n}",
            interaction_id=f"e{n}",
            task_id=None,
            agent="a",
            slot="main",
            release=None,
            grade=Grade(
                metrics={"reward": ("observed", 1.0)}, reward=1.0, completeness=1.0, settled=True, grading_version=1
            ),
            split="train",
            revision=n,
            append_ms=0,
            ended_at="2026-01-01T00:00:00Z",
        )

    sent = [progress(n) for n in range(3)]
    _publish(broker, workspace, "progress", PROGRESS, [None, *sent[:2], None])
    with treadle.consume(workspace, "progress", bootstrap_servers=broker, idle_s=2) as rows:
        assert [next(rows), next(rows)] == sent[:2]
        assert list(rows) == []  # only a clock record is left
        positions = rows.positions
    _publish(broker, workspace, "progress", PROGRESS, [sent[2]])
    with treadle.consume(workspace, "progress", start=positions, bootstrap_servers=broker, idle_s=2) as rows:
        assert next(rows) == sent[2]
    with treadle.consume(workspace, "progress", start="end", bootstrap_servers=broker, idle_s=0.5) as rows:
        assert list(rows) == []


def test_consume_skips_nothing_in_silence(broker: str, workspace: str) -> None:
    _publish(broker, workspace, "graded", "dev.treadle.graded.v9", [_event(1, "promoted", None)])
    with treadle.consume(workspace, "graded", bootstrap_servers=broker, idle_s=5) as rows:
        with pytest.raises(ContractError, match=rf"treadle\.{workspace}\.graded\[\d\]@0: .*graded\.v9"):
            next(rows)
    with pytest.raises(TopicMissing):
        treadle.consume("no-such-workspace", "graded", bootstrap_servers=broker)


def test_the_command_reports_outcomes(broker: str, workspace: str) -> None:
    command = [sys.executable, "-c", "from treadle.cli import main; main()", "--bootstrap-servers", broker]
    ran = subprocess.run(
        [
            *command,
            "outcome",
            f"{workspace}/e/i",
            "reward=1",
            "note=well done",
            "ok=true",
            "gone=null",
            'n="7"',
            "--retract",
            "old",
            "--observed-at",
            "2026-01-01T00:00:00Z",
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    values = [decode(r.value, r.headers).data for r in read(broker, topic(workspace, "outcomes"), PARTITIONS)]
    assert {v["name"]: v.get("value", "none") for v in values} == {
        "reward": 1,
        "note": "well done",
        "ok": True,
        "gone": None,
        "n": "7",
        "old": "none",
    }
    assert {v["observed_at"] for v in values} == {"2026-01-01T00:00:00Z"}
    assert {o["outcome_id"] for o in json.loads(ran.stdout)["outcomes"]} == {v.get("outcome_id") for v in values}

    missing = subprocess.run(
        [*command, "outcome", "no-such-workspace/e/i", "reward=1"], capture_output=True, text=True, check=False
    )
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith("error: workspace no-such-workspace does not exist")


# The log itself.


@pytest.fixture
def scratch(broker: str, workspace_name: str) -> Iterator[str]:
    """A topic of two partitions."""
    name = f"scratch.{workspace_name}"
    admin = Admin(broker)
    assert admin.create(name, 2, {})
    assert not admin.create(name, 2, {})
    admin.wait_usable({name: 2})
    yield name
    admin.delete([name, name + ".gone-already"])


def _transaction(broker: str, name: str, values: list[bytes], end: str) -> Producer:
    producer = Producer({"bootstrap.servers": broker, "transactional.id": f"tx-{os.urandom(4).hex()}"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for value in values:
        producer.produce(name, value, partition=0)
    assert producer.flush(30) == 0
    if end == "commit":
        producer.commit_transaction(30)
    elif end == "abort":
        producer.abort_transaction(30)
    return producer


def _values(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]


def test_read_ends_behind_markers_and_shows_committed_records_only(broker: str, scratch: str) -> None:
    _transaction(broker, scratch, [b"1", b"2"], "commit")
    _transaction(broker, scratch, [b"no"], "abort")
    assert _values(list(read(broker, scratch, 2))) == [b"1", b"2"]
    # the producer's call returns before the marker is written
    deadline = time.monotonic() + 20
    while Admin(broker).end_offsets([(scratch, 0), (scratch, 1)]) != {(scratch, 0): 5, (scratch, 1): 0}:
        assert time.monotonic() < deadline
    assert _values(list(read(broker, scratch, 2, start={0: 1}))) == [b"2"]
    assert _values(list(read(broker, scratch, 2, until={0: 1}))) == [b"1"]
    assert list(read(broker, scratch, 2, until={0: 0})) == []


def test_read_says_which_partition_is_held_up_by_an_open_transaction(broker: str, scratch: str) -> None:
    producer = _transaction(broker, scratch, [b"open"], "leave open")
    admin = Admin(broker)
    assert admin.end_offsets([(scratch, 0)])[(scratch, 0)] == 1
    assert admin.stable_offsets([(scratch, 0)])[(scratch, 0)] == 0
    with pytest.raises(LogUnreachable, match=r"\[0\]: no progress in 1 s"):
        list(read(broker, scratch, 2, timeout_s=1))
    producer.commit_transaction(30)
    assert _values(list(read(broker, scratch, 2))) == [b"open"]


def test_a_tail_reader_moves_past_markers_and_knows_that_it_is_at_the_end(broker: str, scratch: str) -> None:
    reader = TailReader(broker, {(scratch, 0): 0, (scratch, 1): 0})
    try:
        _transaction(broker, scratch, [b"1"], "commit")
        _transaction(broker, scratch, [b"no"], "abort")
        found: list[Record] = []
        deadline = time.monotonic() + 20
        while reader.positions != {(scratch, 0): 4, (scratch, 1): 0} or len(reader.at_end) < 2:
            assert time.monotonic() < deadline, (reader.positions, reader.at_end)
            found += reader.poll(0.2)
        assert _values(found) == [b"1"]
    finally:
        reader.close()


def test_a_sender_counts_and_names_the_first_failure(broker: str, scratch: str) -> None:
    sender = Sender(broker)
    sender.send(scratch, b"k", b"v", [("h", b"1")], partition=1)
    sender.flush()
    assert (sender.sent, sender.acked, sender.failed) == (1, 1, 0)
    assert list(sender.last_timestamp_ms) == [(scratch, 1)]
    unreachable = Sender("127.0.0.1:9", timeout_s=0.5)
    for _ in range(150):
        unreachable.send(scratch, b"k", b"v", [])
    with pytest.raises(NotDelivered, match="150 records not acknowledged"):
        unreachable.flush(20)
    assert (unreachable.acked, unreachable.failed, len(unreachable.failures)) == (0, 150, 100)


def test_groups_and_their_positions_can_be_asked_and_deleted(broker: str, scratch: str) -> None:
    from confluent_kafka import Consumer, TopicPartition

    group = f"{scratch}.group"
    consumer = Consumer({"bootstrap.servers": broker, "group.id": group})
    consumer.commit(offsets=[TopicPartition(scratch, 1, 7)], asynchronous=False)
    consumer.close()
    admin = Admin(broker)
    assert admin.groups(group) == {group: 0}
    assert admin.committed(group, [(scratch, 0), (scratch, 1)]) == {(scratch, 0): 0, (scratch, 1): 7}
    admin.delete_groups([group, f"{group}.gone-already"])
    assert admin.groups(group) == {}


def test_no_broker_is_an_error_that_a_retry_can_help() -> None:
    with pytest.raises(LogUnreachable) as caught:
        Admin("127.0.0.1:9").partitions(timeout_s=1)
    assert caught.value.retriable
    assert caught.value.exit_code == 5
