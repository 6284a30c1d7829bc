"""The registry shown in MLflow: one way, at least once, and never in the way of a decision.

What MLflow should say of a release is a pure function of the registry (`facts_of`). A pass compares that with what MLflow says, and writes
the difference; so a pass that was cut short is simply made again, and one after an outage of weeks catches up. The registry knows nothing
of it: the mirror is a process of its own.
"""

from treadle_trainer.mirror._facts import Facts, Point, aliases_of, facts_of, flat
from treadle_trainer.mirror._mirror import Mirror, Passed, follow
from treadle_trainer.mirror._mlflow import checked_uri

__all__ = ["Facts", "Mirror", "Passed", "Point", "aliases_of", "checked_uri", "facts_of", "flat", "follow"]
