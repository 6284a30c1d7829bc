"""Snapshot policies as a workspace stores them: what a corpus selects, where it lies, and when it gets a version."""

from __future__ import annotations

import math
import re
from typing import Literal

import msgspec

from treadle_schemas.errors import SettingError, shown

__all__ = [
    "DEFAULT_EVERY_S",
    "DEFAULT_MIN_NEW_ROWS",
    "DEFAULT_THRESHOLD",
    "MAIN",
    "MIN_THRESHOLD",
    "Dedupe",
    "SnapshotPolicy",
    "Use",
]

Dedupe = Literal["id", "exact", "near"]
Use = Literal["train", "eval", "recall"]

DEFAULT_THRESHOLD = 0.85
MIN_THRESHOLD = 0.7
"""Below it nearly every row is a candidate for being near to every other one, and two rows out of three words are alike by chance."""
DEFAULT_MIN_NEW_ROWS = 1000
DEFAULT_EVERY_S = 600.0
MAIN = "main"
"""The policy that every workspace has from the beginning: all settled rows. One stored under this name takes its place."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class SnapshotPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """One stored policy of a workspace. Its name never changes; everything else can, from the next version on.

    `filter` to `retention_s` say which rows are in, see treadle_corpus.Policy. A version is made when `min_new_rows` rows that no run saw
    have settled, or `every_s` after the run before if anything was graded since; by hand alone where it is `manual`.
    """

    name: str
    filter: str | None = None
    dedupe: Dedupe = "id"
    threshold: float = DEFAULT_THRESHOLD
    require: tuple[str, ...] = ()
    rights: tuple[Use, ...] = ()
    retention_s: float | None = None
    min_new_rows: int = DEFAULT_MIN_NEW_ROWS
    every_s: float = DEFAULT_EVERY_S
    manual: bool = False
    target: str | None = None
    """Where its corpus lies; None: TREADLE_HOME/corpora/WORKSPACE/NAME of the machine that runs it."""

    def checked(self) -> SnapshotPolicy:
        """Itself, if it makes sense; the filter is not looked at. Raises SettingError naming the setting."""
        if not _NAME.fullmatch(self.name):
            raise SettingError(
                f"policy {shown(self.name)}: a name has a-z, 0-9, _ and -, at most 63, and no - or _ first"
            )
        if not MIN_THRESHOLD <= self.threshold <= 1.0:
            raise SettingError(f"policy {self.name}: threshold {self.threshold} is not between {MIN_THRESHOLD} and 1")
        if self.retention_s is not None and not 0 < self.retention_s < math.inf:
            raise SettingError(f"policy {self.name}: retention {self.retention_s} is not a number of seconds above 0")
        if self.min_new_rows < 1:
            raise SettingError(f"policy {self.name}: min_new_rows {self.min_new_rows} is below 1")
        if not 0 < self.every_s < math.inf:
            raise SettingError(f"policy {self.name}: every {self.every_s} is not a number of seconds above 0")
        return self
