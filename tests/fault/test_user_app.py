"""Programs beside the join are killed while graded rows flow; what they keep must be what the rows say."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import duckdb
import pytest
from treadle.log import Admin, Sender
from treadle_schemas import Grade, GradedRow, Provenance, WorkspaceSettings
from treadle_schemas.codec import GRADED, encode, make_headers, to_json
from treadle_schemas.moments import from_micros
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_streams.broker import LocalBroker

pytestmark = pytest.mark.fault

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PARTITIONS = 2
T0_US = 1_790_000_000_000_000
DEADLINE_S = 150.0


class Bench:
    """A workspace whose `.graded` is written by the test: rows, corrections, and rows that are unsettled again."""

    def __init__(self, servers: str, workspace: str, home: Path) -> None:
        workspaces.create(servers, WorkspaceSettings(workspace=workspace, partitions=PARTITIONS))
        self.servers, self.workspace, self.home = servers, workspace, home
        self.sender = Sender(servers)
        self.rng = random.Random(5)
        self.rows: dict[str, GradedRow] = {}
        self.processes: list[subprocess.Popen[bytes]] = []

    def publish(self, count: int) -> None:
        """So many revisions: of new rows, or of rows that are there."""
        for _ in range(count):
            known = self.rng.random() < 0.3 and self.rows
            name = self.rng.choice(list(self.rows)) if known else f"i{len(self.rows)}"
            before = self.rows.get(name)
            ended = T0_US + self.rng.randrange(4 * 3600) * 1_000_000
            row = GradedRow(
                episode_id=name,
                interaction_id=name,
                interaction=before.interaction
                if before
                else {
                    "ended_at": from_micros(ended),
                    "tags": {"tier": self.rng.choice(("gold", "none")), "zone": self.rng.randrange(3)},
                    "messages": [],
                },
                grade=Grade(
                    metrics={},
                    reward=self.rng.choice((0.0, 1.0)),
                    completeness=1.0,
                    settled=self.rng.random() < 0.9,
                    grading_version=1,
                ),
                split="train",
                split_group="",
                provenance=Provenance(
                    revision=1 if before is None else before.provenance.revision + 1,
                    graded_at="",
                    append_ms=0,
                    interaction_offset=0,
                    partition=0,
                    outcome_ids=[],
                ),
            )
            self.rows[name] = row
            headers = make_headers(GRADED, self.workspace, source="test")
            self.sender.send(topic(self.workspace, "graded"), name.encode(), encode(to_json(row)), headers)
        self.sender.flush()

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")}
        environment |= {"TREADLE_HOME": str(self.home), "TREADLE_BOOTSTRAP_SERVERS": self.servers}
        environment["TREADLE_WORKSPACE"] = self.workspace
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=EXAMPLES, env=environment)
        self.processes.append(process)
        return process

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S:g} s"
            time.sleep(0.1)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            process.wait(30)


@pytest.fixture
def bench(broker: str, workspace_name: str, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(broker, workspace_name, tmp_path)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def expected(rows: dict[str, GradedRow]) -> dict[tuple[str, float], tuple[int, int]]:
    """The rates by the definition: windows of an hour, one of which begins each quarter of an hour."""
    found: dict[tuple[str, float], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows.values():
        if not row.grade.settled or row.grade.reward is None:
            continue
        ended = datetime.fromisoformat(row.interaction["ended_at"]).timestamp()
        first = ended // 900 * 900
        for start in (first, first - 900, first - 1800, first - 2700):
            for name, value in row.interaction["tags"].items():
                cell = found[(f"{name}={value}", start)]
                cell[0] += 1
                cell[1] += row.grade.reward > 0
    return {window: (count, successes) for window, (count, successes) in sorted(found.items())}


@pytest.mark.usefixtures("example")
@pytest.mark.long
def test_windows_of_a_faust_app_are_right_though_it_is_killed(bench: Bench) -> None:
    from success_by_tag.rates import CHANGELOG, rates

    changelog = CHANGELOG.format(bench.workspace)
    app = ("treadle_streams.apps", "success_by_tag.app")

    def changes() -> int:
        admin = Admin(bench.servers)
        count = admin.partitions().get(changelog)
        return 0 if count is None else sum(admin.end_offsets((changelog, n) for n in range(count)).values())

    for _ in range(3):
        before = changes()
        process = bench.start(*app)
        bench.publish(150)
        bench.wait("the app works", lambda before=before: changes() > before + 40)  # type: ignore[misc]
        bench.kill(process)
    bench.publish(50)
    bench.start(*app)
    bench.wait("the last rows are counted", lambda: rates(bench.servers, bench.workspace) == expected(bench.rows))


@pytest.mark.long
@pytest.mark.usefixtures("example")
def test_windows_of_a_faust_app_are_right_though_the_broker_is_killed(
    own_broker: LocalBroker, workspace_name: str, tmp_path: Path
) -> None:
    from success_by_tag.rates import CHANGELOG, rates

    bench = Bench(own_broker.bootstrap, workspace_name, tmp_path)
    changelog = CHANGELOG.format(workspace_name)
    try:
        app = bench.start("treadle_streams.apps", "success_by_tag.app")
        bench.publish(150)
        bench.wait("the app works", lambda: changelog in Admin(bench.servers).partitions())
        own_broker.kill()
        own_broker.start()
        bench.publish(150)

        def right() -> bool:
            nonlocal app
            if app.poll() is not None:  # it may have ended for what Kafka did not take; a supervisor starts it again
                app = bench.start("treadle_streams.apps", "success_by_tag.app")
            return rates(bench.servers, workspace_name) == expected(bench.rows)

        bench.wait("all rows are counted", right)
    finally:
        bench.stop()


def test_an_app_beside_the_join_ends_with_it_and_is_started_again_without_it(bench: Bench) -> None:
    group = f"treadle.{bench.workspace}.app-success_by_tag-app"

    def members() -> dict[str, int]:
        return {
            name: count for name, count in Admin(bench.servers).groups(f"treadle.{bench.workspace}.").items() if count
        }

    worker = bench.start("treadle_streams.worker", "--workspace", bench.workspace, "--app", "success_by_tag.app")
    join = f"treadle.{bench.workspace}.join"
    bench.wait("both have joined their groups", lambda: members() == {group: 1, join: 1})
    bench.kill(worker)
    bench.wait("the app has ended with its worker", lambda: members() == {})
    done = bench.start("treadle_streams.worker", "--workspace", bench.workspace, "--app", "no_such.module:x")
    assert done.wait(60) == 2


MIRROR = """
import os, signal, sys
from duckdb_table import mirror
import duckdb
connect, left = duckdb.connect, int(sys.argv[2])
class Counted:
    def __init__(self, db): self.db = db
    def __getattr__(self, name): return getattr(self.db, name)
    def __enter__(self): return self
    def __exit__(self, *_): self.db.close()
    def execute(self, *given):
        global left
        left -= given[0].startswith("INSERT")
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.db.execute(*given)
duckdb.connect = lambda file: Counted(connect(file))
mirror.mirror(os.environ["TREADLE_WORKSPACE"], sys.argv[1], idle_s=2.0)
"""


def test_a_duckdb_table_is_what_the_log_says_though_its_mirror_is_killed(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(MIRROR)
    environment = {**os.environ, "TREADLE_BOOTSTRAP_SERVERS": bench.servers, "TREADLE_WORKSPACE": bench.workspace}
    environment["PYTHONPATH"] = str(EXAMPLES)
    file = tmp_path / "rows.duckdb"
    codes = []
    for killed_after in (100, 150, -1):
        bench.publish(120)
        command = [sys.executable, str(tmp_path / "killed.py"), str(file), str(killed_after)]
        codes.append(subprocess.run(command, env=environment, timeout=90, check=False).returncode)
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    with duckdb.connect(str(file)) as db:
        found = dict(db.execute("SELECT interaction, [revision, reward] FROM graded").fetchall())
    assert found == {name: [row.provenance.revision, row.grade.reward] for name, row in bench.rows.items()}
