"""What `treadle status` knows: gathered from the state files of this home and from Kafka, judged in one place."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec
from treadle.errors import LogError
from treadle.log import Admin, read
from treadle.settings import Settings
from treadle_schemas.codec import RELEASE, SNAPSHOT, decode
from treadle_schemas.errors import ContractError, SettingError
from treadle_schemas.moments import from_micros, now, to_micros
from treadle_schemas.records import ReleaseEvent, SnapshotRecord
from treadle_schemas.topics import CONTROL, topic

from treadle_streams import workspaces
from treadle_streams.broker import DockerBroker, LocalBroker
from treadle_streams.supervisor._folder import RunFolder, SupervisorState
from treadle_streams.supervisor._plan import POOL
from treadle_streams.supervisor._reports import trainer_reports, worker_reports
from treadle_streams.supervisor._supervisor import ProcessStatus

__all__ = ["BrokerView", "CorpusView", "Overview", "WorkspaceView", "overview"]

_ASK_S: Final = 3.0
_START_S: Final = 30.0
"""How long a worker may take until its first report."""

_R = TypeVar("_R", bound=msgspec.Struct)


class BrokerView(msgspec.Struct, frozen=True, kw_only=True):
    """The broker."""

    kind: str | None
    """configured, docker, local; None where no broker was ever started here."""
    bootstrap_servers: str | None
    reachable: bool
    restarts: int = 0
    last_error: str = ""


class CorpusView(msgspec.Struct, frozen=True, kw_only=True):
    """The newest version of one corpus."""

    path: str
    version: int
    rows: int
    created_at: str


class WorkspaceView(msgspec.Struct, frozen=True, kw_only=True):
    """One workspace. The counts are those of the worker's status file, null where no worker on this machine ever wrote one."""

    workspace: str
    worker: str
    """running, recovering, waiting: by its own word; failing: a shared worker took it out and tries again; stale: no report for a while;
    absent: none reports on this machine."""
    error: str = ""
    """Why it is failing."""
    captured: int | None = None
    pending: int | None = None
    settled: int | None = None
    corrections: int | None = None
    orphans: int | None = None
    """Outcomes that wait for an interaction, by row or name."""
    names: int | None = None
    """References and interaction ids that something is kept of."""
    tombstones: int | None = None
    """Rows that ended in their time and are still known by their hash."""
    state_bytes: int | None = None
    """Size of the join's local state on this machine."""
    dead_letters: int | None = None
    lag: int | None = None
    """Input records not joined yet."""
    clock: str | None = None
    """How far the join's clock is; RFC 3339."""
    corpora: list[CorpusView] = []
    champions: dict[str, str] = {}
    """Release by slot."""


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one moment."""

    home: str
    broker: BrokerView
    supervisor: dict[str, Any]
    """running, pid, started_at, log."""
    processes: list[ProcessStatus]
    workspaces: list[WorkspaceView]
    trainers: list[dict[str, Any]] = []
    """Trainers at work on this machine: at, pid, slots by name (state, job, reason, problem), use of the disk in bytes."""
    problems: list[str]
    """A sentence for each thing that is not as it should be."""

    @property
    def exit_code(self) -> int:
        """0 all is well, 1 something is down, 5 the broker cannot be reached."""
        if not self.broker.reachable:
            return 5
        return 1 if self.problems else 0


def overview(settings: Settings) -> Overview:
    """Look at everything. Asks Kafka for at most a few seconds; raises nothing for what is down, since that is the answer."""
    folder = RunFolder(settings.home)
    state = folder.state()
    alive = state is not None and state.alive
    broker, error = _broker(settings, state if alive else None)
    reports = worker_reports(folder.path)
    views: list[WorkspaceView] = []
    problems: list[str] = []
    if broker.reachable and broker.bootstrap_servers is not None:
        try:
            views = _workspaces(broker.bootstrap_servers, reports)
        except LogError as err:
            problems.append(f"workspaces: {err}")
    else:
        views = [_workspace(name, report) for name, report in sorted(reports.items())]
        problems.append(f"broker: {error}")
    problems += _problems(state, alive, views)
    trainers = trainer_reports(folder.path)
    problems += [
        f"trainer: {name} waits: {slot['reason']}"
        for trainer in trainers
        for name, slot in trainer["slots"].items()
        if slot["problem"]
    ]
    return Overview(
        home=str(settings.home),
        broker=broker,
        supervisor={
            "running": alive,
            "pid": state.process.pid if state is not None and alive else None,
            "started_at": state.started_at if state is not None and alive else None,
            "log": str(folder.log),
        },
        processes=_processes(state, alive),
        workspaces=views,
        trainers=trainers,
        problems=problems,
    )


def _broker(settings: Settings, state: SupervisorState | None) -> tuple[BrokerView, str]:
    """The broker, and why it cannot be reached."""
    seen = state.broker if state is not None else None
    servers: str | None
    try:
        servers = settings.bootstrap_servers
    except SettingError as err:
        servers, error = (seen.bootstrap_servers if seen is not None else None), str(err)
    else:
        error = ""
    kind: str | None = "configured" if settings.configured_servers else None
    if kind is None:
        directory = settings.home / "broker"
        docker = DockerBroker(directory)
        kind = docker.kind if docker.known else "local" if LocalBroker(directory).cluster_id is not None else None
    reachable = False
    if servers is not None:
        try:
            Admin(servers).partitions(_ASK_S)
            reachable = True
        except LogError as err:
            error = f"no Kafka answers at {servers} ({err})"
    restarts, last = (seen.restarts, seen.last_error) if seen is not None else (0, "")
    view = BrokerView(kind=kind, bootstrap_servers=servers, reachable=reachable, restarts=restarts, last_error=last)
    return view, error


def _processes(state: SupervisorState | None, alive: bool) -> list[ProcessStatus]:
    if state is None:
        return []
    if alive:
        return state.processes
    return [msgspec.structs.replace(p, state="stopped", pid=None, process=None) for p in state.processes]


def _problems(state: SupervisorState | None, alive: bool, views: list[WorkspaceView]) -> list[str]:
    found: list[str] = []
    if state is None and not any(view.worker in ("running", "recovering", "waiting", "failing") for view in views):
        found.append("nothing runs here: start it with `treadle up`")
    if state is not None and not alive:
        found.append("the supervisor is gone without having stopped its processes: start it with `treadle up`")
    found += [f"workspace {v.workspace}: not joined: {v.error}" for v in views if v.worker == "failing"]
    if state is None or not alive:
        return found
    if state.broker.state in ("restarting", "failing"):
        found.append(f"broker: {state.broker.state}: {state.broker.last_error or 'it ended'}")
    for process in state.processes:
        if process.state in ("restarting", "failing"):
            found.append(f"{process.name}: {process.state}: {process.reason} (log: {process.log})")
    started = {process.name: process for process in state.processes}
    for view in views:
        worker = started.get(f"worker-{view.workspace}") or started.get(POOL)
        if view.worker in ("stale", "absent") and worker is not None and worker.state == "running":
            silent_s = (to_micros(now(), "now") - to_micros(worker.since, "since")) / 1e6
            if silent_s > _START_S:
                what = f" on {view.workspace}" if worker.name == POOL else ""
                found.append(f"{worker.name}: runs, but does not report{what} (log: {worker.log})")
    return found


def _workspaces(servers: str, reports: dict[str, dict[str, Any]]) -> list[WorkspaceView]:
    if CONTROL not in Admin(servers).partitions(_ASK_S):
        return []  # nobody ever made a workspace here
    views = []
    for name in workspaces.names(servers):
        view = _workspace(name, reports.get(name))
        corpora, champions = _corpora(servers, name), _champions(servers, name)
        views.append(msgspec.structs.replace(view, corpora=corpora, champions=champions))
    return views


def _workspace(name: str, report: dict[str, Any] | None) -> WorkspaceView:
    if report is None:
        return WorkspaceView(workspace=name, worker="absent")
    clock_ms = report.get("clock_ms")
    return WorkspaceView(
        workspace=name,
        worker=str(report.get("state", "waiting")) if report["fresh"] else "stale",
        error=str(report.get("error", "")),
        captured=report.get("captured"),
        pending=report.get("pending"),
        settled=report.get("settled"),
        corrections=report.get("corrections"),
        orphans=report.get("orphans"),
        names=_kept(report, "names"),
        tombstones=_kept(report, "tombstones"),
        state_bytes=report.get("state_bytes"),
        dead_letters=sum(report.get("dead_letters", {}).values()),
        lag=report.get("lag"),
        clock=from_micros(int(clock_ms) * 1000) if clock_ms else None,
    )


def _kept(report: dict[str, Any], name: str) -> int | None:
    """A gauge of the join's state; None while it is not known."""
    return None if report.get("captured") is None else int(report.get("counts", {}).get(name, 0))


def _corpora(servers: str, workspace: str) -> list[CorpusView]:
    newest: dict[str, CorpusView] = {}
    for record in _records(servers, workspace, "snapshots", SNAPSHOT, SnapshotRecord):
        before = newest.get(record.corpus)
        if before is None or record.version >= before.version:
            newest[record.corpus] = CorpusView(
                path=record.corpus, version=record.version, rows=record.rows, created_at=record.created_at
            )
    return [newest[path] for path in sorted(newest)]


def _champions(servers: str, workspace: str) -> dict[str, str]:
    newest: dict[str, ReleaseEvent] = {}
    for event in _records(servers, workspace, "releases", RELEASE, ReleaseEvent):
        before = newest.get(event.slot)
        if event.event in ("promoted", "rolled_back") and (before is None or event.sequence > before.sequence):
            newest[event.slot] = event
    return {slot: event.champion for slot, event in sorted(newest.items()) if event.champion is not None}


def _records(servers: str, workspace: str, kind: str, event_type: str, as_type: type[_R]) -> list[_R]:
    found = []
    for record in read(servers, topic(workspace, kind), 1, timeout_s=_ASK_S):
        try:
            event = decode(record.value, record.headers)
            if event.type == event_type:
                found.append(msgspec.convert(event.data, as_type))
        except (ContractError, msgspec.ValidationError):
            continue  # a newer treadle wrote it; the overview is none the worse
    return found
