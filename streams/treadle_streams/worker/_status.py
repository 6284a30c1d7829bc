"""The status file of a worker: one JSON object, replaced as a whole, read by `treadle status` and by tests."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Final

from treadle.disk import folder_bytes
from treadle_schemas.moments import now

__all__ = ["StatusFile", "status_path"]


def status_path(home: Path, workspace: str, instance: int = 0) -> Path:
    """`home/run/worker-WORKSPACE.json`; further workers of a workspace on the same machine have their number in the name."""
    suffix = "" if instance == 0 else f"-{instance}"
    return home / "run" / f"worker-{workspace}{suffix}.json"


_MEASURE_S: Final = 10.0
"""How often the size of the state is measured: it takes a look at each of its files."""


class StatusFile:
    """Writes the file, and takes it away when the worker ends well."""

    def __init__(self, path: Path, workspace: str, state: Path | None = None) -> None:
        """`state` is the folder of the worker's databases, whose size the file tells."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._fixed: dict[str, Any] = {"workspace": workspace, "pid": os.getpid(), "started_at": now()}
        self._state = state
        self._measured = -_MEASURE_S

    def write(self, report: dict[str, Any]) -> None:
        """Replace the file, so that a reader sees the old or the new one. A full disk costs a report, not the worker."""
        if self._state is not None and time.monotonic() - self._measured >= _MEASURE_S:
            self._measured = time.monotonic()
            self._fixed["state_bytes"] = folder_bytes(self._state)
        fresh = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            fresh.write_text(json.dumps(self._fixed | report))
            fresh.replace(self.path)
        except OSError:
            fresh.unlink(missing_ok=True)

    def remove(self) -> None:
        """The worker ended well."""
        self.path.unlink(missing_ok=True)
