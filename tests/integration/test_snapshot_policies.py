"""Stored policies on a real Kafka: the commands, dry runs, and the service that follows what is stored."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from treadle.cli import main
from treadle.log import Admin, Sender
from treadle.policies import PolicySource
from treadle.settings import Settings
from treadle_corpus import Corpus, GradedRecord, Policy
from treadle_corpus.errors import CorpusError
from treadle_corpus.testing import graded
from treadle_schemas.canonical import canonical_json
from treadle_schemas.codec import GRADED, PROGRESS, make_headers
from treadle_schemas.errors import SettingError
from treadle_schemas.events import Rights
from treadle_schemas.snapshot_policy import SnapshotPolicy
from treadle_schemas.topics import KINDS, topic
from treadle_schemas.workspace import Metric, WorkspaceSettings
from treadle_streams import workspaces
from treadle_streams.snapshot import (
    PolicyExists,
    PolicyMissing,
    RunReport,
    TargetTaken,
    delete_policy,
    dry_run,
    policies_of,
    run_snapshot,
    selection,
    serve_policies,
    store_policy,
)

PARTITIONS = 2
Command = Callable[..., Result]


class Log:
    """A workspace on a real Kafka, and the graded rows that the join would write into it."""

    def __init__(self, servers: str, name: str) -> None:
        metrics = (Metric(name="reward", required=True), Metric(name="cost"))
        workspaces.create(servers, WorkspaceSettings(workspace=name, partitions=PARTITIONS, metrics=metrics))
        self.servers = servers
        self.name = name
        self._sender = Sender(servers)

    def graded(self, *records: GradedRecord) -> None:
        for record in records:
            headers = [*make_headers(GRADED, self.name, source="test"), ("row_id", canonical_json(list(record.key)))]
            self._sender.send(topic(self.name, "graded"), record.row.episode_id.encode(), record.body, headers)
        self._sender.flush()

    def pending(self, name: str) -> None:
        value = {"episode_id": name, "interaction_id": name, "grade": {"settled": False}}
        headers = make_headers(PROGRESS, self.name, source="test")
        self._sender.send(topic(self.name, "progress"), name.encode(), json.dumps(value).encode(), headers)
        self._sender.flush()

    def ends(self) -> dict[tuple[str, int], int]:
        admin = Admin(self.servers)
        known = admin.partitions()
        return admin.end_offsets((t, p) for k in KINDS for t in (topic(self.name, k),) for p in range(known[t]))


@pytest.fixture
def log(broker: str, workspace_name: str) -> Log:
    return Log(broker, workspace_name)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def command(broker: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("TREADLE_BOOTSTRAP_SERVERS", broker)
    monkeypatch.setenv("TREADLE_HOME", str(home))

    def invoke(*args: str) -> Result:
        return CliRunner().invoke(main, list(args), catch_exceptions=False)

    return invoke


def denied(name: str, **rights: Any) -> GradedRecord:
    record = graded(name)
    row = msgspec.structs.replace(record.row, rights=Rights(**rights))
    return GradedRecord(row, msgspec.json.encode(row))


def ids(path: Path, ref: str = "") -> list[str]:
    return [r.interaction_id for r in Corpus.open(f"{path}{ref}").rows("all")]


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.05)


TEXT = [{"role": "user", "content": " ".join(f"word{n}" for n in range(80))}, {"role": "assistant", "content": "ok"}]
CLOSE = [{"role": "user", "content": TEXT[0]["content"] + " more"}, TEXT[1]]
MIXED = [
    graded("good", messages=TEXT, reward=2.0, metrics={"cost": ("observed", 1.0)}),
    graded("equal", messages=TEXT, reward=1.0, metrics={"cost": ("observed", 1.0)}),
    graded("close", messages=CLOSE, reward=1.0, metrics={"cost": ("observed", 1.0)}),
    graded("held", split="heldout", metrics={"cost": ("observed", 1.0)}),
    graded("bad", reward=0.0, metrics={"cost": ("observed", 1.0)}),
    graded("dear", metrics={"cost": ("absent", None)}),
    graded("open", metrics={"cost": ("pending", None)}),
    denied("mine", recall="deny"),
    denied("never", train="deny"),
    graded("unsettled", settled=False),
]


def test_policies_are_stored_listed_changed_and_deleted_by_command(log: Log, command: Command, home: Path) -> None:
    (listed,) = json.loads(command("policy", "list", log.name, "--json").stdout)
    assert (listed["name"], listed["built_in"], listed["manual"]) == ("main", True, False)
    assert listed["target"] == str(home / "corpora" / log.name / "main")
    said = ["--filter", "reward > 0", "--dedupe", "near:0.9", "--require", "cost, reward", "--rights", "train,recall"]
    said += ["--retention", "30d", "--min-new-rows", "5", "--every", "2h", "--to", "deeplake://acme/wins"]
    made = command("policy", "create", log.name, "wins", *said, "--json")
    assert made.exit_code == 0, made.stderr
    shown = json.loads(command("policy", "show", log.name, "wins", "--json").stdout)
    assert shown == json.loads(made.stdout)
    assert shown == {
        "workspace": log.name,
        "name": "wins",
        "filter": "reward > 0",
        "dedupe": "near",
        "threshold": 0.9,
        "require": ["cost", "reward"],
        "rights": ["train", "recall"],
        "retention_s": 30 * 86400.0,
        "min_new_rows": 5,
        "every_s": 7200.0,
        "manual": False,
        "target": "deeplake://acme/wins",
        "built_in": False,
    }
    again = command("policy", "create", log.name, "wins", "--manual")
    assert (again.exit_code, "--replace" in again.stderr) == (2, True)
    text = command("policy", "create", log.name, "wins", "--manual", "--replace").stdout
    assert text == f"wins  no filter, dedupe id  by hand  into {home / 'corpora' / log.name / 'wins'}\n"
    command("policy", "create", log.name, "main", "--filter", "reward >= 0")
    lines = command("policy", "list", log.name).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["main", "wins"]
    assert "'reward >= 0'" in lines[0]
    assert command("policy", "delete", log.name, "main", "--yes").exit_code == 0
    assert "(built in)" in command("policy", "list", log.name).stdout
    assert command("policy", "delete", log.name, "wins", "--json", "--yes").exit_code == 0
    assert list(policies_of(workspaces.get(log.servers, log.name))) == ["main"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["create", "WS", "Wins"], "a name has"),
        (["create", "WS", "w", "--filter", "reward >"], "cannot be read"),
        (["create", "WS", "w", "--dedupe", "near:0.1"], "0.7 to 1"),
        (["create", "WS", "w", "--dedupe", "exact:0.9"], "near:THRESHOLD"),
        (["create", "WS", "w", "--rights", "sell"], "train"),
        (["create", "WS", "w", "--to", "gopher://host/x"], "unknown scheme"),
        (["create", "WS", "w", "--every", "soon"], "duration"),
        (["show", "WS", "mian"], "did you mean 'main'?"),
        (["delete", "WS", "main", "--yes"], "built in"),
        (["delete", "WS", "none", "--yes"], "no policy"),
    ],
)
def test_a_wrong_policy_says_why(broker: str, command: Command, shared: str, args: list[str], words: str) -> None:
    done = command("policy", *(shared if a == "WS" else a for a in args))
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr


@pytest.fixture(scope="module")
def shared(broker: str) -> str:
    return Log(broker, f"t-{time.time_ns():x}").name


def test_a_policy_is_stored_with_the_settings_and_changes_nothing_else_of_them(log: Log, tmp_path: Path) -> None:
    before = workspaces.get(log.servers, log.name)
    stored = store_policy(log.servers, log.name, SnapshotPolicy(name="wins", filter="reward > 0"))
    assert workspaces.get(log.servers, log.name) == stored
    assert msgspec.structs.replace(stored, policies=()) == before
    changed = workspaces.update(log.servers, log.name, lambda s: msgspec.structs.replace(s, grace_s=1.0))
    assert changed.policies == stored.policies
    # recorders read the same record, and find what is theirs
    source = PolicySource(log.name, Settings.load(), bootstrap_servers=log.servers)
    assert source.refresh_now()
    with pytest.raises(PolicyExists, match="--replace"):
        store_policy(log.servers, log.name, SnapshotPolicy(name="wins"))
    store_policy(log.servers, log.name, SnapshotPolicy(name="a", target="/c"))
    with pytest.raises(TargetTaken, match="policy 'a'"):
        store_policy(log.servers, log.name, SnapshotPolicy(name="b", target="/c"))
    with pytest.raises(PolicyMissing, match="there are main, a, wins"):
        delete_policy(log.servers, log.name, "zzz")
    with pytest.raises(SettingError, match="threshold"):
        store_policy(log.servers, log.name, SnapshotPolicy(name="b", threshold=0.0))


POLICY = Policy(
    name="p", filter="reward > 0 AND reward < 10", dedupe="near", require=("cost",), rights=("recall",), retention_s=9e9
)


def test_a_dry_run_says_what_a_run_then_does_and_writes_nothing(log: Log, tmp_path: Path) -> None:
    log.graded(*MIXED, graded("good", messages=TEXT, reward=3.0, revision=2, metrics={"cost": ("observed", 1.0)}))
    log.pending("waiting")
    before = log.ends()
    found = dry_run(log.servers, log.name, tmp_path / "c", POLICY)
    assert (log.ends(), list(tmp_path.iterdir())) == (before, [])
    assert found.to_json()["dropped"] == {
        "rejected": 1,
        "unknown": 0,
        "incomplete": 2,
        "leak": 0,
        "split_moved": 0,
        "duplicate": 1,
        "near_duplicate": 1,
        "rights": 2,
        "expired": 0,
        "redacted": 0,
        "erased": 0,
    }
    assert (found.tally.members, found.split, found.pending) == (2, {"train": 1, "heldout": 1}, 2)
    report = run_snapshot(log.servers, log.name, tmp_path / "c", POLICY)
    assert (report.tally, report.pending, report.settled_through_ms) == (
        found.tally,
        found.pending,
        found.settled_through_ms,
    )
    assert ids(tmp_path / "c") == ["good", "held"]
    held = log.ends()
    files = sorted(tmp_path.rglob("*"))
    again = dry_run(log.servers, log.name, tmp_path / "c", POLICY)
    assert (again, log.ends(), sorted(tmp_path.rglob("*"))) == (found, held, files)


def test_a_dry_run_by_command_says_why_rows_stay_out(log: Log, command: Command, home: Path) -> None:
    log.graded(*MIXED)
    command("policy", "create", log.name, "wins", "--filter", "reward > 0", "--require", "cost")
    before = log.ends()
    text = command("snapshot", log.name, "--policy", "wins", "--dry-run")
    assert text.exit_code == 0, text.stderr
    lines = text.stdout.splitlines()
    assert lines[0].startswith("dry run, nothing was written: policy wins, filter 'reward > 0'")
    assert lines[1] == "4 of 9 settled rows would be in the version (train 3, held-out 1)"
    assert [line.split()[:2] for line in lines[2:]] == [
        ["rejected", "1"],
        ["incomplete", "3"],
        ["rights", "1"],
        ["pending", "1"],
    ]
    counted = json.loads(command("snapshot", log.name, "--require", "cost", "--dry-run", "--json").stdout)
    assert (counted["rows"], counted["dropped"]["incomplete"]) == (5, 3)
    assert log.ends() == before
    assert not (home / "corpora").exists()
    wrong = command("snapshot", log.name, "--require", "cots", "--dry-run")
    assert (wrong.exit_code, "did you mean 'cost'?" in wrong.stderr) == (2, True)
    both = command("snapshot", log.name, "--policy", "wins", "--filter", "true")
    assert (both.exit_code, "--policy" in both.stderr) == (2, True)


def test_a_stored_policy_runs_once_by_hand_and_its_change_counts_from_the_next_version(
    log: Log, command: Command, home: Path
) -> None:
    path = home / "corpora" / log.name / "wins"
    log.graded(graded("a"), graded("b", reward=0.0), graded("c", messages=TEXT), graded("d", messages=TEXT))
    command("policy", "create", log.name, "wins", "--filter", "reward > 0", "--manual")
    first = json.loads(command("snapshot", log.name, "--policy", "wins", "--json").stdout)
    assert (first["version"], first["rows"], first["corpus"]) == (1, 3, str(path))
    command("policy", "create", log.name, "wins", "--dedupe", "exact", "--manual", "--replace")
    second = json.loads(command("snapshot", log.name, "--policy", "wins", "--json").stdout)
    assert (second["version"], second["added"], second["removed"], second["dropped"]["duplicate"]) == (2, 1, 1, 1)
    assert (ids(path, "@v1"), ids(path)) == (["a", "c", "d"], ["a", "b", "c"])
    other = command("snapshot", log.name, "--filter", "reward = 0", "--to", str(path))
    assert (other.exit_code, "--replace-policy" in other.stderr) == (2, True)
    plain = json.loads(command("snapshot", log.name, "--json").stdout)
    assert (plain["rows"], plain["corpus"]) == (4, str(home / "corpora" / log.name / "main"))


class Service:
    """The snapshotter of all policies of a workspace, in a thread."""

    def __init__(self, log: Log, home: Path) -> None:
        self.reports: list[tuple[str, RunReport]] = []
        self.told: list[str] = []
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._log = log
        self._home = home
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            serve_policies(
                self._log.servers,
                self._log.name,
                lambda policy: self._home / policy.name,
                wait_s=10.0,
                stop=self._stop,
                ran=lambda name, report: self.reports.append((name, report)),
                tell=self.told.append,
            )
        except BaseException as err:
            self.error = err

    def __enter__(self) -> Service:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def versions(self, name: str) -> list[int | None]:
        return [report.version for policy, report in self.reports if policy == name]


def soon(name: str, rows: int, **fields: Any) -> SnapshotPolicy:
    return SnapshotPolicy(name=name, min_new_rows=rows, every_s=1e6, **fields)


def test_the_service_runs_all_stored_policies_and_follows_their_changes(log: Log, tmp_path: Path) -> None:
    store_policy(log.servers, log.name, soon("main", 2))
    store_policy(log.servers, log.name, soon("wins", 3, filter="reward > 0"))
    store_policy(log.servers, log.name, soon("hand", 1, manual=True))
    log.graded(graded("a"), graded("b", reward=0.0))
    with Service(log, tmp_path) as service:
        until(lambda: service.versions("main") == [1])
        log.graded(graded("c"))
        until(lambda: service.versions("wins") == [1])
        assert ids(tmp_path / "wins") == ["a", "c"]
        # a new policy takes in what was there before it
        store_policy(log.servers, log.name, soon("late", 3))
        until(lambda: service.versions("late") == [1])
        # a changed one makes a version at once, also when nothing was graded
        store_policy(log.servers, log.name, soon("wins", 3, filter="reward = 0"), replace=True)
        until(lambda: service.versions("wins") == [1, 2])
        assert ids(tmp_path / "wins") == ["b"]
        # a deleted one is let go of: another writer may open its corpus
        delete_policy(log.servers, log.name, "late")
        until(lambda: any("late is not served any more" in text for text in service.told))
        report = run_snapshot(log.servers, log.name, tmp_path / "late", selection(soon("late", 3)))
        assert (report.version, report.new) == (1, False)
        with pytest.raises(CorpusError, match="being written by"):
            run_snapshot(log.servers, log.name, tmp_path / "main", Policy())
    assert service.error is None
    assert not (tmp_path / "hand").exists()


def test_a_policy_that_cannot_run_holds_up_no_other_one(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treadle_streams.snapshot.service._RETRY_S", 0.1)
    store_policy(log.servers, log.name, soon("main", 1))
    store_policy(log.servers, log.name, soon("broken", 1, filter="stars > 3"))
    log.graded(graded("a"))
    with Service(log, tmp_path) as service:
        until(lambda: service.versions("main") == [1] and any("broken: filter" in text for text in service.told))
        log.graded(graded("b", metrics={"stars": ("observed", 5)}))
        until(lambda: service.versions("broken") == [1] and service.versions("main") == [1, 2])
    assert ids(tmp_path / "broken") == ["b"]
    assert service.error is None


def test_an_error_that_leaves_nothing_to_serve_ends_the_service(log: Log, tmp_path: Path) -> None:
    store_policy(log.servers, log.name, soon("main", 1, filter="stars > 3"))
    log.graded(graded("a"))
    with Service(log, tmp_path) as service:
        until(lambda: service.error is not None)
    assert "stars" in str(service.error)
