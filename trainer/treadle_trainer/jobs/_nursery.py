"""The nursery: a small process that forks a child for each job, `python -m treadle_trainer.jobs._nursery [--preload]`.

With --preload it imports TRL once (about 12 CPU seconds), so that each job starts within milliseconds. It imports only: no tensor is
made and no device touched, since neither survives a fork. Requests come as JSON lines on stdin, `{"folder": ...}`; replies go to
stdout, `{"pid": ...}` at once and `{"exit": code}` at the end (a signal's number negated). The end of stdin, hence the death of the
parent, ends the running job and the nursery.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from treadle_trainer.jobs._leftovers import die_with_parent, nothing_left_behind
from treadle_trainer.jobs._strays import end_strays

POLL_S = 0.02
FIRST_TO_GO = 500
"""Of 1,000, added to a job's badness: where memory ends, the kernel takes the job, not the services or the broker beside it."""


def main() -> None:
    """Serve until stdin ends."""
    replies = os.dup(1)
    os.dup2(2, 1)  # what imports print must not look like a reply
    if "--preload" in sys.argv:
        _preload()
    buffer = b""
    while True:
        chunk = os.read(0, 65_536)
        if not chunk:
            return
        buffer += chunk
        while b"\n" in buffer:
            line, buffer = buffer.split(b"\n", 1)
            _serve(json.loads(line), replies)


def _preload() -> None:
    import trl.trainer.sft_trainer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # lazy modules load at first touch, and this is the place to pay for it
    _ = (trl.trainer.sft_trainer.SFTTrainer, AutoModelForCausalLM, AutoTokenizer)
    gc.collect()
    gc.freeze()


def _serve(request: dict[str, Any], replies: int) -> None:
    with nothing_left_behind():
        code = _supervised(request, replies)
    _reply(replies, exit=code)


def _supervised(request: dict[str, Any], replies: int) -> int:
    """Fork the job and wait for its end. Returns its exit code, or a signal's number negated."""
    pid = os.fork()
    if pid == 0:
        os.close(replies)
        _child(Path(request["folder"]))
    with contextlib.suppress(OSError):  # the child does the same; whoever is first, the group exists from here on
        os.setpgid(pid, pid)
    _reply(replies, pid=pid)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        # readable while a job runs can only mean the end: the parent asks for one job at a time
        if select.select([0], [], [], POLL_S)[0]:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os._exit(1)


def _child(folder: Path) -> NoReturn:
    code = 1
    try:
        os.setpgid(0, 0)  # its helpers die with it
        die_with_parent()
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _alone(folder.parent)
        from treadle_trainer.jobs._child import perform

        code = perform(folder)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # no exit handlers of the nursery


def _alone(root: Path) -> None:
    """Wait until the job before is gone, also one whose service was killed, and end what it left. The lock ends with this process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_GO))
    lock = os.open(root / "running.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(lock, fcntl.LOCK_EX)
    for pid in end_strays(root):
        print(f"ended process {pid}, which an earlier job had left behind", flush=True)


def _reply(fd: int, **values: int) -> None:
    os.write(fd, json.dumps(values).encode() + b"\n")


if __name__ == "__main__":
    main()
