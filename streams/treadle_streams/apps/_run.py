"""Running an app: as this process, or as a child beside the join that is started again when it ends."""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from treadle.log import MAX_MESSAGE_BYTES, Admin
from treadle_schemas.errors import TreadleError

from treadle_streams import workspaces
from treadle_streams.apps.errors import AppInvalid

__all__ = ["app_name", "beside", "run_app"]

_log = logging.getLogger(__name__)

_LOOK_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 30.0
_END_S: Final = 20.0


def app_name(module: str) -> str:
    """The name of a module's app in groups and topics: dots become `-`. Raises AppInvalid."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module, re.ASCII):
        raise AppInvalid(f"{module!r} is no module's name: give it as in an import, pkg.mod")
    return module.replace(".", "-")


def run_app(module: str, *, servers: str, workspace: str, home: Path, parent_pid: int | None = None) -> int:
    """Run a module's app until SIGTERM or SIGINT, or until `parent_pid` is no longer the parent; the exit code.

    Raises AppInvalid, WorkspaceMissing, LogUnreachable.
    """
    from treadle_streams.apps import _app

    name = app_name(module)
    settings = workspaces.get(servers, workspace)
    folder = home / "apps" / workspace / name
    folder.mkdir(parents=True, exist_ok=True)
    app = _app.make_app(settings, name, servers, str(folder), _end_process)
    _built(module)(app)
    _make_changelogs(Admin(servers), app, settings.partitions)
    if parent_pid is not None:
        threading.Thread(target=_watch, args=(parent_pid,), daemon=True).start()
    return _run(app)


@contextmanager
def beside(modules: Sequence[str], *, servers: str, workspace: str, home: Path) -> Iterator[None]:
    """Keep a process for each module's app, as long as this lasts. They also end when this process does, in whatever way."""
    for module in modules:
        app_name(module)
    quit_ = threading.Event()
    environment = {
        **os.environ,
        "TREADLE_HOME": str(home),
        "TREADLE_BOOTSTRAP_SERVERS": servers,
        "TREADLE_WORKSPACE": workspace,
    }
    keepers = [threading.Thread(target=_keep, args=(module, environment, quit_)) for module in modules]
    for keeper in keepers:
        keeper.start()
    try:
        yield
    finally:
        quit_.set()
        for keeper in keepers:
            keeper.join()


def _keep(module: str, environment: dict[str, str], quit_: threading.Event) -> None:
    command = [sys.executable, "-m", "treadle_streams.apps", module, "--parent-pid", str(os.getpid())]
    wait_s = 0.5
    while not quit_.is_set():
        with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as process:
            while process.poll() is None and not quit_.wait(_LOOK_S):
                pass
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_END_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                return
        if not quit_.is_set():
            _log.warning("app %s ended with %s; again in %.1f s", module, process.returncode, wait_s)
            quit_.wait(wait_s)
            wait_s = min(wait_s * 2, _LONGEST_BACKOFF_S)


def _built(module: str) -> Any:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as err:
        if err.name is not None and (module == err.name or module.startswith(err.name + ".")):
            raise AppInvalid(
                f"there is no module {module} here; it is looked for as `python -m {module}` would"
            ) from err
        raise
    build = getattr(found, "build", None)
    if not callable(build):
        raise AppInvalid(f"{module} defines no build(app)")
    return build


def _make_changelogs(admin: Admin, app: Any, partitions: int) -> None:
    # Faust would make them with its own number of partitions and one replica
    config = {"cleanup.policy": "compact", "max.message.bytes": str(MAX_MESSAGE_BYTES)}
    wanted = {table.changelog_topic.get_topic_name(): (partitions, config) for table in app.tables.values()}
    admin.create_all(wanted)
    admin.wait_usable(dict.fromkeys(wanted, partitions))


def _run(app: Any) -> int:
    import faust

    worker = faust.Worker(app, loglevel="WARN", override_logging=False, redirect_stdouts=False, quiet=True)
    worker.spinner = None
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _watch(parent_pid: int) -> None:
    quiet = threading.Event()
    while os.getppid() == parent_pid:
        quiet.wait(_LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
    quiet.wait(_END_S)
    os._exit(1)  # it did not end in order; nobody is there any more to end it


def _end_process(err: BaseException) -> None:
    """Say why and be gone: whatever was not committed comes again."""
    sys.stderr.write(f"error: {err}\n")
    sys.stderr.flush()
    os._exit(err.exit_code if isinstance(err, TreadleError) else 1)
