"""The gate: is the candidate better than the champion? Pure functions of paired scores.

`decide` compares one pair of score lists; `judge` adds the checks that a candidate must not fail (declared slices and guard metrics) and
the non-inferiority mode, and says where offline evidence may only admit to a canary. `GenerationLedger` spends alpha.
"""

from treadle_trainer.gate._bootstrap import Bounds, cluster_bounds
from treadle_trainer.gate._decide import Decision, Verdict, decide
from treadle_trainer.gate._judge import Check, Paired, Slice, judge, judge_against_log
from treadle_trainer.gate._labels import LabelPin, grader_versions, read_grader
from treadle_trainer.gate._ledger import Chosen, Generation, GenerationLedger, group_key

__all__ = [
    "Bounds",
    "Check",
    "Chosen",
    "Decision",
    "Generation",
    "GenerationLedger",
    "LabelPin",
    "Paired",
    "Slice",
    "Verdict",
    "cluster_bounds",
    "decide",
    "grader_versions",
    "group_key",
    "judge",
    "judge_against_log",
    "read_grader",
]
