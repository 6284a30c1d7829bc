"""Runs jobs one at a time a device, each in its own process group with its own log, and waits for what comes of it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from treadle_trainer._files import locked, write_atomically
from treadle_trainer.errors import JobFailed, JobStopped, JobTimedOut, JobTooLarge
from treadle_trainer.jobs._contents import remove, tidy
from treadle_trainer.jobs._lines import new_lines
from treadle_trainer.jobs._memory import MemoryWatch, oom_kills
from treadle_trainer.jobs._outcome import SMALLER, error_of
from treadle_trainer.jobs._spec import JobSpec
from treadle_trainer.jobs._strays import MARK

__all__ = ["JobRunner", "has_cuda"]

POLL_S = 0.1
TERM_GRACE_S = 5.0
"""How long a job may clean up after SIGTERM before SIGKILL."""
LOG_TAIL_CHARS = 600
GB = 1_000_000_000

OnProgress = Callable[[dict[str, Any]], None]


class JobRunner:
    """Starts job processes below `root`; `root/NAME/` is the folder of job NAME.

    On CPU it keeps a nursery with TRL imported, from `warm` or the first job on. Where CUDA is present each job imports anew: a
    process that has seen a device cannot be forked. A lock on `root` keeps other runners from using the device meanwhile.
    """

    def __init__(self, root: Path, *, preload: bool | None = None) -> None:
        self.root = Path(root).absolute()
        self._preload = not has_cuda() if preload is None else preload
        self._nursery: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def warm(self) -> None:
        """Start the nursery now; its imports run beside whatever the caller does next."""
        if self._nursery is not None and self._nursery.poll() is None:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "treadle_trainer.jobs._nursery", *(["--preload"] if self._preload else [])]
        with (self.root / "nursery.log").open("ab") as log:
            self._nursery = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(self.root),
                start_new_session=True,  # Ctrl-C belongs to the caller, which then ends the job in order
            )
        self._unread = b""

    def run(
        self,
        name: str,
        spec: JobSpec,
        *,
        timeout_s: float,
        memory_gb: float | None = None,
        on_progress: OnProgress | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Do one job and return its result. Files of an earlier run of that name are removed, but for what `spec` names.

        It may run for `timeout_s` seconds and take `memory_gb` billions of bytes, with everything that it starts; None: what there is.
        The result has `peak_memory_mb`, the most of 2^20 bytes that it was seen with.

        Raises DataRefused, TemplateRefused, SettingError, LaunchRefused, BackendFailed, RewardFailed and DiskFull as the job did,
        JobFailed (its own words, its log), JobTimedOut and JobTooLarge beyond its limits, JobStopped when `should_stop` says so.
        """
        folder = self.prepare(name)
        for old in ("result.json", "progress.jsonl", "log.txt"):
            (folder / old).unlink(missing_ok=True)
        write_atomically(folder / "spec.json", msgspec.json.encode(spec))
        with self._device(folder, should_stop):
            self.warm()
            assert self._nursery is not None
            watch = MemoryWatch(self._nursery.pid, None if memory_gb is None else int(memory_gb * GB))
            killed = oom_kills()
            code = self._supervise(folder, timeout_s, watch, on_progress or _ignore, should_stop)
        return {**_result(folder, code, watch, killed), "peak_memory_mb": watch.peak >> 20}

    def prepare(self, name: str) -> Path:
        """The folder of a job, made if missing: rows for it go there."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def discard(self, name: str, *parts: str) -> None:
        """Remove large leftovers of a job (files or folders in its folder); logs and results stay."""
        for part in parts:
            remove(self.root / name / part)

    def tidy(self, name: str, *, done: bool) -> None:
        """Remove the rows that lie in the folder of a job which has ended; with `done` also what a next try would want."""
        tidy(self.root / name, done=done)

    def close(self) -> None:
        """End the nursery, and with it a running job."""
        nursery, self._nursery = self._nursery, None
        if nursery is None:
            return
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            nursery.stdin.close()
        try:
            nursery.wait(2.0)  # a nursery that is still importing does not read its stdin
        except subprocess.TimeoutExpired:
            nursery.kill()
            nursery.wait()
        nursery.stdout.close()

    def __enter__(self) -> JobRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _device(self, folder: Path, should_stop: Callable[[], bool]) -> Iterator[None]:
        """Wait until no other runner on this root has a job. The wait is not part of the job's time."""
        while True:
            with locked(self.root / "device.lock", wait=False) as free:
                if free:
                    yield
                    return
            if should_stop():
                raise JobStopped(f"{folder.name}: stopped while it waited for the device")
            time.sleep(POLL_S)

    def _supervise(
        self,
        folder: Path,
        timeout_s: float,
        watch: MemoryWatch,
        on_progress: OnProgress,
        should_stop: Callable[[], bool],
    ) -> int:
        nursery = self._nursery
        assert nursery is not None
        assert nursery.stdin is not None
        try:
            nursery.stdin.write(json.dumps({"folder": str(folder)}).encode() + b"\n")
            nursery.stdin.flush()
        except BrokenPipeError:
            self.close()
            raise JobFailed("the process that starts jobs is gone; see its log", self.root / "nursery.log") from None
        pid, deadline, seen = 0, time.monotonic() + timeout_s, 0
        try:
            while True:
                for reply in self._replies(folder):
                    pid = int(reply.get("pid", pid))
                    if "exit" in reply:
                        _tail(folder / "progress.jsonl", seen, on_progress)
                        return int(reply["exit"])
                seen = _tail(folder / "progress.jsonl", seen, on_progress)
                if should_stop():
                    raise JobStopped(f"{folder.name}: stopped", folder / "log.txt")
                if time.monotonic() > deadline:
                    raise JobTimedOut(f"{folder.name}: not done after {timeout_s:g} s", folder / "log.txt")
                watch.look()
                if watch.over:
                    raise JobTooLarge(
                        f"{folder.name}: took {_gb(watch.now)} of memory, and policy memory_gb lets a job have {_gb(watch.limit or 0)}: "
                        f"raise memory_gb, or {SMALLER}",
                        folder / "log.txt",
                    )
        except BaseException:
            self._end(pid, folder, watch)
            raise

    def _replies(self, folder: Path) -> Iterator[dict[str, Any]]:
        assert self._nursery is not None
        assert self._nursery.stdout is not None
        fd = self._nursery.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            if not selector.select(POLL_S):
                return
        chunk = os.read(fd, 65_536)
        if not chunk:
            raise JobFailed(f"{folder.name}: the process that starts jobs died", self.root / "nursery.log")
        self._unread += chunk
        while b"\n" in self._unread:
            line, self._unread = self._unread.split(b"\n", 1)
            yield json.loads(line)

    def _end(self, pid: int, folder: Path, watch: MemoryWatch) -> None:
        """End the job's process group and take the nursery's word for it; a nursery that does not answer ends too.

        A job that goes on growing far beyond its memory gets no time to clean up: that would be at the cost of others.
        """
        if pid:
            _signal_group(pid, signal.SIGTERM)
            deadline = time.monotonic() + TERM_GRACE_S
            killed = False
            while time.monotonic() < deadline + TERM_GRACE_S:
                try:
                    if any("exit" in reply for reply in self._replies(folder)):
                        return
                except JobFailed:
                    break
                watch.look()
                if not killed and (time.monotonic() > deadline or watch.far_over):
                    _signal_group(pid, signal.SIGKILL)
                    killed = True
            _signal_group(pid, signal.SIGKILL)
        self.close()


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def has_cuda() -> bool:
    """Whether this machine shows a CUDA device, told without importing torch."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") and Path("/dev/nvidiactl").exists()


def _environment(root: Path) -> dict[str, str]:
    return {
        "OMP_WAIT_POLICY": "PASSIVE",  # two trainings beside each other wait instead of spinning: 1,080 ms a step, not 2,780
        "TOKENIZERS_PARALLELISM": "false",
        **os.environ,
        MARK: str(root),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }


def _result(folder: Path, code: int, watch: MemoryWatch, killed_before: int | None) -> dict[str, Any]:
    log = folder / "log.txt"
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_bytes())
    except (FileNotFoundError, ValueError):
        raise _unfinished(folder.name, log, code, watch, killed_before) from None
    if (error := error_of(result, folder.name, log)) is not None:
        raise error
    return result


def _unfinished(name: str, log: Path, code: int, watch: MemoryWatch, killed_before: int | None) -> JobFailed:
    """What is known of a job that left no result: its end, its last words, and whether the kernel killed for want of memory meanwhile."""
    words = log.read_text(errors="replace")[-LOG_TAIL_CHARS:].strip() if log.exists() else ""
    last = f"its last words in {log}: {words or 'none'}"
    if code != -signal.SIGKILL:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return JobFailed(f"{name}: {how} without a result; {last}", log)
    killed, reached = oom_kills(), _gb(watch.peak)
    if killed is not None and killed_before is not None and killed > killed_before:
        return JobTooLarge(
            f"{name}: was killed by signal 9 without a result, while the kernel ended {killed - killed_before} process(es) for want of "
            f"memory; the job had been seen with {reached}: {SMALLER}, or give it more. Policy memory_gb ends it in order; {last}",
            log,
        )
    who = "the kernel does not say whether it was for want of memory" if killed is None else "not for want of memory"
    return JobFailed(
        f"{name}: was killed by signal 9 without a result ({who}; it was seen with {reached} of memory); {last}", log
    )


def _gb(size: int) -> str:
    return f"{size / GB:.2f} GB"


def _tail(path: Path, seen: int, on_progress: OnProgress) -> int:
    """Report the whole lines beyond byte `seen`. Returns where to go on."""
    seen, lines = new_lines(path, seen)
    for line in lines:
        on_progress(line)
    return seen


def _ignore(_: dict[str, Any]) -> None:
    return
