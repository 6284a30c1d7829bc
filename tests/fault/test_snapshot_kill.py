"""kill -9 of the snapshotter at random moments: every version is the exact fold of the offsets inside it, and every version is announced.

The recount knows nothing of the corpus: it folds `.graded`, record by record, up to the offsets that a version names.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from treadle.log import Record, Sender, read
from treadle_corpus import Corpus, CorpusError, content_hash, read_record, row_line, versions
from treadle_corpus.testing import graded
from treadle_schemas.canonical import canonical_json
from treadle_schemas.codec import GRADED, make_headers
from treadle_schemas.records import GradedRow, SnapshotRecord
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings
from treadle_streams import workspaces

if TYPE_CHECKING:
    from treadle_streams.broker import LocalBroker

PARTITIONS = 3
ROWS = 400
PATIENCE_S = 180.0
"""On a busy machine a run of a second takes a minute."""
SMALL = (
    "from treadle_corpus import _bodies, _journal; _bodies.SEGMENT_BODIES = 40; "
    "_journal.ROTATE_BYTES, _journal.ROTATE_FACTOR = 10_000, 0; "
    "from treadle_streams.snapshot import service; service.AHEAD_RECORDS = 7; "
)
"""Segments are sealed, journals begun anew, and records folded before a run is due, all the time."""


class Producer(threading.Thread):
    """Writes graded rows and corrections of them until it is told to stop, some records twice."""

    def __init__(self, servers: str, workspace: str, seed: int) -> None:
        super().__init__()
        self._sender = Sender(servers)
        self._workspace = workspace
        self._chance = random.Random(seed)
        self._stop_now = threading.Event()
        self.count = 0

    def run(self) -> None:
        revisions: dict[str, int] = {}
        while not self._stop_now.is_set():
            for _ in range(20):
                name = f"r{self._chance.randrange(ROWS)}"
                revisions[name] = revisions.get(name, 0) + 1
                record = graded(
                    name,
                    revision=revisions[name],
                    reward=self._chance.choice([None, 0.0, 0.5, 1.0]),
                    split="heldout" if int(name[1:]) % 5 == 0 else "train",
                    settled=self._chance.random() < 0.95,
                )
                headers = make_headers(GRADED, self._workspace, source="test")
                headers.append(("row_id", canonical_json(list(record.key))))
                for _ in range(1 + (self._chance.random() < 0.1)):
                    self._sender.send(topic(self._workspace, "graded"), name.encode(), record.body, headers)
                    self.count += 1
            self._stop_now.wait(0.04)
        # the last one is a change for sure, so that there is a version at the very end
        self._sender.send(
            topic(self._workspace, "graded"),
            b"last",
            graded("last").body,
            make_headers(GRADED, self._workspace, source="test"),
        )
        self._sender.flush()

    def end(self) -> None:
        self._stop_now.set()
        self.join()


def start(servers: str, workspace: str, corpus: Path, home: Path, log: Path) -> subprocess.Popen[bytes]:
    options = [
        "--to",
        str(corpus),
        "--filter",
        "reward > 0",
        "--min-new-rows",
        "30",
        "--every",
        "300ms",
        "--wait",
        "10s",
    ]
    command = [
        sys.executable,
        "-c",
        SMALL + "from treadle.cli import main; main()",
        "snapshotter",
        "--workspace",
        workspace,
        *options,
    ]
    environment = {**os.environ, "TREADLE_BOOTSTRAP_SERVERS": servers, "TREADLE_HOME": str(home)}
    with log.open("ab") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out)


def recount(log: list[Record], offsets: dict[str, int]) -> str:
    rows: dict[tuple[str, str], GradedRow] = {}
    for record in log:
        if record.offset < offsets[str(record.partition)]:
            assert record.value is not None
            row = read_record(record.value).row
            rows[row.episode_id, row.interaction_id] = row
    selected = [key for key, row in rows.items() if row.grade.settled and (row.grade.reward or 0.0) > 0]
    return content_hash(row_line(rows[key]) for key in sorted(selected))


def newest(corpus: Path) -> int:
    try:
        return max(versions(corpus), default=0)
    except CorpusError:
        return 0


@pytest.mark.fault
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [5, pytest.param(60, marks=pytest.mark.long)])
def test_every_version_is_the_exact_fold_of_its_offsets_whenever_the_snapshotter_is_killed(
    broker: str, workspace_name: str, tmp_path: Path, kills: int
) -> None:
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS))
    corpus, log = tmp_path / "corpus", tmp_path / "snapshotter.log"
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    producer = Producer(broker, workspace_name, seed)
    producer.start()
    process = None
    try:
        for kill in range(kills):
            before = newest(corpus)
            process = start(broker, workspace_name, corpus, tmp_path, log)
            deadline = time.monotonic() + PATIENCE_S
            # every second one dies while it starts or in its first run, the others after a version of their own
            while kill % 2 and newest(corpus) == before:
                assert time.monotonic() < deadline, log.read_text()
                assert process.poll() is None, log.read_text()
                time.sleep(0.02)
            time.sleep(chance.uniform(0.0, 0.5 if kill % 2 else 2.5))
            process.kill()
            assert process.wait(30) == -9, log.read_text()
            print(f"kill {kill + 1}: version {before} before, {newest(corpus)} after, {producer.count} records written")
        producer.end()
        process = start(broker, workspace_name, corpus, tmp_path, log)
        records = list(read(broker, topic(workspace_name, "graded"), PARTITIONS))
        ends = {str(p): max(r.offset + 1 for r in records if r.partition == p) for p in range(PARTITIONS)}
        deadline = time.monotonic() + PATIENCE_S
        while newest(corpus) == 0 or Corpus.open(corpus).manifest.offsets != ends:
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    finally:
        producer.end()
        if process is not None:
            process.kill()
            process.wait()
    made = versions(corpus)
    assert made == list(range(1, len(made) + 1))
    assert len(made) >= 3, "too few versions to say anything"
    segments, journals = len(list((corpus / "bodies").glob("*.json"))), len(list((corpus / "index").iterdir()))
    assert segments >= 1, "nothing was sealed"
    assert journals >= 2, "no journal was begun anew"
    for number in made:
        version = Corpus.open(f"{corpus}@v{number}")
        assert version.manifest.content_hash == recount(records, version.manifest.offsets), f"v{number}, seed {seed}"
        version.verify()
    told = [
        msgspec.json.decode(r.value or b"", type=SnapshotRecord)
        for r in read(broker, topic(workspace_name, "snapshots"), 1)
    ]
    assert {t.version for t in told} >= set(made[:-1])
    assert not list(read(broker, topic(workspace_name, "dead-letter"), PARTITIONS))
    print(
        f"{len(made)} versions, {producer.count} records, all equal to the fold of their offsets; {segments} segments, {journals} journals"
    )


@pytest.mark.fault
@pytest.mark.long
def test_the_snapshotter_outlives_two_deaths_of_the_broker(
    own_broker: LocalBroker, workspace_name: str, tmp_path: Path
) -> None:
    servers = own_broker.bootstrap
    workspaces.create(servers, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS))
    corpus, log = tmp_path / "corpus", tmp_path / "snapshotter.log"
    producer = Producer(servers, workspace_name, 1)
    producer.start()
    process = start(servers, workspace_name, corpus, tmp_path, log)
    try:
        for _ in range(2):
            before, deadline = newest(corpus), time.monotonic() + PATIENCE_S
            while newest(corpus) == before:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            own_broker.kill()
            own_broker.start()
        producer.end()
        records = list(read(servers, topic(workspace_name, "graded"), PARTITIONS))
        ends = {str(p): max(r.offset + 1 for r in records if r.partition == p) for p in range(PARTITIONS)}
        deadline = time.monotonic() + PATIENCE_S
        while Corpus.open(corpus).manifest.offsets != ends:
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    finally:
        producer.end()
        process.kill()
        process.wait()
    for number in versions(corpus):
        version = Corpus.open(f"{corpus}@v{number}")
        assert version.manifest.content_hash == recount(records, version.manifest.offsets)
