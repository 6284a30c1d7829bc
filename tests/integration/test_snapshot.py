"""Runs, the service and the commands, on a real Kafka and real Deeplake. `.graded` is written by the test; see tests/e2e for the join."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from treadle.cli import main
from treadle.log import Admin, Sender, read
from treadle_corpus import Corpus, CorpusLocked, GradedRecord, Policy, content_hash, decode_key, row_line
from treadle_corpus.testing import graded
from treadle_schemas.canonical import canonical_json
from treadle_schemas.codec import CLOCK, GRADED, PROGRESS, Headers, header_map, make_headers
from treadle_schemas.records import SnapshotRecord
from treadle_schemas.topics import group, topic
from treadle_schemas.workspace import Metric, WorkspaceSettings
from treadle_streams import workspaces
from treadle_streams.filter import FilterError
from treadle_streams.snapshot import JoinBehind, LogMismatch, RunReport, Snapshotter, run_snapshot, serve
from treadle_streams.snapshot import service as snapshot_service

PARTITIONS = 2


class Log:
    """A workspace on a real Kafka, and the records that the join would write into it."""

    def __init__(self, servers: str, name: str) -> None:
        settings = WorkspaceSettings(
            workspace=name,
            partitions=PARTITIONS,
            metrics=(Metric(name="reward", required=True), Metric(name="cost")),
        )
        self.servers = servers
        self.name = name
        self.settings = workspaces.create(servers, settings)
        self.sender = Sender(servers)

    def graded(self, *records: GradedRecord) -> None:
        for record in records:
            self.send(record)
        self.sender.flush()

    def send(self, record: GradedRecord) -> None:
        row = record.row
        headers = [*make_headers(GRADED, self.name, source="test"), ("row_id", canonical_json(list(record.key)))]
        headers.append(("revision", str(row.provenance.revision).encode()))
        self.sender.send(topic(self.name, "graded"), row.episode_id.encode(), record.body, headers)

    def progress(self, interaction_id: str, settled: bool) -> None:
        value = {
            "episode_id": interaction_id,
            "interaction_id": interaction_id,
            "grade": {"settled": settled},
            "more": 1,
        }
        headers: Headers = make_headers(PROGRESS, self.name, source="test")
        self.sender.send(topic(self.name, "progress"), interaction_id.encode(), json.dumps(value).encode(), headers)
        self.sender.send(topic(self.name, "progress"), None, b"{}", make_headers(CLOCK, self.name, source="test"), 0)
        self.sender.flush()

    def input(self, kind: str, partition: int) -> None:
        self.sender.send(topic(self.name, kind), b"k", b"{}", [], partition)
        self.sender.flush()

    def joined(self) -> None:
        """Commit the join's positions at the ends of the inputs."""
        partitions = [
            (topic(self.name, k), p) for k in ("interactions", "outcomes", "references") for p in range(PARTITIONS)
        ]
        ends = [TopicPartition(t, p, o) for (t, p), o in Admin(self.servers).end_offsets(partitions).items()]
        asked = [ConsumerGroupTopicPartitions(group(self.name, "join"), ends)]
        admin = AdminClient({"bootstrap.servers": self.servers})
        admin.alter_consumer_group_offsets(asked)[group(self.name, "join")].result(30)

    def records(self, kind: str, partitions: int = PARTITIONS) -> list:  # type: ignore[type-arg]
        return list(read(self.servers, topic(self.name, kind), partitions))

    def announced(self) -> list[SnapshotRecord]:
        return [msgspec.json.decode(r.value, type=SnapshotRecord) for r in self.records("snapshots", 1)]


@pytest.fixture
def log(broker: str, workspace_name: str) -> Log:
    return Log(broker, workspace_name)


@pytest.fixture(scope="module")
def shared(broker: str) -> Log:
    """A workspace for tests that leave it as it is, with an interaction that no join takes in."""
    made = Log(broker, f"t-{secrets.token_hex(6)}")
    made.input("interactions", 0)
    return made


def run(log: Log, path: Path, policy: Policy | None = None, wait_s: float = 10.0, **options: bool) -> RunReport:
    return run_snapshot(log.servers, log.name, path, policy or Policy(), wait_s=wait_s, **options)


def ids(path: Path, ref: str = "") -> list[str]:
    return [r.interaction_id for r in Corpus.open(f"{path}{ref}").rows("all")]


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.05)


def test_runs_make_versions_announce_them_and_count_what_is_left_out(log: Log, tmp_path: Path) -> None:
    path = tmp_path / "c"
    policy = Policy(filter="reward > 0 AND cost < 10")
    costs = {
        "cheap": ("observed", 1.0),
        "dear": ("observed", 99.0),
        "none": ("absent", None),
        "open": ("pending", None),
    }
    rows = [graded(name, metrics={"cost": cost}) for name, cost in costs.items()]  # type: ignore[dict-item]
    log.graded(*rows, graded("bad", reward=0.0))
    for name in ("open", "late", "later"):
        log.progress(name, settled=False)
    log.progress("late", settled=True)
    report = run(log, path, policy)
    assert (report.version, report.new, report.rows) == (1, True, 1)
    assert (report.tally.selected, report.tally.rejected) == (1, 2)
    assert report.tally.unknown == {"pending": 1, "absent": 1}
    # "open" settled on .graded, which is newer than what .progress was made to say here
    assert report.pending == 1
    assert ids(path) == ["cheap"]
    again = run(log, path, policy)
    assert (again.version, again.new) == (1, False)
    log.graded(
        graded("open", metrics={"cost": ("observed", 2.0)}, revision=2), graded("cheap", reward=-1.0, revision=2)
    )
    report = run(log, path, policy)
    assert report.to_json()["added"] == report.to_json()["removed"] == 1
    assert (ids(path), ids(path, "@v1")) == (["open"], ["cheap"])
    told = log.announced()
    assert [(r.version, r.rows, r.new_rows, r.added, r.removed) for r in told] == [(1, 1, 5, 1, 0), (2, 1, 0, 1, 1)]
    assert {r.corpus for r in told} == {str(path)}
    assert [r.content_hash for r in told] == [Corpus.open(f"{path}@v{n}").manifest.content_hash for n in (1, 2)]
    assert report.manifest is not None
    assert report.manifest.offsets == {str(p): o for (_, p), o in ends(log).items()}


def ends(log: Log) -> dict[tuple[str, int], int]:
    return Admin(log.servers).end_offsets((topic(log.name, "graded"), p) for p in range(PARTITIONS))


def test_a_version_is_the_fold_of_its_offsets_across_batches(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treadle_streams.snapshot.run.BATCH_RECORDS", 37)
    rows = [graded(f"r{n % 150}", reward=float(n), revision=1 + n // 150) for n in range(400)]
    log.graded(*rows)
    report = run(log, tmp_path / "c")
    last = {r.key: r for r in rows}
    assert report.manifest is not None
    assert report.manifest.content_hash == content_hash(row_line(last[key].row) for key in sorted(last))


def test_records_of_open_and_aborted_transactions_are_not_in_it(log: Log, tmp_path: Path) -> None:
    producer = Producer(
        {"bootstrap.servers": log.servers, "transactional.id": f"treadle.{log.name}.test", "log_level": 0}
    )
    producer.init_transactions(30)
    for name, commit in (("aborted", False), ("committed", True)):
        producer.begin_transaction()
        record = graded(name)
        headers = make_headers(GRADED, log.name, source="test")
        producer.produce(topic(log.name, "graded"), record.body, b"k", headers=headers)
        producer.flush(10)
        (producer.commit_transaction if commit else producer.abort_transaction)(30)
    report = run(log, tmp_path / "c")
    assert ids(tmp_path / "c") == ["committed"]
    assert report.manifest is not None
    assert report.manifest.offsets == {str(p): o for (_, p), o in ends(log).items()}
    assert run(log, tmp_path / "c").new is False


def test_what_no_corpus_can_take_becomes_a_dead_letter_and_the_run_goes_on(log: Log, tmp_path: Path) -> None:
    log.graded(graded("a", revision=3))
    headers = make_headers(GRADED, log.name, source="test")
    log.sender.send(topic(log.name, "graded"), b"a", b"not json", headers)
    log.sender.send(topic(log.name, "graded"), b"a", b"{}", make_headers(PROGRESS, log.name, source="test"))
    log.graded(graded("a", revision=2, reward=0.0), graded("b"))
    report = run(log, tmp_path / "c")
    assert report.refused == 3
    assert ids(tmp_path / "c") == ["a", "b"]
    letters = log.records("dead-letter")
    found = [header_map(r.headers) for r in letters]
    assert sorted(h["reason"] for h in found) == [b"conflict", b"malformed", b"malformed"]
    assert {h["topic"] for h in found} == {topic(log.name, "graded").encode()}
    assert {h["ce_type"] for h in found} == {b"dev.treadle.dead-letter.v1"}
    (letter,) = (r for r in letters if r.value == b"not json")
    assert header_map(letter.headers)["original.ce_type"] == GRADED.encode()


def test_a_run_waits_for_the_join_and_names_the_partition_it_waits_for(log: Log, tmp_path: Path) -> None:
    log.graded(graded("a"))
    log.input("outcomes", 1)
    with pytest.raises(JoinBehind, match=r"outcomes\[1\]: the join stands at offset 0 of 1") as caught:
        run(log, tmp_path / "c", wait_s=0.5)
    assert caught.value.exit_code == 5
    told: list[str] = []
    done: list[RunReport] = []
    with Snapshotter(log.servers, log.settings, tmp_path / "c", Policy(), tell=told.append) as snapshotter:
        waiting = threading.Thread(target=lambda: done.append(snapshotter.run(60)))
        waiting.start()
        until(lambda: bool(told))
        assert "outcomes[1] at 0 of 1" in told[0]
        log.input("interactions", 0)
        log.joined()
        waiting.join(60)
    assert [r.version for r in done] == [1]


def test_a_version_whose_record_was_lost_is_announced_at_the_next_start(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.graded(graded("a"))
    with monkeypatch.context() as patch:
        patch.setattr("treadle_streams.snapshot.run.announce", lambda *_: None)
        assert run(log, tmp_path / "c").new
    assert log.announced() == []
    assert not run(log, tmp_path / "c").new
    assert [r.version for r in log.announced()] == [1]
    run(log, tmp_path / "c")
    assert len(log.announced()) == 1


def test_a_wrong_filter_is_told_and_blocks_nothing(log: Log, tmp_path: Path) -> None:
    log.graded(graded("a"))
    with pytest.raises(FilterError, match="cannot be read"):
        run(log, tmp_path / "never", Policy(filter="reward >"))
    assert not (tmp_path / "never").exists()
    with pytest.raises(FilterError, match="did you mean 'reward'"):
        run(log, tmp_path / "c", Policy(filter="rewart > 0"))
    assert run(log, tmp_path / "c", Policy(filter="reward > 0")).version == 1


def test_a_metric_seen_later_can_be_named_and_replacing_the_policy_asks_every_row(log: Log, tmp_path: Path) -> None:
    path = tmp_path / "c"
    log.graded(graded("a"), graded("b", reward=0.0))
    assert run(log, path).rows == 2
    log.graded(graded("c", metrics={"stars": ("observed", 5)}))
    report = run(log, path, Policy(filter="stars >= 4 OR reward = 0"), replace_policy=True)
    assert (report.version, ids(path)) == (2, ["b", "c"])
    assert report.tally.unknown == {"pending": 0, "absent": 1}


def test_now_is_the_watermark_so_that_a_version_can_be_recomputed(log: Log, tmp_path: Path) -> None:
    log.graded(graded("old"), graded("new", started_at="2999-01-01T00:00:00Z", ended_at="2999-01-01T00:00:00Z"))
    policy = Policy(filter="ended_at < now")
    first = run(log, tmp_path / "1", policy)
    assert ids(tmp_path / "1") == ["old"]
    assert first.settled_through_ms == max(r.timestamp_ms for r in log.records("graded"))
    assert run(log, tmp_path / "2", policy).to_json()["content_hash"] == first.to_json()["content_hash"]


def test_another_log_than_the_corpus_was_made_from_is_refused(log: Log, tmp_path: Path) -> None:
    log.graded(graded("a"), graded("b"))
    run(log, tmp_path / "c")
    Admin(log.servers).delete([topic(log.name, "graded")])
    name = topic(log.name, "graded")
    until(lambda: name not in Admin(log.servers).partitions())
    Admin(log.servers).create(name, PARTITIONS, {})
    Admin(log.servers).wait_usable({name: PARTITIONS})
    with pytest.raises(LogMismatch, match="is another one"):
        run(log, tmp_path / "c")


def test_the_service_runs_when_enough_rows_are_new_or_time_has_passed(log: Log, tmp_path: Path) -> None:
    path = tmp_path / "c"
    log.graded(*(graded(f"r{n}") for n in range(5)))
    stop = threading.Event()
    reports: list[RunReport] = []
    with Snapshotter(log.servers, log.settings, path, Policy()) as snapshotter:
        options = {"min_new_rows": 5, "every_s": 2.0, "wait_s": 10.0, "stop": stop, "ran": reports.append}
        service = threading.Thread(target=serve, args=(snapshotter, log.servers, log.settings), kwargs=options)
        service.start()
        try:
            until(lambda: len(reports) == 1)
            with pytest.raises(CorpusLocked):
                run(log, path)
            log.graded(graded("r1", reward=9.0, revision=2))
            until(lambda: len(reports) == 2)
        finally:
            stop.set()
            service.join(30)
    assert [(r.version, r.rows) for r in reports] == [(1, 5), (2, 5)]
    assert [r.updated for r in log.announced()] == [0, 1]
    assert all((r.written_bytes or 0) > 0 for r in log.announced())


def test_the_service_folds_ahead_and_makes_no_version_before_its_time_even_after_a_restart(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_service, "AHEAD_RECORDS", 4)
    path = tmp_path / "c"
    bad = make_headers(GRADED, log.name, source="test")
    log.sender.send(topic(log.name, "graded"), b"r0", b"{", bad)
    log.graded(*(graded(f"r{n}") for n in range(5)), graded("r1", reward=9.0, revision=2))
    reports: list[RunReport] = []

    def served(until_: Callable[[Snapshotter], bool]) -> None:
        stop = threading.Event()
        with Snapshotter(log.servers, log.settings, path, Policy()) as snapshotter:
            options = {"min_new_rows": 8, "every_s": 3600.0, "wait_s": 10.0, "stop": stop, "ran": reports.append}
            service = threading.Thread(target=serve, args=(snapshotter, log.servers, log.settings), kwargs=options)
            service.start()
            try:
                until(lambda: until_(snapshotter))
            finally:
                stop.set()
                service.join(30)

    served(lambda snapshotter: snapshotter.writer.new_rows == 5 and sum(snapshotter.writer.offsets.values()) == 7)
    assert (reports, log.announced()) == ([], [])
    log.graded(graded("r5"), graded("r6"))
    log.graded(graded("r7"))
    served(lambda _: len(reports) == 1)
    assert [(r.version, r.rows) for r in reports] == [(1, 8)]
    assert {r.interaction_id: r.grade.reward for r in Corpus.open(path).rows("all")}["r1"] == 9.0
    assert len(log.records("dead-letter")) == 1


# --- commands -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("TREADLE_BOOTSTRAP_SERVERS", broker)
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))

    def invoke(*args: str) -> Result:
        return CliRunner().invoke(main, list(args), catch_exceptions=False)

    return invoke


def answered(task: str, n: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": task}, {"role": "assistant", "content": f"answer {n}"}]


def test_snapshot_show_and_export_by_command(log: Log, tmp_path: Path, command: Callable[..., Result]) -> None:
    wins = {"t1": 1, "t2": 2}
    log.graded(
        *(
            graded(f"{t}-{n}", task_id=t, reward=float(n < w), messages=answered(t, n))
            for t, w in wins.items()
            for n in range(3)
        )
    )
    log.progress("waiting", settled=False)
    done = command("snapshot", log.name, "--to", "deeplake://org/corpus", "--wait", "10s")
    assert done.exit_code == 0
    assert done.stdout.startswith(
        "deeplake://org/corpus@v1  selected 6  rejected 0  unknown 0  pending 1  settled through "
    )
    again = command("snapshot", log.name, "--to", "deeplake://org/corpus", "--json")
    report = json.loads(again.stdout)
    assert (report["version"], report["new"], report["rows"], report["pending"]) == (1, False, 6, 1)
    shown = json.loads(command("corpus", "show", "deeplake://org/corpus", "--json").stdout)
    assert shown["rows"] == 6
    assert shown["pass_at_all"] == {"1": 0.5, "2": pytest.approx(1 / 6), "3": 0.0, "4": None}
    assert shown["completeness"]["reward"] == {"observed": 6, "absent": 0, "pending": 0}
    assert shown["split"] == {"train": 6, "heldout": 0}
    assert (shown["policy"]["filter"], shown["policy"]["dedupe"], shown["policy"]["name"]) == (None, "id", "")
    text = command("corpus", "show", "deeplake://org/corpus@v1").stdout
    assert "pass^1 0.500" in text
    listed = json.loads(command("corpus", "list", "--json").stdout)
    assert [(e["version"], e["rows"], e["workspace"]) for e in listed] == [(1, 6, log.name)]
    out = tmp_path / "pairs.jsonl"
    done = command("corpus", "export", "deeplake://org/corpus@v1", "--view", "dpo", "--out", str(out), "--json")
    assert json.loads(done.stdout)["examples"] == 4
    pairs = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert sorted((p["chosen_id"], p["rejected_id"]) for p in pairs) == [
        ("t1-0", "t1-1"),
        ("t1-0", "t1-2"),
        ("t2-0", "t2-2"),
        ("t2-1", "t2-2"),
    ]
    sft = command("corpus", "export", "deeplake://org/corpus", "--view", "sft").stdout.splitlines()
    assert [json.loads(line)["interaction_id"] for line in sft] == ["t1-0", "t2-0", "t2-1"]
    assert command("corpus", "export", "deeplake://org/corpus", "--view", "sft", "--split", "heldout").stdout == ""
    assert list(tmp_path.glob("*.part")) == []


def test_a_corpus_in_an_object_store_by_command_here_and_from_an_empty_home(
    log: Log, bucket: str, tmp_path: Path, command: Callable[..., Result]
) -> None:
    url = f"{bucket}/corpora/wins"
    log.graded(*(graded(f"i-{n}", reward=float(n % 2)) for n in range(4)))
    made = command("policy", "create", log.name, "wins", "--filter", "reward > 0", "--to", url, "--manual")
    assert made.exit_code == 0, made.output
    done = command("snapshot", log.name, "--policy", "wins", "--wait", "10s")
    assert done.stdout.startswith(f"{url}@v1  selected 2  rejected 2  ")
    assert [record.corpus for record in log.announced()] == [url]
    log.graded(graded("i-1", revision=2, reward=5.0), graded("i-7", reward=1.0))
    elsewhere = ("--home", str(tmp_path / "elsewhere"))
    report = json.loads(command(*elsewhere, "snapshot", log.name, "--policy", "wins", "--wait", "10s", "--json").stdout)
    assert (report["corpus"], report["version"], report["added"], report["updated"]) == (url, 2, 1, 1)
    assert (tmp_path / "elsewhere" / "corpora-objects").is_dir()
    assert json.loads(command("corpus", "show", url, "--json").stdout)["rows"] == 3
    listed = json.loads(command("corpus", "list", bucket, "--json").stdout)
    assert [(e["corpus"], e["version"], e["rows"]) for e in listed] == [(url, 2, 3)]
    assert command("corpus", "log", url).stdout.splitlines()[1].startswith("v1  ")
    assert command("corpus", "tag", f"{url}@v1", "golden").stdout == f"{url}@golden is v1\n"
    compared = command("corpus", "diff", f"{url}@golden", "@v2").stdout
    assert compared.startswith(f"{url}@v1 to v2: added 1, removed 0, updated 1\n")
    verified = command("corpus", "verify", url, "--all", "--from-log")
    assert verified.exit_code == 0, verified.output
    sft = command("corpus", "export", f"{url}@v2", "--view", "sft").stdout.splitlines()
    assert [json.loads(line)["interaction_id"] for line in sft] == ["i-1", "i-3", "i-7"]
    refused = command("corpus", "rebuild", url)
    assert (refused.exit_code, "rebuild URL --to FOLDER" in refused.output) == (2, True)
    assert command("corpus", "rebuild", url, "--to", str(tmp_path / "again")).exit_code == 0


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["snapshot", "WS", "--to", "al://org/x"], 2, "cannot be written yet"),
        (["snapshot", "WS", "--to", "gs://bucket/x"], 2, "needs gcsfs"),
        (["snapshot", "WS", "--filter", "reward >"], 2, "cannot be read"),
        (["snapshot", "no-such-workspace"], 1, "does not exist"),
        (["corpus", "show", "/nowhere/at/all"], 1, "no corpus is there"),
        (["corpus", "export", "/nowhere", "--view", "sft", "--json"], 2, "--out"),
        (["corpus", "show", "/nowhere@vX"], 2, "no version"),
        (["snapshot", "WS", "--wait", "0.2s"], 5, "interactions[0]"),
    ],
)
def test_a_wrong_command_says_why_and_exits_with_its_code(
    shared: Log, command: Callable[..., Result], args: list[str], code: int, words: str
) -> None:
    done = command(*(shared.name if a == "WS" else a for a in args))
    assert done.exit_code == code
    assert words in done.stderr
    assert done.stdout == ""


def test_row_ids_in_headers_name_rows_as_the_corpus_does() -> None:
    record = graded("i", episode_id="e")
    assert decode_key(canonical_json(["e", "i"])) == record.key
