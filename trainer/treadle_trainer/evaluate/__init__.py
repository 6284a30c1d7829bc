"""Evaluation: candidate and champion on the same held-out tasks, with the same sampling seed.

`compare` runs one in a job process. With an environment it plays fresh held-out tasks and the environment's own success counts, a grader
that no training label can move; without one, the likelihood of successful held-out rows is compared, which is weaker evidence.
A hosted champion cannot be played: `against_log` measures the candidate beside what is logged of it.
`player` (needs torch) holds the play loop.
"""

from treadle_trainer.evaluate._compare import Comparison, compare
from treadle_trainer.evaluate._incumbent import SAVINGS, AgainstLog, Incumbent, against_log, incumbent

__all__ = ["SAVINGS", "AgainstLog", "Comparison", "Incumbent", "against_log", "compare", "incumbent"]
