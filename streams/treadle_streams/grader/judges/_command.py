"""Judging by a command: a process an interaction, JSON in on stdin, JSON out on stdout."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

from treadle_schemas.canonical import dumps
from treadle_schemas.errors import SettingError
from treadle_schemas.events import Interaction

from treadle_streams.grader.errors import JudgeFailed
from treadle_streams.grader.judges._base import end_group, shown_interaction
from treadle_streams.grader.verdict import Usage, fingerprint_of

__all__ = ["CommandJudge"]


class CommandJudge:
    """Exit code 0 and JSON on stdout are an answer; everything else is a failure that may pass. No shell is involved."""

    def __init__(self, command: str, timeout_s: float) -> None:
        try:
            self._argv = shlex.split(command)
        except ValueError as err:
            raise SettingError(f"command: {command!r} cannot be split into words: {err}") from None
        if not self._argv or shutil.which(self._argv[0]) is None:
            raise SettingError(f"command: {command!r} names no program that can be run here")
        self._timeout_s = timeout_s
        # the words, and the files among them: a changed script is another judge
        files = {word: sha256(Path(word).read_bytes()).hexdigest() for word in self._argv if Path(word).is_file()}
        self.fingerprint = fingerprint_of(["command", self._argv, files])

    def estimate(self, interaction: Interaction) -> Usage:
        """Nothing: only the command knows."""
        return Usage()

    def judge(self, workspace: str, interaction: Interaction) -> tuple[Any, Usage | None]:
        """Run it once."""
        given = dumps(shown_interaction(workspace, interaction))
        # a session of its own, so that a timeout ends what the command has started too
        with subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        ) as process:
            try:
                out, err = process.communicate(given, self._timeout_s)
            except subprocess.TimeoutExpired:
                end_group(process)
                process.communicate()
                raise JudgeFailed(f"the command took longer than {self._timeout_s:g} s", retriable=True) from None
        if process.returncode != 0:
            said = err.decode(errors="replace").strip()[-300:]
            raise JudgeFailed(f"the command ended with {process.returncode}: {said}", retriable=True)
        try:
            return json.loads(out), None
        except ValueError:
            raise JudgeFailed(f"the command's output is no JSON: {out[:200]!r}", retriable=True) from None

    def close(self) -> None:
        """Nothing is left running."""
