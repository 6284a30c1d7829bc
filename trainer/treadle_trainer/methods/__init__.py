"""Training methods. TRL lies behind this package alone, and runs only inside a job process.

`train` does a TrainSpec; `METHODS` names what this version can do. Importing the package is light.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treadle_schemas import NotYetSupported

from treadle_trainer.jobs._spec import TrainSpec

__all__ = ["METHODS", "check_method", "train"]

METHODS = ("sft",)
PLANNED = ("rwsft", "dpo", "kto", "reward", "rl", "grpo")


def check_method(name: str) -> str:
    """`name`, if it is a method of this version. Raises NotYetSupported."""
    if name not in METHODS:
        known = "is planned, but not in this version" if name in PLANNED else "is no training method"
        raise NotYetSupported(f"method {name!r} {known}; use one of: {', '.join(METHODS)}")
    return name


def train(spec: TrainSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Do the training. Returns counts, losses and versions. Call it in a job process only: it imports torch."""
    if spec.backend is not None:
        from treadle_trainer.backends._run import train_outside

        return train_outside(spec, spec.backend, progress)
    check_method(spec.method)
    from treadle_trainer.methods._sft import train_sft

    return train_sft(spec, progress)
