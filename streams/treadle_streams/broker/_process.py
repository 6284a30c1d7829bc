"""Processes, named so that a reused pid cannot fool anyone (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from treadle_streams._proc import boot_id, start_ticks

__all__ = ["boot_id", "end", "find", "in_main_thread", "reap", "run_to_end", "spawn", "start_ticks"]

_PR_SET_PDEATHSIG = 1

_children: dict[int, subprocess.Popen[bytes]] = {}
"""Children of this process, kept so that they can be reaped and are not reported as forgotten."""


def find(*words: str) -> int | None:
    """Pid of a process whose arguments contain all ``words``, each as one whole argument."""
    wanted = {word.encode() for word in words}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted <= set((entry / "cmdline").read_bytes().split(b"\0")):
                    return int(entry.name)
    return None


def spawn(command: Sequence[str], *, cwd: Path, output: IO[bytes], die_with_parent: bool) -> int:
    """Start a process in a session of its own, so that Ctrl-C in the terminal does not reach it; return its pid."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=_die_with_parent(signal.SIGTERM) if die_with_parent else None,
    )
    _children[process.pid] = process
    return process.pid


def run_to_end(command: Sequence[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a helper that must not outlive this process."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        preexec_fn=_die_with_parent(signal.SIGKILL),
    )


def end(pid: int, ticks: int, sig: signal.Signals, timeout_s: float) -> None:
    """Send a signal to exactly that process and wait until it is gone, with SIGKILL after the timeout.

    A pidfd becomes readable when the whole thread group has ended and its files are closed; the state Z in /proc comes
    before, while other threads of a JVM still hold files of the data directory.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if start_ticks(pid) != ticks:
            return
        for chosen, wait_s in ((sig, timeout_s), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, chosen)
            if select.select([descriptor], [], [], wait_s)[0]:
                return
    finally:
        os.close(descriptor)
        reap(pid)


def reap(pid: int) -> None:
    """Forget a child that has ended; does nothing for other processes."""
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]


def in_main_thread() -> bool:
    """The parent-death signal fires when the *thread* that forked ends, so only the main thread may ask for it."""
    return threading.current_thread() is threading.main_thread()


def _die_with_parent(sig: signal.Signals) -> Callable[[], None]:
    """A hook for the child: ask for a signal when the parent dies. Everything it needs is looked up before the fork."""
    prctl, getppid, leave, parent, number = ctypes.CDLL(None).prctl, os.getppid, os._exit, os.getpid(), int(sig)

    def hook() -> None:
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if getppid() != parent:  # it died before the request
            leave(1)

    return hook
