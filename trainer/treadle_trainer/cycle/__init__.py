"""How long a turn of the wheel takes, and what it costs: recounted from the topics alone, so anybody can check it."""

from __future__ import annotations

from treadle_trainer.cycle.cost import Prices, costs
from treadle_trainer.cycle.turns import STAGES, Stage, Turn, bottleneck, read_turns, turns_of

__all__ = ["STAGES", "Prices", "Stage", "Turn", "bottleneck", "costs", "read_turns", "turns_of"]
