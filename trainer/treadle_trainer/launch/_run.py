"""The job's side of a training on several processes: refuse what this machine cannot do, start torchrun, take the result."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import torch

from treadle_trainer.errors import JobFailed, LaunchRefused
from treadle_trainer.jobs._command import run_command
from treadle_trainer.jobs._lines import new_lines
from treadle_trainer.jobs._outcome import error_of, is_known
from treadle_trainer.launch._settings import Launch

if TYPE_CHECKING:
    from treadle_trainer.jobs._spec import TrainSpec

__all__ = ["check_machine", "inside", "train_together"]

FOLDER: Final = "launch"


def inside() -> bool:
    """Whether this process is a rank already."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def check_machine(launch: Launch) -> None:
    """Raises LaunchRefused where this machine cannot do it."""
    devices = torch.cuda.device_count()
    if launch.strategy == "fsdp" and not devices:
        raise LaunchRefused(
            "launch strategy='fsdp' wants CUDA devices, and this machine shows none: on CPU it would silently become ddp. "
            "Set launch.strategy=ddp to train copies of the whole model here"
        )
    if devices and launch.processes > devices:
        raise LaunchRefused(
            f"launch processes={launch.processes}: this machine has {devices} CUDA devices, one a process"
        )


def train_together(spec: TrainSpec, launch: Launch, progress: Callable[..., None]) -> dict[str, Any]:
    """Do the training of `spec` with `launch.processes` ranks. Returns the first rank's result.

    Raises LaunchRefused, what a rank refused, JobStopped, or JobFailed with the log of all ranks.
    """
    check_machine(launch)
    from transformers import AutoTokenizer

    from treadle_trainer.methods import SAMPLES
    from treadle_trainer.methods._columns import columns_of

    if spec.method not in SAMPLES:  # made once, before every rank wants to
        columns_of(spec, AutoTokenizer.from_pretrained(spec.base, local_files_only=True), progress)
    folder = Path(spec.work) / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
    command = [sys.executable, "-m", "treadle_trainer.launch._agent", "--standalone", "--nnodes=1"]
    command += [
        f"--nproc-per-node={launch.processes}",
        "--max-restarts=0",
        "-m",
        "treadle_trainer.launch._rank",
        str(folder),
    ]
    log, seen = folder / "log.txt", 0

    def look() -> None:
        nonlocal seen
        seen, lines = new_lines(folder / "progress.jsonl", seen)
        for line in lines:
            progress(**{name: value for name, value in line.items() if name != "t"})

    try:
        run_command(command, folder, log, meanwhile=look)
    except JobFailed:
        look()
        said = [_read(file) for file in sorted(folder.glob("rank-*.json"))]
        # one that knows its cause tells more than those that lost it as a neighbour
        for one in sorted(said, key=is_known, reverse=True):
            if (error := error_of(one, "a rank failed", log)) is not None:
                raise error from None
        raise
    look()
    found: dict[str, Any] = _read(folder / "rank-0.json")
    return {**found, "processes": launch.processes, "strategy": launch.strategy}


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_bytes())
    return found
