"""A grader's folder on this machine: lock, what was spent, what failed, how it is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from treadle_schemas.errors import SettingError

from treadle_streams.grader.budget import Spent, read_spent
from treadle_streams.grader.errors import GraderRunning

__all__ = ["Failure", "Folder", "Tally"]


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A grading that came to nothing, after its retries."""

    handle: str
    at: str
    version: str
    reason: str


class Tally(msgspec.Struct, kw_only=True):
    """How a run went, or goes. Every interaction that was seen is in exactly one of the other counts."""

    grader: str
    version: str = ""
    fingerprint: str = ""
    state: str = "running"
    """running, waiting for the budget, ended, or why it ended."""
    started_at: str = ""
    updated_at: str = ""
    seen: int = 0
    not_chosen: int = 0
    """Outside the sample, or not passed by the filter."""
    denied: int = 0
    """May not be evaluated."""
    incomplete: int = 0
    """Whose text was erased, or whose parts are not in the log."""
    known: int = 0
    """With a verdict of this version already."""
    graded: int = 0
    abstained: int = 0
    failed: int = 0
    left: int = 0
    """Taken up and not decided when the run ended: the next start grades them."""


class Folder:
    """`TREADLE_HOME/graders/WORKSPACE/NAME`."""

    def __init__(self, home: Path, workspace: str, name: str) -> None:
        self.path = home / "graders" / workspace / name
        self.name = name

    @property
    def spent(self) -> Path:
        """What was spent."""
        return self.path / "spent.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one grader of this name here. Raises GraderRunning, SettingError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a")
        except OSError as err:
            raise SettingError(
                f"{self.path}: {err.strerror}. Set TREADLE_HOME to a folder that can be written"
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise GraderRunning(f"grader {self.name} is running on this machine: {self.path} is locked") from None
            yield

    def note(self, failures: Sequence[Failure]) -> None:
        """Write failures down, on the disk before the call returns."""
        with (self.path / "failures.jsonl").open("ab") as file:
            file.write(b"".join(msgspec.json.encode(one) + b"\n" for one in failures))
            file.flush()
            os.fsync(file.fileno())

    def failures(self) -> list[Failure]:
        """All that failed, the oldest first; a line that a crash cut short is left out."""
        try:
            lines = (self.path / "failures.jsonl").read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        return [msgspec.json.decode(line, type=Failure) for line in lines[:-1] if line.endswith(b"}")]

    def show(self, tally: Tally) -> None:
        """Put `tally` where `treadle grader status` finds it."""
        part = self.path / "status.part"
        part.write_bytes(msgspec.json.encode(tally))
        os.replace(part, self.path / "status.json")

    def tally(self) -> Tally | None:
        """How the last run is, or went."""
        try:
            return msgspec.json.decode((self.path / "status.json").read_bytes(), type=Tally)
        except FileNotFoundError:
            return None

    def has_spent(self) -> Spent:
        """What was spent so far."""
        return read_spent(self.spent)
