"""What `home/run` remembers of the supervisor: who it is, what it runs, who may start or stop it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from treadle_streams.supervisor._errors import AlreadySupervised, SupervisorBusy
from treadle_streams.supervisor._life import State
from treadle_streams.supervisor._process import ProcessId, members
from treadle_streams.supervisor._supervisor import ProcessStatus

__all__ = ["BrokerStatus", "RunFolder", "SupervisorState"]


class BrokerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The broker as the supervisor sees it."""

    kind: str
    """configured, docker or local."""
    bootstrap_servers: str
    state: State
    """A configured one is always `running`: it is not the supervisor's to start."""
    restarts: int = 0
    last_error: str = ""
    """Why the last start failed; empty if none did."""


class SupervisorState(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `run/supervisor.json`, rewritten when something changes."""

    process: ProcessId
    started_at: str
    foreground: bool
    parts: list[str]
    """Which of `PARTS` it runs."""
    workspaces: list[str]
    """Those that it serves."""
    broker: BrokerStatus
    processes: list[ProcessStatus]
    stop_s: float
    """How long it may take to stop everything."""

    @property
    def alive(self) -> bool:
        """Whether that supervisor still runs."""
        return self.process.alive


class RunFolder:
    """The supervisor's files in `home/run`, and the log folder beside it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / "run"
        self.logs = home / "logs"
        self.log = self.logs / "supervisor.log"
        self._state = self.path / "supervisor.json"

    def state(self) -> SupervisorState | None:
        """What the newest supervisor wrote, whether or not it still runs; None where there was none, or it stopped in order."""
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=SupervisorState)
        except (OSError, msgspec.DecodeError):
            return None

    def save(self, state: SupervisorState) -> None:
        """All or nothing: a reader never sees half a file."""
        new = self._state.with_suffix(".new")
        new.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
        new.replace(self._state)

    def forget(self) -> None:
        """Nobody runs any more."""
        self._state.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self, timeout_s: float) -> Iterator[None]:
        """Be the only `up` or `down` of this home. Raises SupervisorBusy after `timeout_s`."""
        end = time.monotonic() + timeout_s
        with self._flock("up.lock") as file:
            while not _try_lock(file):
                if time.monotonic() >= end:
                    raise SupervisorBusy(self.home, timeout_s)
                time.sleep(0.05)
            yield

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Be this home's supervisor, until the block or the process ends. Raises AlreadySupervised."""
        with self._flock("supervisor.lock") as file:
            if not _try_lock(file):
                present = self.state()
                raise AlreadySupervised(self.home, present.process.pid if present is not None else None)
            yield

    def end_leftovers(self, *, timeout_s: float = 10.0) -> list[str]:
        """End what a supervisor that was killed left behind: `claimed`, or `locked` with no supervisor alive. Returns the names."""
        state = self.state()
        if state is None:
            return []
        ended = []
        for status in reversed(state.processes):
            leader = status.process
            if leader is None or leader.boot_id != state.process.boot_id:
                continue
            found = leader.alive
            leader.end(timeout_s)
            for pid in members(leader.pid):
                follower = ProcessId.of(pid)
                # when the whole group was gone, its number may have become another program's
                if follower is not None and follower.boot_id == leader.boot_id and self._is_ours(pid):
                    found = follower.signal(signal.SIGKILL, 2.0) or found
            if found:
                ended.append(status.name)
        return ended

    def _is_ours(self, pid: int) -> bool:
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return b"TREADLE_HOME=" + os.fsencode(self.home) in variables

    @contextlib.contextmanager
    def _flock(self, name: str) -> Iterator[int]:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
