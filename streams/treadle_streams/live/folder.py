"""Where a live index lies, and who may write it.

    TREADLE_HOME/index/WORKSPACE/
      rows.sqlite     rows, grades, positions, parts, rights; the authority
      text-N/         the text index of generation N, which rows.sqlite names
      vectors-N.f32   the vectors of generation N, where there is an embedder
      erased.json     digests of erased subjects and episodes; outlives the index
      lock            held by the one writer

Everything but erased.json is made again from the log.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from treadle_schemas.ids import check_workspace

from treadle_streams.live.errors import IndexInUse

__all__ = ["IndexFolder"]


class IndexFolder:
    """The folder of one workspace's index."""

    def __init__(self, home: Path, workspace: str) -> None:
        self.workspace = check_workspace(workspace)
        self.path = home / "index" / self.workspace

    @property
    def rows(self) -> Path:
        """The database."""
        return self.path / "rows.sqlite"

    def text(self, generation: int) -> Path:
        """The folder of a generation's text index."""
        return self.path / f"text-{generation}"

    def vectors(self, generation: int) -> Path:
        """The file of a generation's vectors."""
        return self.path / f"vectors-{generation}.f32"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the writer, until the block or the process ends. Raises IndexInUse."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                raise IndexInUse(self.path, int(held) if held.isdigit() else None) from None
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Remove all that can be made again."""
        for path in self.path.iterdir() if self.path.exists() else ():
            if path.name.startswith("text-"):
                shutil.rmtree(path)
            elif path.name.startswith(("rows.", "vectors-")):
                path.unlink()

    def remove_others(self, generation: int) -> None:
        """Remove what belongs to other generations."""
        kept = {self.text(generation).name, self.vectors(generation).name}
        for path in self.path.iterdir():
            if path.name.startswith("text-") and path.name not in kept:
                shutil.rmtree(path)
            elif path.name.startswith("vectors-") and path.name not in kept:
                path.unlink()
