"""The worker as a process on a real broker: what goes in comes out, and what is wrong comes out as a dead letter."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer
from treadle.log import Admin, Record, Sender, read
from treadle_schemas import GradedRow, Metric, WorkspaceSettings, codec, split_group
from treadle_schemas.moments import from_micros
from treadle_schemas.parts import SentParts, link_hash, split
from treadle_schemas.topics import group, topic
from treadle_streams import workspaces
from treadle_streams.broker import LocalBroker
from treadle_streams.worker import status_path

PARTITIONS = 2
T0_US = 1_700_000_000_000_000


class Bench:
    """A fresh workspace on the broker, and the workers a test starts in it."""

    def __init__(self, servers: str, workspace: str, home: Path) -> None:
        self.servers, self.workspace, self.home = servers, workspace, home
        metrics = (Metric(name="reward", required=True), Metric(name="score", low=0.0, high=1.0))
        workspaces.create(servers, WorkspaceSettings(workspace=workspace, partitions=PARTITIONS, metrics=metrics))
        self.admin = Admin(servers)
        self.sender = Sender(servers)
        self.workers: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        worker = start(self.servers, self.home, "--workspace", self.workspace, *arguments)
        self.workers.append(worker)
        return worker

    def send(self, kind: str, event_type: str, data: Any, key: str | None, **changes: Any) -> None:
        value = data if isinstance(data, bytes | None) else json.dumps(data).encode()
        headers = changes.pop("headers", None) or codec.make_headers(event_type, self.workspace, source="test")
        raw_key = None if key is None else key.encode()
        self.sender.send(topic(self.workspace, kind), raw_key, value, headers, **changes)

    def interaction(self, interaction_id: str, **changes: Any) -> None:
        data = {
            "interaction_id": interaction_id,
            "agent": "bot",
            "task_id": f"task-{interaction_id}",
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
            "started_at": at(0),
            "ended_at": at(1),
        } | changes
        self.send("interactions", codec.INTERACTION, data, data["interaction_id"])

    def outcome(self, interaction_id: str, value: Any, outcome_id: str = "o", second: int = 2, **changes: Any) -> None:
        data = outcome(interaction_id, value, outcome_id, second) | changes
        self.send("outcomes", codec.OUTCOME, data, interaction_id)

    def graded(self) -> dict[str, list[GradedRow]]:
        rows: dict[str, list[GradedRow]] = {}
        for record in self.records("graded"):
            row = msgspec.json.decode(record.value or b"", type=GradedRow)
            rows.setdefault(row.interaction_id, []).append(row)
        return rows

    def records(self, kind: str) -> list[Record]:
        return list(read(self.servers, topic(self.workspace, kind), PARTITIONS))

    def status(self) -> dict[str, Any]:
        try:
            return dict(json.loads(status_path(self.home, self.workspace).read_text()))
        except FileNotFoundError:
            return {}

    def wait(self, what: str, condition: Callable[[], bool], deadline_s: float = 120.0) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            for worker in self.workers:
                if worker.poll() not in (None, 0, -signal.SIGTERM):
                    raise AssertionError(f"the worker ended with {worker.returncode}: {said(worker)}")
            assert time.monotonic() < end, f"{what}: not within {deadline_s} s; {self.status()}"
            time.sleep(0.1)

    def stop(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in self.workers:
            worker.wait(30)
            assert worker.stderr is not None
            worker.stderr.close()


def start(servers: str, home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")}
    environment |= {"TREADLE_HOME": str(home), "TREADLE_BOOTSTRAP_SERVERS": servers}
    command = [sys.executable, "-m", "treadle_streams.worker", *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def outcome(
    interaction_id: str, value: Any = 1.0, outcome_id: str = "o", second: int = 2, **changes: Any
) -> dict[str, Any]:
    return {
        "interaction_id": interaction_id,
        "name": "reward",
        "value": value,
        "outcome_id": outcome_id,
        "observed_at": at(second),
    } | changes


def said(worker: subprocess.Popen[str]) -> str:
    """What a worker that has ended wrote on stderr."""
    assert worker.stderr is not None
    with worker.stderr as stderr:
        return stderr.read()


def at(second: float) -> str:
    return from_micros(T0_US + int(second * 1e6))


@pytest.fixture
def bench(broker: str, workspace_name: str, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(broker, workspace_name, tmp_path)
    try:
        yield made
    finally:
        made.stop()


def test_an_outcome_updates_its_row_whether_it_comes_before_or_late(bench: Bench) -> None:
    bench.outcome("early", 0.25)
    bench.sender.flush()
    worker = bench.start()
    bench.wait("the orphan is kept", lambda: bench.status().get("orphans") == 1)
    bench.interaction("early")
    bench.interaction("late")
    bench.outcome("late", 1.0)
    bench.sender.flush()
    bench.wait("both rows settle", lambda: bench.status().get("settled") == 2)
    bench.outcome("late", 0.0, "o2", second=3)
    bench.outcome("late", None, "o3", second=4, name="score")
    bench.sender.flush()
    bench.wait("the late outcome is a correction", lambda: (bench.status().get("corrections") or 0) >= 1)
    bench.wait("all is joined", lambda: bench.status().get("lag") == 0)

    rows = bench.graded()
    assert [r.grade.reward for r in rows["early"]] == [0.25]
    assert rows["late"][0].grade.reward == 1.0
    assert rows["late"][-1].grade.reward == 0.0
    assert rows["late"][-1].grade.metrics == {"reward": ("observed", 0.0), "score": ("absent", None)}
    assert [r.provenance.revision for r in rows["late"]] == list(range(1, len(rows["late"]) + 1))
    assert rows["late"][-1].provenance.outcome_ids == ["o", "o2", "o3"]
    record = next(r for r in bench.records("graded") if b'"late"' in (r.value or b""))
    assert record.key == b"late"
    headers = codec.header_map(record.headers)
    assert headers["row_id"] == b'["late","late"]'
    assert (headers["ce_type"], headers["ce_workspace"]) == (codec.GRADED.encode(), bench.workspace.encode())

    # each input's position is committed, and a clock record a second lies on each partition of .progress
    inputs = [(topic(bench.workspace, k), p) for k in ("interactions", "outcomes") for p in range(PARTITIONS)]
    assert bench.admin.committed(group(bench.workspace, "join"), inputs) == bench.admin.end_offsets(inputs)
    clocks = [r for r in bench.records("progress") if codec.header_map(r.headers)["ce_type"] == codec.CLOCK.encode()]
    assert {r.partition for r in clocks} == set(range(PARTITIONS))
    assert all((r.key, r.value) == (None, b"{}") for r in clocks)

    batches = bench.status()["batches"]
    seen = len(clocks)
    bench.wait("more clock records", lambda: len(_clocks(bench)) >= seen + 2 * PARTITIONS)
    assert bench.status()["batches"] == batches, "nothing to do needs no transaction"
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert bench.status() == {}, "a worker that ended well leaves no status"


def _clocks(bench: Bench) -> list[Record]:
    return [r for r in bench.records("progress") if codec.header_map(r.headers)["ce_type"] == codec.CLOCK.encode()]


def test_malformed_events_become_dead_letters_with_reason_topic_partition_and_offset(bench: Bench) -> None:
    good = {"interaction_id": "x", "agent": "a", "messages": [{"role": "user"}], "started_at": at(0), "ended_at": at(0)}
    fine = {"interaction_id": "x", "name": "reward", "value": 1, "outcome_id": "o", "observed_at": at(0)}
    deep: Any = 1
    for _ in range(80):
        deep = [deep]
    toys = codec.make_headers(codec.OUTCOME, "toys", source="test")
    bad: list[tuple[str, str, str, Any, str | None, dict[str, Any]]] = [
        ("malformed", "interactions", codec.INTERACTION, b"{no json", "x", {}),
        ("malformed", "interactions", codec.INTERACTION, b'"text"', "x", {}),
        ("malformed", "interactions", codec.INTERACTION, b"\xff\xfe", "x", {}),
        ("malformed", "interactions", codec.INTERACTION, None, "x", {}),
        ("malformed", "interactions", codec.INTERACTION, good | {"messages": []}, "x", {}),
        ("malformed", "interactions", codec.INTERACTION, good | {"ended_at": "soon"}, "x", {}),
        ("malformed", "interactions", codec.INTERACTION, good | {"sampling": {"a": deep}}, "x", {}),
        ("malformed", "interactions", codec.INTERACTION, good, "another key", {}),
        ("malformed", "interactions", codec.INTERACTION, good, None, {"partition": 0}),
        ("malformed", "interactions", "", good, "x", {"headers": [("something", b"else"), ("empty", None)]}),
        ("malformed", "interactions", codec.OUTCOME, fine, "x", {}),
        ("malformed", "outcomes", codec.OUTCOME, fine | {"outcome_id": None}, "x", {}),
        ("malformed", "outcomes", codec.IMPORT_MARKER, {"phase": "begin"}, None, {"partition": 1}),
        ("unknown_type", "outcomes", "dev.treadle.outcome.v9", fine, "x", {}),
        ("wrong_workspace", "outcomes", codec.OUTCOME, fine, "x", {"headers": toys}),
        ("bad_value", "outcomes", codec.OUTCOME, fine | {"value": "great"}, "x", {}),
        ("bad_value", "outcomes", codec.OUTCOME, fine | {"name": "score", "value": 7}, "x", {}),
        ("malformed", "references", codec.OUTCOME, {}, "pr:1", {}),
        ("too_large", "interactions", codec.INTERACTION, good | {"error": "x" * (9 << 20)}, "x", {}),
    ]
    bench.interaction("x")
    for _, kind, event_type, data, key, extra in bad:
        bench.send(kind, event_type, data, key, **extra)
    bench.outcome("x", 1.0)
    bench.sender.flush()
    worker = bench.start("--once-caught-up")
    assert worker.wait(60) == 0, said(worker)

    inputs = {
        (r.topic, r.partition, r.offset): r
        for kind in ("interactions", "outcomes", "references")
        for r in bench.records(kind)
    }
    dead = bench.records("dead-letter")
    assert sorted(codec.header_map(r.headers)["reason"].decode() for r in dead) == sorted(b[0] for b in bad)
    for record in dead:
        headers = codec.header_map(record.headers)
        where = (headers["topic"].decode(), int(headers["partition"]), int(headers["offset"]))
        source = inputs.pop(where)
        assert (record.partition, record.key, record.value) == (source.partition, source.key, source.value)
        assert int(headers["timestamp"]) == source.timestamp_ms
        assert headers["detail"]
        original = {k.removeprefix("original."): v for k, v in headers.items() if k.startswith("original.")}
        assert original == {k: v or b"" for k, v in source.headers}
    assert len(inputs) == 2, "the good ones are joined"
    assert [r.grade.reward for r in bench.graded()["x"]] == [1.0]


def test_positions_are_committed_past_the_markers_of_transactions_on_idle_partitions_too(bench: Bench) -> None:
    producer = Producer(
        {"bootstrap.servers": bench.servers, "transactional.id": f"{bench.workspace}-test", "log_level": 0}
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    headers: Any = codec.make_headers(codec.INTERACTION, bench.workspace, source="test")
    data = {"interaction_id": "x", "agent": "a", "messages": [{"role": "user"}], "started_at": at(0), "ended_at": at(0)}
    producer.produce(topic(bench.workspace, "interactions"), json.dumps(data), "x", partition=0, headers=headers)
    producer.flush()
    producer.abort_transaction(30)
    bench.start()
    inputs = [(topic(bench.workspace, "interactions"), p) for p in range(PARTITIONS)]
    deadline = time.monotonic() + 30
    while (ends := bench.admin.end_offsets(inputs))[inputs[0]] < 2:  # Kafka writes the marker after it answered
        assert time.monotonic() < deadline, "an aborted record and its marker"
        time.sleep(0.02)
    bench.wait(
        "the position passes the marker",
        lambda: bench.admin.committed(group(bench.workspace, "join"), inputs) == ends,
    )
    bench.wait("an aborted record is none", lambda: bench.status().get("captured") == 0)


def test_a_worker_without_its_state_refuses_instead_of_grading_anew(bench: Bench) -> None:
    bench.interaction("x")
    bench.outcome("x", 1.0)
    bench.sender.flush()
    assert bench.start("--once-caught-up").wait(60) == 0
    changelog = group(bench.workspace, "join") + "-rows-changelog"
    bench.admin.delete([changelog])
    bench.wait("the changelog is gone", lambda: changelog not in bench.admin.partitions())
    worker = bench.start()
    assert worker.wait(60) == 1
    reason = said(worker)
    assert "there is no META" in reason
    assert "--from-log" in reason
    assert len(bench.graded()["x"]) == 1


def test_a_row_waits_for_its_parts_across_a_kill_and_the_loss_of_the_local_state(bench: Bench) -> None:
    value = {
        "interaction_id": "x",
        "episode_id": "e",
        "agent": "bot",
        "messages": [{"role": "user", "content": f"{n} " * 600} for n in range(3)],
        "started_at": at(0),
        "ended_at": at(1),
    }
    body, [part] = split(value, SentParts())
    first, rest = {**part, "messages": part["messages"][:1]}, {**part, "messages": part["messages"][1:]}
    first |= {"part": link_hash(None, first["messages"][0]), "count": 1}
    rest["prev"] = first["part"]
    worker = bench.start()
    bench.send("interactions", codec.PART, rest, "e")
    bench.send("interactions", codec.INTERACTION, body, "e")
    bench.send("outcomes", codec.OUTCOME, outcome("x", episode_id="e"), "e")
    bench.sender.flush()
    bench.wait("the row waits", lambda: bench.status().get("counts", {}).get("waiting") == 1)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    bench.workers.remove(worker)
    assert worker.stderr is not None
    worker.stderr.close()
    shutil.rmtree(bench.home / "state")
    bench.start()
    bench.send("interactions", codec.PART, first, "e")
    bench.sender.flush()
    bench.wait("it settles", lambda: len(bench.records("graded")) == 2)
    sent, row = (json.loads(record.value or b"") for record in bench.records("graded"))
    assert sent["messages"] == value["messages"]
    assert row["interaction"] == body
    assert row["split_group"] == split_group(None, value["messages"])  # type: ignore[arg-type]


def test_a_start_that_cannot_succeed_says_why_and_exits_with_the_code_of_the_reason(
    broker: str, tmp_path: Path
) -> None:
    missing = start(broker, tmp_path, "--workspace", "no-such-workspace")
    unreachable = start("127.0.0.1:1", tmp_path, "--workspace", "any")
    assert missing.wait(60) == 1
    assert "does not exist" in said(missing)
    assert unreachable.wait(60) == 5
    assert "127.0.0.1:1" in said(unreachable)


def test_without_a_workspace_each_workspace_gets_a_worker_as_it_comes(
    own_broker: LocalBroker, workspace_name: str, tmp_path: Path
) -> None:
    parent = start(own_broker.bootstrap, tmp_path)
    bench = Bench(own_broker.bootstrap, workspace_name, tmp_path)
    try:
        bench.wait("its worker", lambda: bench.status().get("state") == "running")
        pid = bench.status()["pid"]
    finally:
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(40) == 0
        said(parent)
    assert not Path(f"/proc/{pid}").exists()
