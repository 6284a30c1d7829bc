"""What `treadle up` and `treadle down` do, without their output."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from treadle.settings import Settings

from treadle_streams import broker
from treadle_streams.supervisor._errors import OtherBroker, SupervisorError, SupervisorStartFailed
from treadle_streams.supervisor._folder import RunFolder, SupervisorState
from treadle_streams.supervisor._plan import PARTS, environment
from treadle_streams.supervisor._process import ProcessId, rotate, tail

__all__ = ["Stopped", "bring_down", "bring_up", "refuse_other_broker"]

_LOCK_S: Final = 180.0
"""Longer than the slowest `up`: a first start downloads the broker."""
_STOP_MARGIN_S: Final = 40.0
"""Beside its processes, one in the foreground stops the broker."""
_REPORT_S: Final = 30.0
"""The detached supervisor imports the Kafka client before it reports."""
_WATCH_S: Final = 2.0
"""A command that is missing or misconfigured says so within about this time, and `up` should pass it on."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """What `bring_down` found running and stopped."""

    processes: tuple[str, ...]
    """In the order of stopping."""
    supervisor: bool
    broker: bool

    @property
    def anything(self) -> bool:
        """Whether anything ran at all."""
        return self.supervisor or self.broker or bool(self.processes)


def bring_up(
    settings: Settings, parts: tuple[str, ...] = PARTS, say: Say = lambda _: None
) -> tuple[SupervisorState, bool]:
    """A broker that answers and a detached supervisor with these parts of the plan. Also says whether it was started now (or ran already).

    1. Under the home's lock, look who runs. 2. Broker. 3. Supervisor, which outlives this process. 4. Watch it for a moment.
    Raises BrokerError, SupervisorError.
    """
    folder = RunFolder(settings.home)
    with folder.locked(_LOCK_S):
        present = folder.state()
        if present is not None and present.alive:
            refuse_other_broker(settings, present)
            broker.up(settings)  # the supervisor sees to it as well; this waits until it answers
            return folder.state() or present, False
        say("starting the broker" if settings.configured_servers is None else f"asking {settings.configured_servers}")
        broker.up(settings)
        say("starting the processes")
        return _start(folder, settings, parts), True


def bring_down(settings: Settings, say: Say = lambda _: None) -> Stopped:
    """Stop the supervisor, thereby its processes in reverse order, then the broker that treadle runs here. Its data stays.

    Raises SupervisorBusy, SupervisorError where it does not end, BrokerError.
    """
    folder = RunFolder(settings.home)
    if not settings.home.exists():
        return Stopped(processes=(), supervisor=False, broker=False)
    with folder.locked(_LOCK_S):
        present = folder.state()
        alive = present is not None and present.alive
        names: tuple[str, ...] = ()
        if present is not None and alive:
            names = tuple(p.name for p in reversed(present.processes) if p.pid is not None)
            say(f"stopping {', '.join(names) or 'the supervisor'}")
            present.process.end(present.stop_s + _STOP_MARGIN_S)
            if present.process.alive:
                raise SupervisorError(f"the supervisor, process {present.process.pid}, does not end. Log: {folder.log}")
        left = folder.end_leftovers()
        folder.forget()
        say("stopping the broker")
        stopped = broker.down(settings)
        if present is not None and alive and present.foreground and present.broker.kind != "configured":
            stopped = True  # a foreground one ends its broker itself
        return Stopped(processes=names or tuple(left), supervisor=alive, broker=stopped)


def refuse_other_broker(settings: Settings, present: SupervisorState) -> None:
    """Raises OtherBroker where what runs uses another Kafka than these settings ask for."""
    used = present.broker.bootstrap_servers if present.broker.kind == "configured" else None
    if used != settings.configured_servers:
        own = f"treadle's own broker ({present.broker.kind})"
        raise OtherBroker(settings.home, used or own, settings.configured_servers or "treadle's own broker")


def _start(folder: RunFolder, settings: Settings, parts: tuple[str, ...]) -> SupervisorState:
    folder.logs.mkdir(parents=True, exist_ok=True)
    rotate(folder.log)
    log_start = folder.log.stat().st_size if folder.log.exists() else 0
    variables = {**os.environ, **environment(settings)}
    # not subprocess: the child is meant to outlive this process, in a session of its own without a terminal
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", "treadle_streams.supervisor", *parts],
        {name: value for name, value in variables.items() if value is not None},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(folder.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    process = ProcessId.of(pid)
    end = time.monotonic() + _REPORT_S
    while True:
        state = folder.state()
        if state is not None and state.process == process:
            break
        if process is None or not process.alive:
            raise SupervisorStartFailed(folder.log, "it ended", tail(folder.log, log_start))
        if time.monotonic() > end:
            process.end(5.0)
            raise SupervisorStartFailed(
                folder.log, f"it did not report in {_REPORT_S:g} s", tail(folder.log, log_start)
            )
        time.sleep(0.05)
    end = time.monotonic() + _WATCH_S
    while time.monotonic() < end and not any(p.reason for p in state.processes):
        time.sleep(0.05)
        state = folder.state() or state
    return state
