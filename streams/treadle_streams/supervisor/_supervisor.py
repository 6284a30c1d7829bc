"""The supervisor: named processes, kept running, stopped in order. A thin shell around `_life`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import msgspec

from treadle_streams.supervisor._life import Life, Restarts, State
from treadle_streams.supervisor._process import GroupProcess, ProcessId

__all__ = ["Event", "ProcessSpec", "ProcessStatus", "Supervisor"]

_STOP_POLL_S: Final = 0.02


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """One process to keep running."""

    name: str
    """Names it in reports and its log, `home/logs/NAME.log`."""
    argv: tuple[str, ...]
    """Program and arguments; the program is looked up in PATH."""
    env: Mapping[str, str | None] = field(default_factory=dict)
    """Environment variables on top of this process's own; None removes one."""
    cwd: Path | None = None
    """Working directory; by default this process's own."""
    stop_s: float = 10.0
    """How long it may take to end after SIGTERM before it is killed."""

    def __post_init__(self) -> None:
        if not self.name or any(char in self.name for char in "/\0") or self.name.startswith("."):
            raise ValueError(f"{self.name!r} cannot name a process: it is part of a file name")
        if not self.argv:
            raise ValueError(f"{self.name}: argv is empty")


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be known of one process at one moment."""

    name: str
    state: State
    pid: int | None
    """While it is alive. It also leads a process group of this number."""
    process: ProcessId | None
    restarts: int
    since: str
    """RFC 3339: when it was started, or when it ended."""
    exit_code: int | None
    """Of the last end: the exit code, or a signal's number negated."""
    last_line: str
    """What it said last before it ended by itself; empty if it never did."""
    log: str
    """Its log file."""

    @property
    def reason(self) -> str:
        """Why it ended last, in words; empty if it never ended by itself."""
        return how_it_ended(self.exit_code, self.last_line)


@dataclass(frozen=True)
class Event:
    """Something that happened to a process between two polls. `text` is a sentence for the log."""

    name: str
    kind: Literal["started", "ended", "not_started", "stopped"]
    text: str


class Supervisor:
    """Runs processes, restarts those that end, and stops them in reverse order.

    They die with this process (SIGTERM from the kernel), so `start` and `poll` are for its main thread. Nothing happens between polls:
    call `poll` a few times a second.

    Args:
        home: logs go to `home/logs`.
        restarts: when to start again what ended.
        on_event: called with everything that happens.
    """

    def __init__(
        self, home: Path, *, restarts: Restarts | None = None, on_event: Callable[[Event], None] = lambda _: None
    ) -> None:
        self._logs = Path(home).absolute() / "logs"
        self._restarts = restarts or Restarts()
        self._on_event = on_event
        self._kept: dict[str, _Kept] = {}

    def add(self, spec: ProcessSpec) -> Self:
        """Keep one more process running, from the next poll on. Raises ValueError where the name is taken."""
        if spec.name in self._kept:
            raise ValueError(f"a process named {spec.name!r} is supervised already")
        self._kept[spec.name] = _Kept(spec, self._logs / f"{spec.name}.log")
        return self

    def start(self, now: float | None = None) -> Self:
        """Start everything, in the order in which it was added."""
        self.poll(now)
        return self

    def poll(self, now: float | None = None) -> list[Event]:
        """Notice who ended, start who is due. `now` is in seconds of the monotonic clock, by default the present.

        Raises ValueError outside the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("supervised processes die with the thread that starts them: poll from the main thread")
        moment = time.monotonic() if now is None else now
        events: list[Event] = []
        for name, kept in list(self._kept.items()):
            events += kept.look(moment, self._restarts)
            if kept.forget and kept.process is None:
                del self._kept[name]
            elif kept.restart and kept.life.is_due(moment):
                events.append(kept.start(moment, self._restarts))
        for event in events:
            self._on_event(event)
        return events

    def status(self, now: float | None = None) -> list[ProcessStatus]:
        """Every process, in the order in which it was added; also those that fail at each start."""
        moment = time.monotonic() if now is None else now
        return [kept.status(moment, self._restarts) for kept in self._kept.values()]

    def remove(self, name: str) -> None:
        """Stop one process without waiting; the next polls see it end, kill it after its `stop_s`, and forget it. Raises KeyError."""
        self._kept[name].ask_to_end(time.monotonic(), forget=True)

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """Stop everything, last added first: SIGTERM, then SIGKILL to the whole group after the process's `stop_s`.

        Returns when nothing is left. `hurry` is asked while waiting; once it says True, nothing is waited for any more.
        """
        for kept in self._kept.values():  # from here on nobody is started again
            kept.restart = False
        for kept in reversed(self._kept.values()):
            kept.ask_to_end(time.monotonic())
            while kept.process is not None:
                for event in kept.look(time.monotonic(), self._restarts, hurry()):
                    self._on_event(event)
                if kept.process is not None:
                    time.sleep(_STOP_POLL_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class _Kept:
    """One process and its life."""

    def __init__(self, spec: ProcessSpec, log: Path) -> None:
        self.spec = spec
        self.log = log
        self.life = Life(since=time.monotonic())
        self.process: GroupProcess | None = None
        self.restart = True
        self.forget = False
        self._deadline = 0.0
        """While stopping: when it is killed."""

    def look(self, now: float, rule: Restarts, hurry: bool = False) -> list[Event]:
        """Notice an end; bring it about where the time to stop is up."""
        if self.process is None:
            return []
        if self.life.phase == "stopping" and (hurry or now >= self._deadline):
            self.process.kill()
        code = self.process.poll()
        if code is None:
            self.process.trim_log()
            return []
        stopping = self.life.phase == "stopping"
        self.life = self.life.ended(now, rule, code, self.process.last_line())
        self.process = None
        if stopping:
            return [
                self._event("stopped", "killed, since it did not end in time" if code == -signal.SIGKILL else "stopped")
            ]
        after = f"; next start in {self.life.due - now:g} s" if self.restart else ""
        return [self._event("ended", how_it_ended(code, self.life.last_line) + after)]

    def ask_to_end(self, now: float, *, forget: bool = False) -> None:
        self.forget = forget or self.forget
        if self.process is not None and self.life.phase != "stopping":
            self._deadline = now + self.spec.stop_s
            self.process.terminate()
        self.life = self.life.stopping(now)

    def start(self, now: float, rule: Restarts) -> Event:
        variables = {**os.environ, **self.spec.env}
        env = {name: value for name, value in variables.items() if value is not None}
        try:
            self.process = GroupProcess(self.spec.argv, env=env, log=self.log, cwd=self.spec.cwd)
        except (OSError, ValueError) as err:  # ValueError: a zero byte in an argument
            self.life = self.life.not_started(now, rule, f"cannot be started: {err}")
            return self._event("not_started", self.life.last_line)
        self.life = self.life.started(now)
        return self._event("started", f"started, pid {self.process.pid}")

    def status(self, now: float, rule: Restarts) -> ProcessStatus:
        began = datetime.now(UTC) - timedelta(seconds=max(0.0, now - self.life.since))
        return ProcessStatus(
            name=self.spec.name,
            state=self.life.state(now, rule),
            pid=None if self.process is None else self.process.pid,
            process=None if self.process is None else self.process.id,
            restarts=self.life.restarts,
            since=began.isoformat(timespec="seconds").replace("+00:00", "Z"),
            exit_code=self.life.exit_code,
            last_line=self.life.last_line,
            log=str(self.log),
        )

    def _event(self, kind: Literal["started", "ended", "not_started", "stopped"], text: str) -> Event:
        return Event(self.spec.name, kind, text)


def how_it_ended(exit_code: int | None, last_line: str) -> str:
    """The end of a process in words."""
    if exit_code is None:
        return last_line
    if exit_code < 0:
        try:
            how = f"killed by {signal.Signals(-exit_code).name}"
        except ValueError:
            how = f"killed by signal {-exit_code}"
    else:
        how = f"ended with exit code {exit_code}"
    return f"{how}: {last_line}" if last_line else how
