"""Names, ends and rebuilding of the join's state, with real workers on a real broker and several partitions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from treadle.log import Admin, Record, read
from treadle_schemas import Metric, WorkspaceSettings, codec
from treadle_schemas.topics import group, topic
from treadle_streams import workspaces
from treadle_streams.dead_letters import letters, replay
from treadle_streams.errors import WorkspaceInUse
from treadle_streams.join import META_KEY
from treadle_streams.worker._restore import restore
from treadle_streams.worker._settings import CHANGELOG_CONFIG

sys.path.append(str(Path(__file__).resolve().parent.parent))

from integration.test_worker import PARTITIONS, Bench, at, outcome, said  # type: ignore[import-not-found]

PULL = "pr:org/repo#12"


@pytest.fixture
def bench(broker: str, workspace_name: str, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(broker, workspace_name, tmp_path)
    try:
        yield made
    finally:
        made.stop()


def by_name(bench: Bench, value: Any, outcome_id: str, second: int = 2, **said: Any) -> None:
    data = {"name": "reward", "value": value, "outcome_id": outcome_id, "observed_at": at(second)} | said
    bench.send("outcomes", codec.OUTCOME, data, said.get("interaction_id") or said["reference"])


def in_episode(bench: Bench, interaction_id: str, episode_id: str, **changes: Any) -> None:
    data = {
        "interaction_id": interaction_id,
        "episode_id": episode_id,
        "agent": "bot",
        "task_id": f"task-{episode_id}",
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
        "started_at": at(0),
        "ended_at": at(1),
    } | changes
    bench.send("interactions", codec.INTERACTION, data, episode_id)


def rewards(bench: Bench) -> dict[str, float | None]:
    return {row: revisions[-1].grade.reward for row, revisions in bench.graded().items()}


def idle(bench: Bench) -> Callable[[], bool]:
    return lambda: bench.status().get("lag") == 0


def changelog(bench: Bench) -> list[Record]:
    return list(read(bench.servers, f"{group(bench.workspace, 'join')}-rows-changelog", PARTITIONS))


def treadle(bench: Bench, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")}
    environment |= {"TREADLE_HOME": str(bench.home), "TREADLE_BOOTSTRAP_SERVERS": bench.servers}
    command = [sys.executable, "-m", "treadle", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_outcomes_by_reference_and_by_interaction_id_find_rows_in_other_partitions_also_across_a_kill(
    bench: Bench,
) -> None:
    by_name(bench, 0.25, "early", reference=PULL)
    bench.sender.flush()
    worker = bench.start()
    bench.wait("the outcome waits", lambda: bench.status().get("orphans") == 1)
    worker.kill()
    worker.wait(30)
    bench.workers.remove(worker)
    said(worker)
    for n in range(6):
        in_episode(bench, f"i{n}", f"e{n}", references=[PULL] if n < 4 else None)
        by_name(bench, n / 10, "own", 1, interaction_id=f"i{n}")
    bench.sender.flush()
    bench.start()
    bench.wait("all rows settle", lambda: bench.status().get("settled") == 6)
    bench.wait(
        "what waited has arrived", lambda: rewards(bench) == {f"i{n}": 0.25 if n < 4 else n / 10 for n in range(6)}
    )
    assert bench.status()["orphans"] == 0
    assert bench.status()["counts"]["rekeyed"] == 10
    retract = {"name": "reward", "observed_at": at(5), "op": "retract", "reference": PULL}
    bench.send("outcomes", codec.OUTCOME, retract, PULL)
    bench.sender.flush()
    bench.wait("it is taken back from all", lambda: list(rewards(bench).values()).count(None) == 4)
    assert bench.records("dead-letter") == []


def test_dead_letters_are_listed_shown_sent_again_and_put_aside(bench: Bench) -> None:
    bench.start()
    bench.outcome("i", "great", "bad")
    toys = codec.make_headers(codec.OUTCOME, "toys", source="test")
    bench.send("outcomes", codec.OUTCOME, outcome("i", 0.5, "lost"), "i", headers=toys)
    bench.interaction("i")
    bench.sender.flush()
    bench.wait("both are refused", lambda: len(bench.records("dead-letter")) == 2)
    servers, workspace = bench.servers, workspaces.get(bench.servers, bench.workspace)
    found = {letter.reason: letter for letter in letters(servers, workspace)}
    assert set(found) == {"bad_value", "wrong_workspace"}
    bad, lost = found["bad_value"], found["wrong_workspace"]
    assert json.loads(bad.value or b"") == outcome("i", "great", "bad")
    assert (bad.key, bad.topic, bad.done) == (b"i", topic(bench.workspace, "outcomes"), None)
    assert dict(bad.headers)["ce_type"] == codec.OUTCOME.encode()

    shown = treadle(bench, "dead-letter", "show", lost.name, "-w", bench.workspace)
    assert json.loads(shown.stdout)["value"] == outcome("i", 0.5, "lost")
    mended = [(name, bench.workspace.encode() if name == "ce_workspace" else value) for name, value in lost.headers]
    assert replay(servers, workspace, [msgspec.structs.replace(lost, headers=mended)])[0].name == lost.name
    bench.wait("it counts now", lambda: rewards(bench) == {"i": 0.5})
    dropped = treadle(bench, "dead-letter", "drop", "--reason", "bad_value", "-w", bench.workspace, "--yes", "--json")
    assert json.loads(dropped.stdout) == {"dropped": 1}
    assert {letter.name: letter.done for letter in letters(servers, workspace)} == {
        bad.name: "dropped",
        lost.name: "replayed",
    }
    listed = treadle(bench, "dead-letter", "list", "-w", bench.workspace, "--json")
    assert json.loads(listed.stdout) == []
    again = treadle(bench, "dead-letter", "replay", bad.name, "-w", bench.workspace, "--yes")
    assert again.stdout == "replayed 1 records\n"
    bench.wait("it is still wrong", lambda: [x.reason for x in letters(servers, workspace)].count("bad_value") == 2)


def test_lost_state_is_refused_and_rebuilt_from_the_log_with_revisions_above_those_there_were(bench: Bench) -> None:
    bench.start()
    for n in range(4):
        in_episode(bench, f"i{n}", f"e{n}", references=[PULL])
    by_name(bench, 1.0, "o1", reference=PULL)
    by_name(bench, "great", "bad", reference=PULL)
    by_name(bench, 1.0, "lonely", reference="pr:nobody#1")
    bench.sender.flush()
    bench.wait("all rows settle", lambda: bench.status().get("settled") == 4 and idle(bench)())
    bench.wait("it was refused", lambda: len(bench.records("dead-letter")) == 1)
    before = bench.graded()
    bench.stop()
    bench.workers.clear()

    name = f"{group(bench.workspace, 'join')}-rows-changelog"
    bench.admin.delete([name])
    bench.wait("the changelog is gone", lambda: name not in bench.admin.partitions())
    refused = bench.start()
    assert refused.wait(60) == 1
    bench.workers.clear()
    assert f"treadle restore {bench.workspace} --from-log" in said(refused)

    assert treadle(bench, "restore", bench.workspace, "--from-log").returncode == 1, "it asks first"
    done = treadle(bench, "restore", bench.workspace, "--from-log", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 4
    bench.start()
    bench.wait("the state is there again", lambda: bench.status().get("counts", {}).get("restored") == PARTITIONS)
    assert (bench.status()["settled"], bench.status()["orphans"], bench.status()["captured"]) == (4, 1, 4)
    assert bench.graded() == before, "nothing is said again"
    assert len(bench.records("dead-letter")) == 1
    with pytest.raises(WorkspaceInUse, match="a worker runs"):
        restore(bench.servers, workspaces.get(bench.servers, bench.workspace), patience_s=0.0)

    by_name(bench, 0.5, "o2", 9, reference=PULL)
    bench.sender.flush()
    bench.wait("a correction", lambda: set(rewards(bench).values()) == {0.5})
    revisions = [[row.provenance.revision for row in rows] for rows in bench.graded().values()]
    assert revisions == [[row.provenance.revision for row in before[name]] + [len(before[name]) + 1] for name in before]


def test_ended_rows_leave_the_changelog_and_the_disk_and_what_comes_late_is_a_dead_letter(
    broker: str, workspace_name: str, tmp_path: Path
) -> None:
    bench = Bench.__new__(Bench)
    bench.servers, bench.workspace, bench.home = broker, workspace_name, tmp_path
    metrics = (Metric(name="reward", required=True, horizon_s=0.0),)
    settings = WorkspaceSettings(
        workspace=workspace_name, partitions=PARTITIONS, metrics=metrics, grace_s=0.0, retention_s=1.0
    )
    workspaces.create(broker, settings)
    bench.admin, bench.workers = Admin(broker), []
    from treadle.log import Sender

    bench.sender = Sender(broker)
    name = f"{group(workspace_name, 'join')}-rows-changelog"
    at_once = {"segment.ms": "200", "min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "0"}
    bench.admin.create(name, PARTITIONS, {**CHANGELOG_CONFIG, **at_once, "max.compaction.lag.ms": "500"})
    bench.admin.wait_usable({name: PARTITIONS})
    try:
        bench.start()
        for n in range(40):
            bench.interaction(f"i{n}", messages=[{"role": "user", "content": "x" * 2_000}])
        bench.outcome("nobody", 1.0)
        bench.sender.flush()
        bench.wait("all rows end", lambda: bench.status().get("counts", {}).get("tombstones") == 40)
        bench.wait("the orphan ends", lambda: bench.status()["dead_letters"].get("orphan") == 1)
        assert (bench.status()["captured"], bench.status()["orphans"]) == (0, 0)
        assert len(bench.graded()) == 40
        bench.outcome("i7", 1.0)
        bench.sender.flush()
        bench.wait("it came too late", lambda: bench.status()["dead_letters"].get("row_expired") == 1)
        records = changelog(bench)
        before = sum(len(r.value or b"") for r in records)
        left = {(r.partition, r.key): r.value for r in records}
        assert {key[:1] for (_, key), value in left.items() if value is not None and key and key != META_KEY} == {b"x"}
        assert sum(value is None for value in left.values()) >= 40, (
            "rows end with a null, so that compaction forgets them"
        )

        def compacted() -> bool:
            for n in range(8):  # on both partitions: the segment that is written to is not compacted
                bench.outcome(f"i{n}", 1.0)
            bench.sender.flush()
            records = changelog(bench)
            rows = [r for r in records if (r.key or b"").startswith(b"r") and r.value is not None]
            return not rows and sum(len(r.value or b"") for r in records) < before / 2

        bench.wait("the broker's compaction forgets the rows", compacted, 90.0)
        bench.wait("the status shows it", lambda: (bench.status().get("state_bytes") or 0) > 0)

        # a new owner rebuilds no more than that
        worker = bench.workers.pop()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
        said(worker)
        shutil.rmtree(tmp_path / "state")
        bench.start()
        bench.wait("it is back", lambda: bench.status().get("counts", {}).get("tombstones") == 40)
        assert bench.status()["captured"] == 0
    finally:
        bench.stop()
    assert topic(workspace_name, "graded") in bench.admin.partitions()
