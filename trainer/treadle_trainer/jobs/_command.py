"""A command inside a job: in its process group, with its own log, and gone when it is over."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from treadle_trainer.errors import BackendFailed, JobStopped
from treadle_trainer.jobs._ending import asked_to_end
from treadle_trainer.jobs._leftovers import die_with_parent, nothing_left_behind

__all__ = ["run_command"]

POLL_S: Final = 0.2
TAIL_CHARS: Final = 600


def run_command(command: list[str], work: Path, log: Path, *, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Run a command to its end in the present process group; nothing that it started outlives it. Its output goes to `log`.

    `meanwhile` is called a few times a second.

    Raises BackendFailed with its last words, JobStopped where SIGTERM came meanwhile.
    """
    with log.open("wb") as file, asked_to_end() as asked, nothing_left_behind():
        try:
            process = subprocess.Popen(
                command,
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
        except OSError as err:
            raise BackendFailed(f"{command[0]}: cannot be started: {err.strerror}", log) from None
        while True:
            try:
                code = process.wait(POLL_S)
                break
            except subprocess.TimeoutExpired:
                meanwhile()
    if asked():
        raise JobStopped(f"stopped while {command[0]} ran", log)
    if code:
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
        raise BackendFailed(f"{shlex.join(command)}: {how}; its last words in {log}: {_tail(log) or 'none'}", log)


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_CHARS))
        return file.read().decode(errors="replace").strip()
