"""The process that supervises a home: `python -m treadle_streams.supervisor PART...`, or `treadle up --foreground` itself."""

from __future__ import annotations

import logging
import os
import select
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from treadle.settings import Settings
from treadle_schemas.moments import now as present

from treadle_streams.supervisor._folder import RunFolder, SupervisorState
from treadle_streams.supervisor._keeper import BrokerKeeper
from treadle_streams.supervisor._life import Restarts
from treadle_streams.supervisor._plan import plan
from treadle_streams.supervisor._process import ProcessId
from treadle_streams.supervisor._supervisor import Event, ProcessSpec, Supervisor
from treadle_streams.workspaces import Follower

__all__ = ["serve"]

_log = logging.getLogger("treadle.supervisor")

_POLL_S: Final = 0.2
_LOOK_S: Final = 5.0
"""The first report waits so long for the list of workspaces, so that it names every process."""


def serve(
    settings: Settings,
    parts: tuple[str, ...],
    *,
    foreground: bool = False,
    restarts: Restarts | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> None:
    """Keep these parts of the plan and the broker running until SIGTERM, SIGINT or SIGHUP, then stop the processes in order.

    The broker is left running: who calls stops it last. A second signal stops without waiting. For the main thread.
    Raises AlreadySupervised, BrokerError.
    """
    folder = RunFolder(settings.home)
    with folder.claimed(), _signals() as signals:
        for name in folder.end_leftovers():
            _log.warning("%s: was left behind by a supervisor that was killed; ended", name)
        supervisor = Supervisor(settings.home, restarts=restarts, on_event=on_event)
        keeper = BrokerKeeper(settings, restarts).start()
        follower = Follower(keeper.status().bootstrap_servers).start()
        follower.looked.wait(_LOOK_S)
        me = ProcessId.of(os.getpid())
        assert me is not None
        began, saved = present(), None
        running: dict[str, ProcessSpec] = {}
        try:
            while not signals.count:
                wanted = {spec.name: spec for spec in plan(settings, parts, follower.listed)}
                _arrange(supervisor, running, wanted)
                supervisor.poll()
                state = SupervisorState(
                    process=me,
                    started_at=began,
                    foreground=foreground,
                    parts=list(parts),
                    workspaces=follower.workspaces,
                    broker=keeper.status(),
                    processes=supervisor.status(),
                    stop_s=sum(spec.stop_s for spec in running.values()),
                )
                if _shape(state) != saved:
                    _save(folder, state)
                    saved = _shape(state)
                signals.wait(_POLL_S)
            _log.info("stopping")
        finally:
            supervisor.stop(hurry=lambda: signals.count > 1)
            follower.stop()
            keeper.stop()
        folder.forget()


def _arrange(supervisor: Supervisor, running: dict[str, ProcessSpec], wanted: Mapping[str, ProcessSpec]) -> None:
    """Add what is wanted and not there, take away what is there and not wanted."""
    present = {status.name for status in supervisor.status()}
    for name in running.keys() - wanted.keys():
        supervisor.remove(name)
        del running[name]
    for name, spec in wanted.items():
        # one of the same name that is still ending is waited for
        if name not in present:
            supervisor.add(spec)
            running[name] = spec


def _shape(state: SupervisorState) -> object:
    """What has to change before the file is written again; `since` is computed anew at each poll and may wander by a second."""
    return (
        state.broker,
        state.workspaces,
        [(p.name, p.state, p.process, p.restarts, p.last_line) for p in state.processes],
    )


def _save(folder: RunFolder, state: SupervisorState) -> None:
    try:
        folder.save(state)
    except OSError as err:  # a full disk must not take the processes down as well
        _log.error("cannot write the state file: %s", err)


class _Signals:
    """Counts the signals that ask for the end."""

    def __init__(self) -> None:
        self.count = 0
        # a pipe, since a handler may run while the main thread is inside a lock of threading.Event
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def wait(self, timeout_s: float) -> None:
        """Return after `timeout_s`, at once when a signal came."""
        select.select([self._read], [], [], timeout_s)

    def take(self, _number: int, _frame: object) -> None:
        self.count += 1
        with suppress(BlockingIOError):
            os.write(self._write, b"!")

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    kept = {number: signal.signal(number, signals.take) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield signals
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        signals.close()
