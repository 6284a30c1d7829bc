"""Training methods. TRL lies behind this package alone, and runs only inside a job process.

`train` does a TrainSpec; `METHODS` names what this version can do. Importing the package is light.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from treadle_schemas import NotYetSupported, SettingError

from treadle_trainer.jobs._spec import TrainSpec

__all__ = ["METHODS", "SAMPLES", "check_method", "train"]

METHODS: Final[dict[str, str]] = {
    "sft": "_sft:train_sft",
    "rwsft": "_sft:train_rwsft",
    "dpo": "_preferences:train_dpo",
    "kto": "_preferences:train_kto",
    "reward": "_preferences:train_reward",
    "rl": "_rl:train_rl",
    "grpo": "_grpo:train_grpo",
}
"""Each method, and the function that does it."""
SAMPLES: Final = frozenset({"grpo"})
"""Methods that train on what they sample, not on what was logged: they have no token columns."""
NO_POLICY: Final = "reward"
"""Makes a model that judges and does not speak."""


def check_method(name: str, *, speaks: bool = False) -> str:
    """`name`, if it is a method of this version. Raises NotYetSupported; with `speaks`, SettingError where its model cannot be served."""
    if name not in METHODS:
        raise NotYetSupported(f"method {name!r} is no training method; use one of: {', '.join(METHODS)}")
    if speaks and name == NO_POLICY:
        raise SettingError(
            f"method {name!r} makes a model that judges and does not speak: it is no release. Keep it as a folder"
        )
    return name


def train(spec: TrainSpec, progress: Callable[..., None]) -> dict[str, Any]:
    """Do the training. Returns counts, losses and versions. Call it in a job process only: it imports torch."""
    if spec.backend is not None:
        from treadle_trainer.backends._run import train_outside

        return train_outside(spec, spec.backend, progress)
    if spec.launch is not None and spec.launch.processes > 1:
        from treadle_trainer.launch._run import inside, train_together

        if not inside():
            return train_together(spec, spec.launch, progress)
    module, name = METHODS[check_method(spec.method)].split(":")
    method: Callable[..., dict[str, Any]] = getattr(import_module(f"{__name__}.{module}"), name)
    return method(spec, progress)
