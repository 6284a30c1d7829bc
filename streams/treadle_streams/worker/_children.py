"""A worker process for each workspace, one for all small ones: follow the operators' list, start what is new, restart what fell."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from treadle_streams import workspaces
from treadle_streams.workspaces import Listed

__all__ = ["run_all"]

_log = logging.getLogger(__name__)

_STEP_S: Final = 0.2
_LONGEST_BACKOFF_S: Final = 30.0
_STEADY_S: Final = 60.0
"""A worker that ran for so long starts again with the shortest wait."""
_END_S: Final = 30.0
_SMALL: Final = ("--small",)


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    wait_s: float = 0.5
    again_at: float = field(default_factory=time.monotonic)


def run_all(servers: str, command: Callable[[Sequence[str]], Sequence[str]] | None = None) -> int:
    """Keep every workspace joined until SIGTERM or SIGINT, then end all workers. Raises LogUnreachable at the start only.

    `command` makes a command line from a worker's arguments.
    """
    make = command or (
        lambda arguments: [
            sys.executable,
            "-m",
            "treadle_streams.worker",
            *arguments,
            "--parent-pid",
            str(os.getpid()),
        ]
    )
    quit_ = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: quit_.set())
    workspaces.names(servers)
    follower = workspaces.Follower(servers).start()
    children: dict[tuple[str, ...], _Child] = {}
    try:
        while not quit_.wait(_STEP_S):
            wanted = _wanted(follower.listed)
            for arguments in sorted(children.keys() - wanted):
                _end([children.pop(arguments)])
            for arguments in sorted(wanted):
                _keep(arguments, children.setdefault(arguments, _Child()), make)
    finally:
        follower.stop()
        _end(list(children.values()))
    return 0


def _wanted(listed: Mapping[str, Listed]) -> set[tuple[str, ...]]:
    """The arguments of each worker process."""
    return {_SMALL if entry.small else ("--workspace", name) for name, entry in listed.items()}


def _keep(arguments: Sequence[str], child: _Child, make: Callable[[Sequence[str]], Sequence[str]]) -> None:
    now = time.monotonic()
    if child.process is None:
        if now >= child.again_at:
            child.process, child.started = subprocess.Popen(make(arguments), stdin=subprocess.DEVNULL), now
        return
    code = child.process.poll()
    if code is None:
        return
    child.process = None
    child.wait_s = 0.5 if now - child.started > _STEADY_S else min(child.wait_s * 2, _LONGEST_BACKOFF_S)
    child.again_at = now + child.wait_s
    _log.warning("worker %s ended with %s; again in %.1f s", " ".join(arguments), code, child.wait_s)


def _end(children: list[_Child]) -> None:
    running = [child.process for child in children if child.process is not None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + _END_S
    for process in running:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
