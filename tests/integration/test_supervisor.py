"""The supervisor with real processes: killed, stubborn, orphaned, and in daemons of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from treadle.log import Sender
from treadle_schemas.codec import RELEASE, SNAPSHOT, encode, make_headers, to_json
from treadle_schemas.records import ReleaseEvent, SnapshotRecord
from treadle_schemas.topics import topic
from treadle_schemas.workspace import WorkspaceSettings
from treadle_streams import workspaces
from treadle_streams.supervisor import Event, ProcessId, ProcessSpec, ProcessStatus, Restarts, Supervisor, _overview
from treadle_streams.supervisor._folder import BrokerStatus, RunFolder, SupervisorState
from treadle_streams.supervisor._process import GroupProcess, members

QUICK = Restarts(first_delay_s=0.05, most_delay_s=0.2)
SLEEP = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
)
# a parent with a child of its own in the same group; prints the child's pid
FAMILY = (
    sys.executable,
    "-c",
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)",
)
BROKEN = (sys.executable, "-c", "raise SystemExit('broken on purpose')")

# the command line takes these names; only the guard is light, and it serves no workspace of another test
ONLY_GUARD = ("--no-worker", "--no-snapshotter", "--no-indexer", "--no-trainer")


def eventually(what: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """What `what` gives, once it is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def gone(pid: int) -> bool:
    return ProcessId.of(pid) is None


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, events: list[Event]) -> Iterator[Supervisor]:
    with Supervisor(tmp_path, restarts=QUICK, on_event=events.append) as supervised:
        yield supervised


def keep(supervisor: Supervisor, until: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Poll until something is true."""

    def step() -> Any:
        supervisor.poll()
        return until()

    return eventually(step, timeout_s)


def said(home: Path, name: str) -> list[str]:
    log = home / "logs" / f"{name}.log"
    return log.read_text().split("\n")[:-1] if log.exists() else []


def test_a_process_that_is_killed_comes_back(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.add(ProcessSpec(name="a", argv=SLEEP)).start()
    keep(supervisor, lambda: said(tmp_path, "a") == ["up"])
    first = supervisor.status()[0]
    assert (first.state, first.restarts, first.reason) == ("running", 0, "")
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    second = keep(supervisor, lambda: next((s for s in supervisor.status() if s.restarts == 1 and s.pid), None))
    assert second.pid != first.pid
    assert (second.state, second.exit_code, second.reason) == ("running", -9, "killed by SIGKILL: up")
    keep(supervisor, lambda: said(tmp_path, "a") == ["up", "up"])


def test_what_a_killed_process_leaves_in_its_group_is_gone_before_the_next_start(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.add(ProcessSpec(name="a", argv=FAMILY)).start()
    grandchild = int(keep(supervisor, lambda: said(tmp_path, "a"))[0])
    leader = supervisor.status()[0].pid
    assert leader is not None
    assert set(members(leader)) == {leader, grandchild}
    os.kill(leader, signal.SIGKILL)
    keep(supervisor, lambda: supervisor.status()[0].restarts == 1)
    eventually(lambda: gone(grandchild))
    assert list(members(leader)) == []


def test_a_process_that_fails_at_each_start_stays_in_sight_with_its_reason(supervisor: Supervisor) -> None:
    supervisor.add(ProcessSpec(name="broken", argv=BROKEN))
    supervisor.add(ProcessSpec(name="missing", argv=("no-such-program",)))
    supervisor.add(ProcessSpec(name="nowhere", argv=SLEEP, cwd=Path("/no/such/folder")))
    supervisor.add(ProcessSpec(name="good", argv=SLEEP)).start()
    keep(supervisor, lambda: [s.state for s in supervisor.status()] == ["failing"] * 3 + ["running"])
    broken, missing, nowhere, _ = supervisor.status()
    assert broken.reason == "ended with exit code 1: broken on purpose"
    assert missing.reason == "ended with exit code 127: cannot start 'no-such-program': No such file or directory"
    assert "/no/such/folder" in nowhere.reason
    before = broken.restarts
    keep(supervisor, lambda: supervisor.status()[0].restarts > before)  # never given up


def test_everything_stops_in_reverse_order_and_the_stubborn_is_killed(
    supervisor: Supervisor, tmp_path: Path, events: list[Event]
) -> None:
    for name, argv in (("a", SLEEP), ("b", STUBBORN), ("c", FAMILY), ("d", BROKEN)):
        supervisor.add(ProcessSpec(name=name, argv=argv, stop_s=0.3))
    supervisor.start()
    keep(supervisor, lambda: all(said(tmp_path, name) for name in "abcd") and supervisor.status()[3].restarts)
    groups = [status.pid for status in supervisor.status() if status.pid is not None]
    events.clear()
    supervisor.stop()
    stopped = [(event.name, event.text) for event in events if event.kind == "stopped" and event.name != "d"]
    assert stopped == [("c", "stopped"), ("b", "killed, since it did not end in time"), ("a", "stopped")]
    assert all(list(members(group)) == [] for group in groups)
    supervisor.poll()  # does not start anything again
    assert {status.state for status in supervisor.status()} == {"stopped"}
    assert supervisor.status()[3].last_line == "broken on purpose"


def test_one_process_can_be_taken_away_and_its_name_used_again(supervisor: Supervisor) -> None:
    supervisor.add(ProcessSpec(name="a", argv=STUBBORN, stop_s=0.2)).add(ProcessSpec(name="b", argv=SLEEP)).start()
    first = supervisor.status()[0].pid
    assert first is not None
    supervisor.remove("a")
    assert supervisor.status()[0].state == "stopping"
    with pytest.raises(ValueError, match="supervised already"):
        supervisor.add(ProcessSpec(name="a", argv=SLEEP))
    keep(supervisor, lambda: [status.name for status in supervisor.status()] == ["b"])
    assert gone(first)
    supervisor.add(ProcessSpec(name="a", argv=SLEEP))
    keep(supervisor, lambda: [s.state for s in supervisor.status()] == ["running", "running"])


def test_environment_and_log_are_its_own(supervisor: Supervisor, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GOES", "1")
    monkeypatch.setenv("STAYS", "2")
    show = "import os, time; print([os.environ.get(n) for n in ('GOES', 'STAYS', 'NEW')], flush=True); time.sleep(600)"
    spec = ProcessSpec(name="a", argv=(sys.executable, "-c", show), env={"GOES": None, "NEW": "3"})
    supervisor.add(spec).start()
    assert keep(supervisor, lambda: said(tmp_path, "a")) == ["[None, '2', '3']"]


def test_a_log_that_grows_without_end_is_begun_anew_while_it_is_written(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "a.log"
    talk = "import sys, time\nfor n in range(10**6): print('line', n, flush=True); time.sleep(0.002)"
    process = GroupProcess((sys.executable, "-c", talk), env=os.environ, log=log, cwd=None)
    try:
        eventually(lambda: process.trim_log(most_bytes=500))
        assert log.with_name("a.log.1").read_text().startswith("line 0\n")
        again = eventually(lambda: log.read_text().count("\n") > 2 and log.read_text())
        assert again.startswith("line "), "it goes on at the beginning, without a hole of zero bytes"
        assert process.last_line().startswith("line ")
    finally:
        process.kill()


def test_only_the_main_thread_may_start_processes(supervisor: Supervisor) -> None:
    supervisor.add(ProcessSpec(name="a", argv=SLEEP))
    raised: list[BaseException] = []

    def poll() -> None:
        try:
            supervisor.poll()
        except ValueError as err:
            raised.append(err)

    thread = threading.Thread(target=poll)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])
    assert supervisor.status()[0].state == "waiting"


def test_processes_end_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from treadle_streams.supervisor import ProcessSpec, Supervisor\n"
        "s = Supervisor(Path(sys.argv[1])).add(ProcessSpec(name='a', argv=(sys.executable, '-c', sys.argv[2]))).start()\n"
        "print(s.status()[0].pid, flush=True)\n"
        "while True: s.poll(); time.sleep(0.05)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), SLEEP[2]], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        eventually(lambda: said(tmp_path, "a"))
        owner.kill()
    eventually(lambda: gone(child), 5.0)


def test_what_a_killed_supervisor_left_behind_is_ended_and_nothing_else(tmp_path: Path) -> None:
    def session(argv: tuple[str, ...], home: str) -> subprocess.Popen[str]:
        env = {**os.environ, "TREADLE_HOME": home}
        started = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert started.stdout is not None
        started.stdout.readline()  # it is up
        return started

    stubborn = session(STUBBORN, str(tmp_path))
    left, others = session(FAMILY, str(tmp_path)), session(FAMILY, "/another/home")
    processes = []
    for name, started in (("stubborn", stubborn), ("left", left), ("others", others)):
        found = ProcessId.of(started.pid)
        assert found is not None
        processes.append((name, found))
    for orphaned in (left, others):  # their leaders are gone, a member of the group is not
        orphaned.kill()
        orphaned.wait()
    folder = RunFolder(tmp_path)
    folder.path.mkdir()
    folder.save(dead_state(processes))
    try:
        assert folder.end_leftovers(timeout_s=0.2) == ["left", "stubborn"]
        assert list(members(stubborn.pid)) == list(members(left.pid)) == []
        assert len(list(members(others.pid))) == 1, "its number may mean another program's group by now"
    finally:
        os.killpg(others.pid, signal.SIGKILL)
        stubborn.wait()
        for started in (stubborn, left, others):
            assert started.stdout is not None
            started.stdout.close()


def dead_state(processes: list[tuple[str, ProcessId]]) -> SupervisorState:
    """What a supervisor wrote that was killed since."""
    me = ProcessId.of(os.getpid())
    assert me is not None
    return SupervisorState(
        process=ProcessId(pid=me.pid, start_ticks=1, boot_id=me.boot_id),
        started_at="2026-01-01T00:00:00Z",
        foreground=False,
        parts=[],
        workspaces=[],
        broker=BrokerStatus(kind="local", bootstrap_servers="127.0.0.1:1", state="running"),
        processes=[
            ProcessStatus(
                name=name,
                state="running",
                pid=found.pid,
                process=found,
                restarts=0,
                since="2026-01-01T00:00:00Z",
                exit_code=None,
                last_line="",
                log="",
            )
            for name, found in processes
        ],
        stop_s=1.0,
    )


# --- the detached supervisor, on the session's broker ------------------------------------------------------------------------


class Home:
    """A home of its own, with the command line on it."""

    def __init__(self, path: Path, servers: str) -> None:
        self.path = path
        self.folder = RunFolder(path)
        self._env = {**os.environ, "TREADLE_HOME": str(path), "TREADLE_BOOTSTRAP_SERVERS": servers}

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "treadle", *arguments],
            env={**self._env, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **more: str) -> tuple[int, str, str]:
        with self.start(*arguments, **more) as process:
            out, err = process.communicate(timeout=60)
            return process.returncode, out, err


@pytest.fixture
def home(tmp_path: Path, broker: str) -> Iterator[Home]:
    made = Home(tmp_path / "home", broker)
    yield made
    code, out, err = made.run("down")
    assert code == 0, out + err


def test_two_starters_get_one_supervisor_which_down_ends_whole(home: Home, broker: str, workspace_name: str) -> None:
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=1))
    racing = [home.start("up", "--json", *ONLY_GUARD) for _ in range(2)]
    answers = []
    for process in racing:
        with process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        answers.append(json.loads(out))
    assert sorted(answer["started"] for answer in answers) == [False, True]
    assert answers[0]["supervisor"]["pid"] == answers[1]["supervisor"]["pid"]
    assert all(workspace_name in answer["workspaces"] for answer in answers)
    (guard,) = answers[0]["processes"]
    assert (guard["name"], guard["state"]) == ("guard", "running")

    code, out, _ = home.run("up", "--foreground", *ONLY_GUARD)
    assert (code, out) == (1, "")
    code, _, err = home.run("up", *ONLY_GUARD, TREADLE_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert code == 1
    assert "not 127.0.0.1:1. Run `treadle down` first" in err
    code, _, err = home.run("up", "--no-worker")
    assert code == 0
    assert "treadle down" in err, "other parts than those that run are not silently left out"

    code, out, _ = home.run("down", "--json")
    assert (code, json.loads(out)) == (0, {"processes": ["guard"], "supervisor": True, "broker": False})
    assert gone(answers[0]["supervisor"]["pid"])
    assert list(members(guard["pid"])) == []
    assert home.folder.state() is None
    assert home.run("down")[1].startswith("nothing runs")


def test_after_a_kill_of_the_supervisor_status_says_so_and_up_begins_anew(home: Home) -> None:
    home.run("up", *ONLY_GUARD)
    before = home.folder.state()
    assert before is not None
    guard = before.processes[0]
    assert guard.pid is not None
    os.kill(before.process.pid, signal.SIGKILL)
    eventually(lambda: not before.process.alive and gone(guard.pid or 0))
    code, out, _ = home.run("status", "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["supervisor"]["running"]) == (1, False, False)
    assert "supervisor is gone" in found["problems"][0]
    code, out, _ = home.run("up", "--json", *ONLY_GUARD)
    assert code == 0
    again = json.loads(out)["processes"][0]
    assert again["pid"] != guard.pid
    assert again["restarts"] == 0


def test_in_the_foreground_ctrl_c_stops_everything(home: Home) -> None:
    with home.start("up", "--foreground", *ONLY_GUARD) as process:
        eventually(lambda: (state := home.folder.state()) is not None and state.processes[0].pid)
        state = home.folder.state()
        assert state is not None
        assert state.foreground
        guard = state.processes[0].pid
        assert guard is not None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "guard: stopped" in err
    assert list(members(guard)) == []
    assert home.folder.state() is None


def test_a_broker_that_does_not_answer_is_exit_code_5(home: Home) -> None:
    code, out, _ = home.run("status", "--json", TREADLE_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert (code, json.loads(out)["broker"]["reachable"]) == (5, False)


def test_status_shows_the_newest_version_of_each_corpus_and_the_champion_of_each_slot(
    broker: str, workspace_name: str
) -> None:
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=1))
    sender = Sender(broker)

    def send(kind: str, event_type: str, record: SnapshotRecord | ReleaseEvent) -> None:
        headers = make_headers(event_type, workspace_name, source="test")
        sender.send(topic(workspace_name, kind), b"k", encode(to_json(record)), headers, 0)

    for corpus, version, rows in (("/c/a", 1, 10), ("/c/b", 1, 3), ("/c/a", 2, 12)):
        counts = {"new_rows": 0, "added": 0, "updated": 0, "removed": 0}
        record = SnapshotRecord(
            corpus=corpus, version=version, content_hash="", rows=rows, created_at="2026-01-01T00:00:00Z", **counts
        )
        send("snapshots", SNAPSHOT, record)
    sender.send(topic(workspace_name, "snapshots"), b"k", b"{", make_headers(SNAPSHOT, workspace_name, source="x"), 0)
    moves: tuple[tuple[Any, str, str, int], ...] = (
        ("promoted", "main", "r1", 0),
        ("promoted", "main", "r2", 1),
        ("rejected", "main", "r3", 2),
        ("rolled_back", "main", "r1", 3),
        ("promoted", "main", "r2", 1),  # told twice
        ("promoted", "coder", "r9", 0),
    )
    for event, slot, champion, sequence in moves:
        release = ReleaseEvent(
            event=event,
            slot=slot,
            release=champion,
            champion=champion,
            actor="test",
            reason="",
            at="2026-01-01T00:00:00Z",
            sequence=sequence,
        )
        send("releases", RELEASE, release)
    sender.flush()
    corpora = [(view.path, view.version, view.rows) for view in _overview._corpora(broker, workspace_name)]
    assert corpora == [("/c/a", 2, 12), ("/c/b", 1, 3)]
    assert _overview._champions(broker, workspace_name) == {"coder": "r9", "main": "r1"}
