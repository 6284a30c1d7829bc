"""What a job says of its end, and the error that its caller gets for it. One table for job processes and for the ranks of a launch."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from treadle_schemas import SettingError, TreadleError

from treadle_trainer.errors import (
    BackendFailed,
    DataRefused,
    DiskFull,
    JobFailed,
    JobStopped,
    JobTooLarge,
    LaunchRefused,
    RewardFailed,
    StateRefused,
    TemplateRefused,
    TokenizerMismatch,
)

__all__ = ["NO_ROOM", "SMALLER", "attempt", "error_of", "is_known"]

SMALLER: Final = "make it smaller (batch with accumulate in its place, max_length, lora_rank)"
"""What helps a job that wants too much memory."""

_REFUSALS: Final[dict[str, type[TreadleError]]] = {
    **{error.__name__: DataRefused for error in (DataRefused, StateRefused, TokenizerMismatch)},
    **{error.__name__: error for error in (TemplateRefused, LaunchRefused, SettingError)},
}
"""What was asked of the job makes no sense: no fault of the process."""
_FAILURES: Final[dict[str, type[JobFailed]]] = {
    error.__name__: error for error in (BackendFailed, DiskFull, JobStopped, JobTooLarge, RewardFailed)
}
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where a disk, or a share of it, is full."""


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, or where it fails `error` and `kind`: whoever waits for it hears of it, whatever it is."""
    try:
        return work()
    except TreadleError as err:
        return {"error": str(err), "kind": type(err).__name__}
    except Exception as err:
        traceback.print_exc()
        said = f"{type(err).__name__}: {err}"
        if _out_of_memory(err):
            return {"error": f"{said}: there was not enough memory: {SMALLER}", "kind": JobTooLarge.__name__}
        if any(_no_room(one) for one in _chain(err)):
            return {"error": f"{said}: the disk is full; `treadle job prune` frees some", "kind": DiskFull.__name__}
        return {"error": said, "kind": "crash"}


def is_known(said: Mapping[str, Any]) -> bool:
    """Whether the cause has a type of its own, which tells more than that something else broke."""
    return said.get("kind") in _REFUSALS or said.get("kind") in _FAILURES


def error_of(said: Mapping[str, Any], name: str, log: Path) -> TreadleError | None:
    """The error that `attempt` noted, for whoever asked for the job `name`. None where it went well."""
    if "error" not in said:
        return None
    kind, text = str(said.get("kind")), str(said["error"])
    if kind in _REFUSALS:
        return _REFUSALS[kind](text)
    if kind in _FAILURES:
        return _FAILURES[kind](f"{name}: {text}", log)
    return JobFailed(f"{name}: {text} (log: {log})", log)


def _out_of_memory(err: Exception) -> bool:
    # torch's own error is told by its name, so that this needs no torch; its CPU allocator raises a plain RuntimeError
    return (
        isinstance(err, MemoryError)
        or type(err).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator: can't allocate memory" in str(err)
    )


def _no_room(err: BaseException) -> bool:
    # safetensors and torch turn the system's error into text
    return (isinstance(err, OSError) and err.errno in NO_ROOM) or "No space left on device" in str(err)


def _chain(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__ or err.__context__
