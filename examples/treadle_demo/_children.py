"""The demo's own two processes, the agent and the world, and how they are asked to do something."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
from treadle_streams.supervisor import last_line

from treadle_demo.errors import DemoFailed

__all__ = ["Child"]


class Child:
    """A process that takes JSON commands on stdin and answers on stdout; its log goes to a file."""

    def __init__(self, stage: str, argv: Sequence[str], env: dict[str, str], log: Path) -> None:
        self.stage = stage
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                list(argv),
                env={**os.environ, **env, "TREADLE_DEMO_CHILD": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
            )
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, name=f"{stage}-answers", daemon=True).start()

    def ask(self, **command: Any) -> None:
        """Send a command."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(orjson.dumps(command) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def answer(self, timeout_s: float, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """The next answer; calls `meanwhile` while waiting. Raises DemoFailed when the process died or is silent for too long."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                answer = self._answers.get(timeout=0.1)
            except queue.Empty:
                meanwhile()
                if time.monotonic() > deadline:
                    raise DemoFailed(self.stage, f"no answer in {timeout_s:g} s; see {self.log}") from None
                continue
            if answer is None:
                raise self._died()
            return answer

    def check(self) -> None:
        """Raises DemoFailed when the process has died."""
        if self._process.poll() is not None:
            raise self._died()

    def close(self, *, at_once: bool = False) -> None:
        """Close the pipe, which ends the process after its last words; kill it `at_once`, or if it does not end."""
        if at_once:
            self._process.kill()
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._answers.put(orjson.loads(line))
        self._answers.put(None)

    def _died(self) -> DemoFailed:
        code = self._process.wait()
        said = last_line(self.log) or "no word"
        return DemoFailed(self.stage, f"ended with exit code {code}: {said} (log: {self.log})")
