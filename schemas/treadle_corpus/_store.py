"""The one place that speaks Deeplake (4.7.4 on local paths). What it must respect, each found by running it:

- Destroying a dataset object that has uncommitted rows commits them, whatever `auto_commit_enabled` says. So a dataset is made, filled
  and committed in one call, in a folder that counts for nothing until it has been read back.
- `commit` says OK on a full disk, and what it wrote is cut. So sizes are compared before anything is read again: an empty file is a
  segmentation fault.
- There is no fsync and no checksum: `_bodies` does both.
- Opening and committing take longer with each commit: a dataset here has one.
- Text columns copy their text into the commit log; Bytes columns do not.
- At import it starts a crash reporter that calls home. A regular file named `indra` in TMPDIR keeps it from starting.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from treadle_corpus import _disk
from treadle_corpus.errors import CorpusDamaged, CorpusFull, CorpusUnwritable

__all__ = ["Segment", "write_segment"]

_SLACK_BYTES: Final = 64 * 1024
"""More than what Deeplake adds to the rows of a segment."""


def write_segment(folder: Path, names: Sequence[bytes], bodies: Sequence[bytes]) -> None:
    """A new dataset of (name, body), committed, and compared with what can be read of it. It is not synced.

    Raises CorpusFull, CorpusUnwritable.
    """
    lake = _deeplake()
    try:
        _disk.make_room(folder, sum(map(len, names)) + sum(map(len, bodies)) + _SLACK_BYTES)
        dataset = lake.create(str(folder), schema={"name": lake.types.Bytes(), "body": lake.types.Bytes()})
        dataset.auto_commit_enabled = False
        dataset.compaction_mode = lake.CompactionMode.Off
        dataset.append({"name": list(names), "body": list(bodies)})
        dataset.commit("segment")
        del dataset
    except RuntimeError as err:
        raise CorpusUnwritable(folder, str(err).strip()[:300]) from err
    written = {f: f.stat().st_size for f in _disk.files_below(folder) if f.suffix != ".lock"}
    if not all(written.values()) or sum(written.values()) < sum(map(len, bodies)):
        raise CorpusFull(folder, "what Deeplake wrote is cut: the disk is full")
    back = Segment(folder, len(bodies))
    for start in range(0, len(bodies), 1000):
        if back.bodies(range(start, min(start + 1000, len(bodies)))) != list(bodies[start : start + 1000]):
            raise CorpusUnwritable(folder, "what Deeplake wrote is not what it reads")


class Segment:
    """A dataset that `write_segment` made, to read. The sizes of its files were compared before."""

    def __init__(self, folder: Path, count: int) -> None:
        """Raises CorpusDamaged."""
        self._folder = folder
        try:
            self._ds = _deeplake().open_read_only(str(folder))
            found = len(self._ds)
        except Exception as err:  # Deeplake raises whatever its C++ side meets
            raise self._damage(err) from err
        if found != count:
            raise CorpusDamaged(folder, f"holds {found} bodies, and {count} were written")

    def bodies(self, rows: Sequence[int]) -> list[bytes]:
        """Bodies of rows, in the order asked for. Raises CorpusDamaged."""
        try:
            return [bytes(body) for body in self._ds["body"][list(rows)]]
        except Exception as err:
            raise self._damage(err) from err

    def _damage(self, err: Exception) -> CorpusDamaged:
        said = str(err).strip()[:200]
        return CorpusDamaged(self._folder, f"Deeplake cannot read it ({type(err).__name__}: {said})")


@cache
def _deeplake() -> Any:
    quiet = Path(__file__).parent / "_quiet"
    tempfile.gettempdir()  # remembered now, so that nobody takes our folder for the temporary one
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(quiet)
    try:
        import deeplake
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
    return deeplake
