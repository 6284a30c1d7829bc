"""Graders: judges that turn interactions into outcomes, by a Python function, a command or a model.

A grader's verdict is an ordinary outcome. Its id is made of grader, version and interaction, its source names grader, version and the hash
of the prompt, model or program, so the join needs to know nothing of graders, and a repetition changes nothing.
"""

from treadle_streams.grader.agreement import Agreement, agreement
from treadle_streams.grader.config import GraderConfig, load_config
from treadle_streams.grader.files import Failure, Folder, Tally
from treadle_streams.grader.run import Place, run_grader
from treadle_streams.grader.verdict import Usage, Verdict

__all__ = [
    "Agreement",
    "Failure",
    "Folder",
    "GraderConfig",
    "Place",
    "Tally",
    "Usage",
    "Verdict",
    "agreement",
    "load_config",
    "run_grader",
]
