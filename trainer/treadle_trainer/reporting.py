"""What the service says of itself, for `treadle status`: TREADLE_HOME/run/trainer.json (trainer-WORKSPACE.json of one that serves a
single workspace), a few times a minute."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final, Literal

import msgspec
from treadle_schemas.moments import now

from treadle_trainer._files import write_atomically
from treadle_trainer.storage import Use

__all__ = ["Reporter", "SlotReport", "report_path"]

EVERY_S: Final = 5.0


class SlotReport(msgspec.Struct, frozen=True, kw_only=True):
    """One slot."""

    state: Literal["idle", "waiting", "running"]
    job: int | None = None
    reason: str = ""
    """What it waits for."""
    problem: bool = False
    """Whether somebody has to do something about that."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The file."""

    at: str
    monotonic_s: float
    """The same moment on the clock that all processes of a boot share."""
    pid: int
    slots: dict[str, SlotReport]
    use: Use | None = None
    """Bytes on the disk before the newest job."""


class Reporter:
    """Writes the file when something changed, and again and again while nothing does. It never fails: a report is no reason to stop."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._slots: dict[str, SlotReport] = {}
        self._use: Use | None = None
        self._written_at = -EVERY_S

    def tell(self, slot: str, report: SlotReport | None) -> None:
        """How a slot is; None: it is served no more."""
        if self._slots.get(slot) == report:
            return
        if report is None:
            del self._slots[slot]
        else:
            self._slots[slot] = report
        self.beat(at_once=True)

    def kept(self, use: Use) -> None:
        """What the trainer keeps on the disk."""
        self._use = use

    def beat(self, *, at_once: bool = False) -> None:
        """Write, if it is time."""
        if self._path is None or (not at_once and time.monotonic() < self._written_at + EVERY_S):
            return
        self._written_at = time.monotonic()
        report = Report(at=now(), monotonic_s=time.monotonic(), pid=os.getpid(), slots=self._slots, use=self._use)
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, msgspec.json.encode(report))


def report_path(home: Path, workspace: str | None) -> Path:
    """Where a service on a TREADLE_HOME reports that serves this workspace, or with None every one."""
    return home / "run" / ("trainer.json" if workspace is None else f"trainer-{workspace}.json")
