"""One worker process for each workspace: follow the operators' list, start what is new, restart what fell, end what is gone."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from treadle.errors import LogError

from treadle_streams import workspaces

__all__ = ["run_all"]

_log = logging.getLogger(__name__)

LOOK_S: Final = 2.0
"""How often the list of workspaces is read."""
_STEP_S: Final = 0.2
_LONGEST_BACKOFF_S: Final = 30.0
_STEADY_S: Final = 60.0
"""A worker that ran for so long starts again with the shortest wait."""
_END_S: Final = 20.0


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    wait_s: float = 0.5
    again_at: float = field(default_factory=time.monotonic)


def run_all(servers: str, command: Callable[[str], Sequence[str]] | None = None) -> int:
    """Keep a worker for each workspace until SIGTERM or SIGINT, then end them all. Raises LogUnreachable at the start only."""
    make = command or (
        lambda name: [
            sys.executable,
            "-m",
            "treadle_streams.worker",
            "--workspace",
            name,
            "--parent-pid",
            str(os.getpid()),
        ]
    )
    quit_ = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: quit_.set())
    children: dict[str, _Child] = {}
    wanted = set(workspaces.names(servers))
    looked = time.monotonic()
    try:
        while not quit_.wait(_STEP_S):
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                try:
                    wanted = set(workspaces.names(servers))
                except LogError as err:
                    _log.warning("the list of workspaces cannot be read, going on with the last one: %s", err)
            for name in sorted(children.keys() - wanted):
                _end([children.pop(name)])
            for name in sorted(wanted):
                _keep(name, children.setdefault(name, _Child()), make)
    finally:
        _end(list(children.values()))
    return 0


def _keep(name: str, child: _Child, make: Callable[[str], Sequence[str]]) -> None:
    now = time.monotonic()
    if child.process is None:
        if now >= child.again_at:
            child.process, child.started = subprocess.Popen(make(name), stdin=subprocess.DEVNULL), now
        return
    code = child.process.poll()
    if code is None:
        return
    child.process = None
    child.wait_s = 0.5 if now - child.started > _STEADY_S else min(child.wait_s * 2, _LONGEST_BACKOFF_S)
    child.again_at = now + child.wait_s
    _log.warning("worker of %s ended with %s; again in %.1f s", name, code, child.wait_s)


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
