"""The trainer: from a corpus version to a release that is better, proven, and reversible.

`run_turn` is the whole path once (read, train, evaluate, gate, register, promote); `service` runs it for every new version, `guard` watches
what it promoted. Importing this package is light: torch lives in job processes only.
"""

from typing import TYPE_CHECKING, Any

from treadle_trainer.errors import TrainerError

if TYPE_CHECKING:
    from treadle_trainer.gate import Verdict, decide
    from treadle_trainer.jobs import JobRunner
    from treadle_trainer.policy import GatePolicy, GuardPolicy, TrainingPolicy
    from treadle_trainer.registry import Outbox, Registry, open_release
    from treadle_trainer.turn import TurnReport, run_turn

__all__ = [
    "GatePolicy",
    "GuardPolicy",
    "JobRunner",
    "Outbox",
    "Registry",
    "TrainerError",
    "TrainingPolicy",
    "TurnReport",
    "Verdict",
    "decide",
    "open_release",
    "run_turn",
]

_HOMES = {
    "GatePolicy": "policy",
    "GuardPolicy": "policy",
    "JobRunner": "jobs",
    "Outbox": "registry",
    "Registry": "registry",
    "TrainingPolicy": "policy",
    "TurnReport": "turn",
    "Verdict": "gate",
    "decide": "gate",
    "open_release": "registry",
    "run_turn": "turn",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: `treadle --help` must not wait for numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
