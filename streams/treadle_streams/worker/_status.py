"""The status file of a worker: one JSON object, replaced as a whole, read by `treadle status` and by tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from treadle_schemas.moments import now

__all__ = ["StatusFile", "status_path"]


def status_path(home: Path, workspace: str, instance: int = 0) -> Path:
    """`home/run/worker-WORKSPACE.json`; further workers of a workspace on the same machine have their number in the name."""
    suffix = "" if instance == 0 else f"-{instance}"
    return home / "run" / f"worker-{workspace}{suffix}.json"


class StatusFile:
    """Writes the file, and takes it away when the worker ends well."""

    def __init__(self, path: Path, workspace: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._fixed = {"workspace": workspace, "pid": os.getpid(), "started_at": now()}

    def write(self, report: dict[str, Any]) -> None:
        """Replace the file, so that a reader sees the old or the new one. A full disk costs a report, not the worker."""
        fresh = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            fresh.write_text(json.dumps(self._fixed | report))
            fresh.replace(self.path)
        except OSError:
            fresh.unlink(missing_ok=True)

    def remove(self) -> None:
        """The worker ended well."""
        self.path.unlink(missing_ok=True)
