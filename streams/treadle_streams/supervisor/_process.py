"""Real processes: groups of them, named so that a reused pid cannot fool anyone, ended so that none is left (Linux)."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from treadle_streams._proc import boot_id, start_ticks, stat

__all__ = ["GroupProcess", "ProcessId", "last_line", "members", "rotate", "tail"]

_LAUNCH: Final = str(Path(__file__).with_name("_launch.py"))
_LOG_KEEP_BYTES: Final = 16 * 1024 * 1024
"""A longer log is moved to NAME.log.1 at the next start."""
_LOG_MOST_BYTES: Final = 64 * 1024 * 1024
"""The same for one that is being written: Kafka clients write 30 lines a second while the broker is away."""
_TAIL_BYTES: Final = 4_000
_LINE_CHARS: Final = 500
_GONE_WITHIN_S: Final = 2.0
"""After SIGKILL a group is waited for so long. What remains then are zombies that somebody else does not reap."""


class ProcessId(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly one process: the kernel reuses pids, but not with the same start on the same boot."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has this pid now; None if there is none or it only waits to be reaped."""
        ticks = start_ticks(pid)
        return None if ticks is None else cls(pid=pid, start_ticks=ticks, boot_id=boot_id())

    @property
    def alive(self) -> bool:
        """True while this very process runs."""
        return start_ticks(self.pid) == self.start_ticks and boot_id() == self.boot_id

    def end(self, timeout_s: float) -> None:
        """SIGTERM, after `timeout_s` seconds SIGKILL; returns when it is gone. Does nothing to any other process."""
        for sig, wait_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, _GONE_WITHIN_S)):
            if self.signal(sig, wait_s):
                return

    def signal(self, sig: signal.Signals, wait_s: float) -> bool:
        """Send a signal and wait for the end; True when it has ended, also long before."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if not self.alive:
                return True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, sig)
            return bool(select.select([descriptor], [], [], wait_s)[0])
        finally:
            os.close(descriptor)


class GroupProcess:
    """A child process that leads a session and process group of its own; what it leaves in the group ends with it.

    Must be started from the main thread: the kernel tells the child of its parent's death when the *thread* that forked it ends.
    """

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path | None) -> None:
        """Start it. Its output is appended to `log`. Raises OSError when the system refuses."""
        log.parent.mkdir(parents=True, exist_ok=True)
        rotate(log)
        with log.open("ab") as output:
            self._log = log
            self._log_start = output.tell()
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", _LAUNCH, str(os.getpid()), *argv],
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # also: Ctrl-C in the terminal does not reach it
            )
        self.pid = self._popen.pid
        self.id = ProcessId.of(self.pid)
        """None where it ended at once."""

    def poll(self) -> int | None:
        """None while it runs; else its exit code, or a signal's number negated, and whatever was left of its group is killed."""
        if self._popen.returncode is not None:
            return self._popen.returncode
        # 1. See the end without reaping: until it is reaped nobody can get the pid, hence the group id.
        # 2. Kill what is left of the group. 3. Reap.
        try:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
        except ChildProcessError:  # someone else reaped it, and the group id may mean another group by now
            return self._popen.wait()
        self._kill_group()
        return self._popen.wait()

    def terminate(self) -> None:
        """Ask it to end (SIGTERM). Only itself: it has its own way with its children."""
        self._popen.terminate()

    def kill(self) -> None:
        """End it and its group at once, and wait until they are gone."""
        if self._popen.returncode is None:
            self._kill_group()
            self._popen.wait()
        end = time.monotonic() + _GONE_WITHIN_S
        while any(members(self.pid)) and time.monotonic() < end:
            time.sleep(0.01)

    def trim_log(self, most_bytes: int = _LOG_MOST_BYTES) -> bool:
        """Copy a log that has become long to NAME.log.1 and begin it anew; True where that was done.

        Lines that are written during the copy (milliseconds) may be in neither.
        """
        try:
            if self._log.stat().st_size <= most_bytes:
                return False
            shutil.copyfile(self._log, self._log.with_name(self._log.name + ".1"))
            os.truncate(self._log, 0)  # the process goes on at the new end: it appends
        except OSError:
            return False  # gone, or the disk is full
        self._log_start = 0
        return True

    def last_line(self) -> str:
        """The last line of its log that is its own, or an empty string."""
        return last_line(self._log, self._log_start)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def members(group: int) -> Iterator[int]:
    """The pids of a process group, without those that only wait to be reaped."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = stat(int(entry.name))
            if fields is not None and int(fields[2]) == group:
                yield int(entry.name)


def rotate(log: Path) -> None:
    """Move a log that has become long to NAME.log.1, over an older one."""
    if log.exists() and log.stat().st_size > _LOG_KEEP_BYTES:
        log.replace(log.with_name(log.name + ".1"))


def tail(log: Path, start: int = 0) -> str:
    """The end of a log, from byte `start` at the earliest."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _TAIL_BYTES) if start <= size else 0)
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_line(log: Path, start: int = 0) -> str:
    """The last line with something on it, cut to a readable length and free of control characters."""
    for line in reversed(tail(log, start).splitlines()):
        text = "".join(char for char in line if char.isprintable()).strip()
        if text:
            return text[:_LINE_CHARS]
    return ""
