"""The three ways of judging: a Python function, a command, a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping

from treadle_streams.grader.config import GraderConfig
from treadle_streams.grader.judges._base import Judge
from treadle_streams.grader.judges._command import CommandJudge
from treadle_streams.grader.judges._model import ModelJudge
from treadle_streams.grader.judges._python import PythonJudge

__all__ = ["CommandJudge", "Judge", "ModelJudge", "PythonJudge", "make_judge"]


def make_judge(config: GraderConfig, environ: Mapping[str, str] | None = None) -> Judge:
    """The judge of a checked configuration. Raises SettingError for a key, prompt, module or command that is not there."""
    if config.python is not None:
        return PythonJudge(config.python, config.timeout_s)
    if config.command is not None:
        return CommandJudge(config.command, config.timeout_s)
    return ModelJudge(config, os.environ if environ is None else environ)
