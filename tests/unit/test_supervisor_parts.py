"""The supervisor's plan, its files, and what `treadle status` makes of them. No process is started here."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import treadle_streams.supervisor as supervisor
from treadle.settings import Settings
from treadle_schemas.moments import now
from treadle_streams.supervisor import (
    AlreadySupervised,
    OtherBroker,
    ProcessId,
    ProcessSpec,
    ProcessStatus,
    SupervisorBusy,
)
from treadle_streams.supervisor._control import refuse_other_broker
from treadle_streams.supervisor._folder import BrokerStatus, RunFolder, SupervisorState
from treadle_streams.supervisor._overview import BrokerView, Overview, WorkspaceView, overview
from treadle_streams.supervisor._overview import _problems as problems
from treadle_streams.supervisor._overview import _workspace as workspace_view
from treadle_streams.supervisor._plan import PARTS, environment, plan
from treadle_streams.supervisor._process import last_line, members
from treadle_streams.supervisor._reports import worker_reports as reports
from treadle_streams.workspaces import Listed


def settings(home: Path, **more: Any) -> Settings:
    return Settings(home=home, corpus_root=home / "corpora", **more)


def state(home: Path, *processes: ProcessStatus, servers: str | None = None) -> SupervisorState:
    me = ProcessId.of(os.getpid())
    assert me is not None
    return SupervisorState(
        process=me,
        started_at="2026-01-01T00:00:00Z",
        foreground=False,
        parts=list(PARTS),
        workspaces=["shop"],
        broker=BrokerStatus(
            kind="configured" if servers else "local", bootstrap_servers=servers or "127.0.0.1:1", state="running"
        ),
        processes=list(processes),
        stop_s=1.0,
    )


def process(name: str, word: supervisor.State, **more: Any) -> ProcessStatus:
    values: dict[str, Any] = {
        "pid": 1,
        "process": None,
        "restarts": 0,
        "since": "2026-01-01T00:00:00Z",
        "exit_code": None,
        "last_line": "",
        "log": "/log",
    }
    return ProcessStatus(name=name, state=word, **(values | more))


def test_the_public_names_are_all_there() -> None:
    assert all(hasattr(supervisor, name) for name in supervisor.__all__)


def test_worker_snapshotter_and_indexer_are_one_process_a_workspace_trainer_and_guard_one_in_all(
    tmp_path: Path,
) -> None:
    big = Listed(2, "")
    named = [spec.name for spec in plan(settings(tmp_path), PARTS, {"b": big, "a": big})]
    assert named == [
        *("worker-a", "worker-b", "snapshotter-a", "snapshotter-b", "indexer-a", "indexer-b"),
        *("trainer", "guard"),
    ]
    assert [spec.name for spec in plan(settings(tmp_path), PARTS, {})] == ["trainer", "guard"]
    only = plan(settings(tmp_path), ["worker"], {"a": big})
    assert [spec.argv for spec in only] == [(sys.executable, "-P", "-m", "treadle", "worker", "--workspace", "a")]


def test_there_is_no_indexer_where_its_extra_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treadle_streams.supervisor._plan.find_spec", {}.get)
    named = [spec.name for spec in plan(settings(tmp_path), PARTS, {"a": Listed(2, "")})]
    assert named == ["worker-a", "snapshotter-a", "trainer", "guard"]


def test_small_workspaces_share_one_worker_process(tmp_path: Path) -> None:
    listed = {"big": Listed(2, ""), "one": Listed(1, ""), "two": Listed(1, "")}
    specs = plan(settings(tmp_path), ["worker", "snapshotter"], listed)
    assert [spec.name for spec in specs] == [
        "workers",
        "worker-big",
        "snapshotter-big",
        "snapshotter-one",
        "snapshotter-two",
    ]
    assert specs[0].argv == (sys.executable, "-P", "-m", "treadle", "worker", "--small")


def test_the_environment_gives_another_process_these_settings_and_all_workspaces(tmp_path: Path) -> None:
    mine = settings(tmp_path, workspace="shop", configured_servers="kafka:9092")
    variables = environment(mine)
    assert variables["TREADLE_WORKSPACE"] is None
    loaded = Settings.load({name: value for name, value in variables.items() if value is not None})
    assert loaded == dataclasses.replace(mine, workspace=None, spool=mine.spool_folder)
    assert environment(settings(tmp_path))["TREADLE_BOOTSTRAP_SERVERS"] is None


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a process"):
        ProcessSpec(name=name, argv=("true",))


def test_a_pid_alone_is_not_a_process(tmp_path: Path) -> None:
    me = ProcessId.of(os.getpid())
    assert me is not None
    assert me.alive
    assert not msgspec.structs.replace(me, start_ticks=me.start_ticks - 1).alive
    assert not msgspec.structs.replace(me, boot_id="another boot").alive
    # and ending one that is not it does nothing: this process goes on
    msgspec.structs.replace(me, start_ticks=me.start_ticks - 1).end(0.1)
    assert os.getpid() in set(members(os.getpgrp()))


def test_the_last_line_is_readable_and_of_this_life(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"old life\n")
    start = log.stat().st_size
    assert last_line(log) == "old life"
    assert last_line(log, start) == ""
    with log.open("ab") as file:
        file.write(b"Traceback\n\x1b[31mValueError: no\xff\x07\x1b[0m\n   \n\n")
    assert last_line(log, start) == "[31mValueError: no�[0m"
    log.write_text("x" * 10_000)
    assert len(last_line(log)) == 500
    assert last_line(tmp_path / "missing.log") == ""


def test_the_state_file_survives_a_round_and_damage_means_nobody_runs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.path.mkdir()
    assert folder.state() is None
    written = state(tmp_path, process("worker-shop", "failing", exit_code=2, last_line="no such command"))
    folder.save(written)
    assert folder.state() == written
    (folder.path / "supervisor.json").write_text("{")
    assert folder.state() is None


def test_one_up_at_a_time_and_one_supervisor_a_home(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.locked(0.1), folder.claimed():
        with pytest.raises(SupervisorBusy, match="another `treadle up`"), RunFolder(tmp_path).locked(0.1):
            pass
        with pytest.raises(AlreadySupervised, match="treadle down"), RunFolder(tmp_path).claimed():
            pass
    with folder.locked(0.1), folder.claimed():
        pass


def test_what_runs_with_another_kafka_is_not_taken_over(tmp_path: Path) -> None:
    refuse_other_broker(settings(tmp_path), state(tmp_path))
    refuse_other_broker(settings(tmp_path, configured_servers="a:1"), state(tmp_path, servers="a:1"))
    with pytest.raises(OtherBroker, match=r"own broker \(local\), not a:1"):
        refuse_other_broker(settings(tmp_path, configured_servers="a:1"), state(tmp_path))
    with pytest.raises(OtherBroker, match="at a:1, not treadle's own"):
        refuse_other_broker(settings(tmp_path), state(tmp_path, servers="a:1"))


# --- status ------------------------------------------------------------------------------------------------------------------


def write_report(home: Path, file: str, workspace: str, *, age_s: float = 0.0, **counts: Any) -> None:
    (home / "run").mkdir(exist_ok=True)
    report = {
        "workspace": workspace,
        "state": "running",
        "updated_at": f"2026-01-01T00:00:{59 - int(age_s):02}Z",
        "monotonic_s": time.monotonic() - age_s,
        "captured": 10,
        "pending": 4,
        "settled": 6,
        "corrections": 1,
        "dead_letters": {"malformed": 2, "conflict": 1},
        "lag": 0,
        "clock_ms": 1_767_225_600_000,
    }
    (home / "run" / file).write_text(json.dumps(report | counts))


def test_a_workers_report_is_shown_and_several_workers_add_up(tmp_path: Path) -> None:
    write_report(tmp_path, "worker-shop.json", "shop")
    write_report(tmp_path, "worker-shop-1.json", "shop", lag=7, clock_ms=1_767_225_500_000)
    write_report(tmp_path, "worker-shop-2.json", "shop-2", captured=1)
    (tmp_path / "run" / "worker-torn.json").write_text('{"workspace": "x"')
    found = reports(tmp_path / "run")
    assert set(found) == {"shop", "shop-2"}
    view = workspace_view("shop", found["shop"])
    assert view == WorkspaceView(
        workspace="shop",
        worker="running",
        captured=20,
        pending=8,
        settled=12,
        corrections=2,
        orphans=0,
        names=0,
        tombstones=0,
        state_bytes=0,
        dead_letters=6,
        lag=7,
        clock="2025-12-31T23:58:20.000000Z",
    )


def test_a_worker_that_fell_silent_is_stale_and_does_not_count_beside_a_living_one(tmp_path: Path) -> None:
    write_report(tmp_path, "worker-shop.json", "shop", age_s=30)
    assert workspace_view("shop", reports(tmp_path / "run")["shop"]).worker == "stale"
    write_report(tmp_path, "worker-shop-1.json", "shop", lag=None)
    view = workspace_view("shop", reports(tmp_path / "run")["shop"])
    assert (view.worker, view.captured, view.lag) == ("running", 10, None)
    assert workspace_view("other", None).worker == "absent"


def test_everything_that_is_down_is_a_problem_with_its_reason(tmp_path: Path) -> None:
    well = state(tmp_path, process("worker-shop", "running"), process("guard", "running", restarts=3, exit_code=-9))
    good = WorkspaceView(workspace="shop", worker="running")
    assert problems(well, True, [good]) == []
    failing = process("worker-shop", "failing", pid=None, exit_code=1, last_line="StateLost: no META")
    assert problems(state(tmp_path, failing), True, [good]) == [
        "worker-shop: failing: ended with exit code 1: StateLost: no META (log: /log)"
    ]
    assert "does not report" in problems(well, True, [WorkspaceView(workspace="shop", worker="stale")])[0]
    young = state(tmp_path, process("worker-shop", "running", since=now()))
    assert problems(young, True, [WorkspaceView(workspace="shop", worker="absent")]) == []
    assert "supervisor is gone" in problems(well, False, [good])[0]
    assert "treadle up" in problems(None, False, [WorkspaceView(workspace="shop", worker="absent")])[0]
    assert problems(None, False, [good]) == [], "workers that somebody else runs are fine"
    broken = msgspec.structs.replace(
        well, broker=msgspec.structs.replace(well.broker, state="failing", last_error="port taken")
    )
    assert problems(broken, True, [good]) == ["broker: failing: port taken"]


def test_a_small_workspace_that_a_shared_worker_took_out_is_a_problem_with_its_reason(tmp_path: Path) -> None:
    write_report(tmp_path, "worker-shop.json", "shop", state="failing", error="no such topic")
    view = workspace_view("shop", reports(tmp_path / "run")["shop"])
    assert (view.worker, view.error) == ("failing", "no such topic")
    pool = state(tmp_path, process("workers", "running"))
    silent = WorkspaceView(workspace="toys", worker="stale")
    assert problems(pool, True, [view, silent]) == [
        "workspace shop: not joined: no such topic",
        "workers: runs, but does not report on toys (log: /log)",
    ]
    assert problems(None, False, [view]) == ["workspace shop: not joined: no such topic"]


@pytest.mark.parametrize(
    ("reachable", "found", "code"), [(True, [], 0), (True, ["x"], 1), (False, [], 5), (False, ["x"], 5)]
)
def test_the_exit_code_tells_well_down_and_unreachable_apart(reachable: bool, found: list[str], code: int) -> None:
    broker = BrokerView(kind="local", bootstrap_servers="a:1", reachable=reachable)
    view = Overview(home="/h", broker=broker, supervisor={}, processes=[], workspaces=[], problems=found)
    assert view.exit_code == code


def test_where_nothing_ever_ran_the_overview_says_so_and_touches_nothing(tmp_path: Path) -> None:
    home = tmp_path / "none"
    found = overview(settings(home))
    assert (found.exit_code, found.processes, found.workspaces) == (5, [], [])
    assert any("treadle up" in problem for problem in found.problems)
    assert not home.exists()
