"""Putting a worker together: checks first, then Faust, lane and clockwork, until the process is asked to end."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from treadle.errors import TopicMissing
from treadle.log import Admin
from treadle_schemas.errors import TreadleError
from treadle_schemas.topics import DATA_TOPICS, topic
from treadle_schemas.workspace import WorkspaceSettings

from treadle_streams import workspaces
from treadle_streams.errors import WorkspaceDamaged
from treadle_streams.worker._clockwork import Clockwork
from treadle_streams.worker._lane import Lane
from treadle_streams.worker._settings import CHANGELOG_CONFIG, WorkerSettings
from treadle_streams.worker._status import StatusFile, status_path
from treadle_streams.worker._tuning import BATCH_OBJECTS, collect_seldom, keep_memory
from treadle_streams.worker.errors import WorkerDirectory

__all__ = ["check_topics", "end_process", "run_worker", "state_folder"]

_log = logging.getLogger(__name__)

_MOST_WORKERS: Final = 64
"""Workers of one workspace on one machine; each has a folder of its own."""


def run_worker(settings: WorkerSettings) -> int:
    """Join the events of a workspace until SIGTERM or SIGINT; returns the exit code of an orderly end.

    Raises what makes a start impossible: LogUnreachable, WorkspaceMissing, WorkspaceDamaged, TopicMissing, WorkerDirectory. What ends a
    running worker (errors.py) is said on stderr and ends the process at once, since whatever was not committed does not count.
    """
    from treadle_streams.worker import _faust_hooks as hooks

    workspace = workspaces.get(settings.servers, settings.workspace)
    check_topics(settings, workspace, Admin(settings.servers))
    folder, instance, lock = state_folder(settings)
    status = StatusFile(status_path(settings.home, settings.workspace, instance), settings.workspace, folder)
    app = hooks.make_app(settings, folder, end_process, hooks.LaneApp)
    lane = Lane(settings, workspace, hooks.generation_of(app), lambda: clockwork.reading, end_process)
    clockwork = Clockwork(settings, lambda: lane.view, status, _stopper(settings.once_caught_up), end_process)
    app.lane = lane
    collect_seldom(BATCH_OBJECTS)
    keep_memory()
    lane.start()
    clockwork.start()
    try:
        code = hooks.run_app(app)
    finally:
        clockwork.close()
        clockwork.join(10)
        lane.close().result(30)
        lock.close()
    status.remove()
    return code


def check_topics(settings: WorkerSettings, workspace: WorkspaceSettings, admin: Admin) -> None:
    """See that every topic is there, and make the changelog where it is not. Raises TopicMissing, WorkspaceDamaged, LogError."""
    present = admin.partitions()
    wanted = {topic(settings.workspace, kind) for kind in DATA_TOPICS}
    missing = sorted(wanted - set(present))
    if missing:
        raise TopicMissing(
            f"workspace {settings.workspace} lacks topics {', '.join(missing)}. "
            f"`treadle workspace create {settings.workspace} --if-missing` completes it"
        )
    if settings.changelog not in present:
        admin.create(settings.changelog, workspace.partitions, CHANGELOG_CONFIG)
        admin.wait_usable({settings.changelog: workspace.partitions})
        present = admin.partitions() | {settings.changelog: workspace.partitions}
    for name in sorted({*wanted, settings.changelog}):
        if present[name] != workspace.partitions:
            found = f"topic {name} has {present[name]} partitions, not {workspace.partitions}: rows would not meet"
            raise WorkspaceDamaged(settings.workspace, found)


def state_folder(settings: WorkerSettings) -> tuple[Path, int, IO[str]]:
    """The first free folder for local state, locked for as long as the process lives: RocksDB takes one process each."""
    root = settings.home / "state" / settings.workspace
    for instance in range(_MOST_WORKERS):
        folder = root / str(instance)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("a")
        except OSError as err:
            raise WorkerDirectory(
                f"{folder}: {err.strerror}. Set TREADLE_HOME to a folder that can be written"
            ) from err
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        return folder, instance, lock
    raise WorkerDirectory(f"{root}: {_MOST_WORKERS} workers of this workspace run on this machine already")


def _stopper(once_caught_up: bool) -> Callable[[], None]:
    seen = 0

    def caught_up() -> None:
        nonlocal seen
        seen += 1
        # the second time: what the first reading saw is committed, not only consumed
        if once_caught_up and seen == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    return caught_up


def end_process(err: BaseException) -> None:
    """Say why and be gone, without tidying up: other threads may be anywhere, and a supervisor starts the worker again."""
    code = err.exit_code if isinstance(err, TreadleError) else 1
    if not isinstance(err, TreadleError):
        _log.critical("the worker failed", exc_info=err)
    sys.stderr.write(f"error: {err}\n" if isinstance(err, TreadleError) else f"error: {type(err).__name__}: {err}\n")
    sys.stderr.flush()
    os._exit(code or 1)
