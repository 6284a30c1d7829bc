"""How long a turn of the wheel takes, and what it costs: recounted from the topics alone, so anybody can check it."""

from __future__ import annotations

from treadle_trainer.cycle.cost import Cost, Prices, costs
from treadle_trainer.cycle.reading import read_turns
from treadle_trainer.cycle.spending import Bytes, Judged, Window, windows
from treadle_trainer.cycle.turns import STAGES, Stage, Turn, bottleneck, turns_of

__all__ = [
    "STAGES",
    "Bytes",
    "Cost",
    "Judged",
    "Prices",
    "Stage",
    "Turn",
    "Window",
    "bottleneck",
    "costs",
    "read_turns",
    "turns_of",
    "windows",
]
