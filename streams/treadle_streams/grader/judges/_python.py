"""Judging by a Python function, in processes of its own: a timeout can end it, and a crash of it is one failed grading."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Final

from treadle_schemas.canonical import dumps
from treadle_schemas.errors import SettingError
from treadle_schemas.events import Interaction

from treadle_streams.grader.errors import GraderRefused, JudgeFailed
from treadle_streams.grader.judges._base import end_group, shown_interaction
from treadle_streams.grader.verdict import Usage, fingerprint_of

__all__ = ["PythonJudge"]

START_TIMEOUT_S: Final = 120.0
"""For importing the module, which may load a model. It does not count as the time of a call."""


class PythonJudge:
    """`MODULE:FUNCTION`, called with a treadle_schemas.Interaction. It returns a value, or a dict with value, reason and usage.

    The module is found as the command `python -m` finds it: the present folder counts.
    """

    def __init__(self, target: str, timeout_s: float) -> None:
        self._target, self._timeout_s = target, timeout_s
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._all: set[subprocess.Popen[bytes]] = set()
        self.fingerprint = fingerprint_of(["python", target, sha256(_source(target).read_bytes()).hexdigest()])

    def estimate(self, interaction: Interaction) -> Usage:
        """Nothing: only the function knows."""
        return Usage()

    def judge(self, workspace: str, interaction: Interaction) -> tuple[Any, Usage | None]:
        """Call it in an idle process, or in a new one."""
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = self._start()
        line, late = _exchange(process, dumps(shown_interaction(workspace, interaction)) + b"\n", self._timeout_s)
        if not line.endswith(b"\n"):
            self._forget(process)
            if late:
                raise JudgeFailed(f"{self._target} took longer than {self._timeout_s:g} s", retriable=True)
            raise JudgeFailed(f"the process of {self._target} ended with {process.returncode}", retriable=True)
        self._idle.put(process)
        answer = json.loads(line)
        if "error" in answer:
            raise JudgeFailed(f"{self._target} raised {answer['error']}", retriable=True)
        return answer["said"], None

    def close(self) -> None:
        """End its processes."""
        for process in list(self._all):
            self._forget(process)

    def _start(self) -> subprocess.Popen[bytes]:
        # by its path: by its name it would import what the grader itself needs, and start ten times slower
        code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
        command = [sys.executable, "-c", code, str(Path(__file__).with_name("_child.py")), self._target]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._all.add(process)
        line, _ = _exchange(process, b"", START_TIMEOUT_S)
        if not line.endswith(b"\n"):
            self._forget(process)
            raise GraderRefused(f"python: {self._target} cannot be imported; its process says why on stderr")
        return process

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        self._all.discard(process)
        if process.poll() is None:
            end_group(process)
        process.wait()
        for pipe in _pipes(process):
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # what was not written is for nobody


def _exchange(process: subprocess.Popen[bytes], given: bytes, timeout_s: float) -> tuple[bytes, bool]:
    """The line that a process answers with, and whether it was ended for taking longer than `timeout_s`."""
    late = threading.Event()

    def end() -> None:
        late.set()
        end_group(process)

    timer = threading.Timer(timeout_s, end)
    timer.start()
    line = b""
    try:
        stdin, stdout = _pipes(process)
        stdin.write(given)
        stdin.flush()
        line = stdout.readline()
    except OSError:
        pass  # it ended while it was written to
    finally:
        timer.cancel()
        timer.join()
    return (b"", True) if late.is_set() else (line, False)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _source(target: str) -> Path:
    module = target.partition(":")[0]
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise SettingError(f"python: there is no module {module} here; it is looked for as `python -m {module}` would")
    return Path(spec.origin)
