"""The files of a corpus.

PATH/corpus.json    format marker: {"format", "format_version", "state"}
PATH/lock           held by the writer
PATH/index/         what changed, commit by commit: `_journal`
PATH/bodies/        the bulk of rows and parts: `_bodies`
PATH/versions/      vN.json, the versions: `_versions`
PATH/tags/          names of versions: `_versions`
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Final, Literal

from treadle_corpus import _disk
from treadle_corpus.errors import CorpusDamaged, CorpusLocked, CorpusMissing, CorpusNewer, CorpusOutdated

__all__ = ["Lock", "check_marker", "write_marker"]

FORMAT: Final = "treadle-corpus"
FORMAT_VERSION: Final = 2
_FOLDERS: Final = ("index", "bodies", "versions", "tags")


class Lock:
    """The right to write a corpus, until `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        """Raises CorpusLocked naming the holder, CorpusUnwritable."""
        while True:
            with _disk.writing(path):
                path.mkdir(parents=True, exist_ok=True)
                self._file = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(self._file, 64).decode(errors="replace").strip()
                os.close(self._file)
                raise CorpusLocked(path, f"process {holder}" if holder else "another process") from None
            if os.fstat(self._file).st_nlink:
                break
            os.close(self._file)  # the corpus was replaced between opening and locking
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, str(os.getpid()).encode(), 0)
        except OSError:  # the name is for people; a full disk is told of where it matters
            pass

    def release(self) -> None:
        """Let another writer in."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def check_marker(path: Path) -> Literal["ready", "creating", "absent"]:
    """Is there a corpus? `creating`: its making was interrupted, and nothing is in it. `absent`: the folder is empty but for a lock
    and the records of erasures.

    Raises CorpusMissing where there is no folder, CorpusOutdated, CorpusNewer, CorpusDamaged where there is something else.
    """
    if not path.exists():
        raise CorpusMissing(path)
    try:
        text = (path / "corpus.json").read_bytes()
    except FileNotFoundError:
        if path.is_dir() and not [p for p in path.iterdir() if p.name not in ("lock", "corpus.json.new", "erasures")]:
            return "absent"
        raise CorpusDamaged(path, "is no treadle corpus: it has no corpus.json, and it is not empty") from None
    except OSError as err:
        raise CorpusDamaged(path, f"is no treadle corpus: {err.strerror}") from err
    try:
        marker = json.loads(text)
        found, version, state = marker["format"], marker["format_version"], marker["state"]
    except (ValueError, KeyError, TypeError):
        raise CorpusDamaged(path, "corpus.json is not the marker of a treadle corpus") from None
    if found != FORMAT:
        raise CorpusDamaged(path, f"corpus.json says format {found!r}, not {FORMAT!r}")
    if isinstance(version, int) and version < FORMAT_VERSION:
        raise CorpusOutdated(path, version, FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise CorpusNewer(path, version, FORMAT_VERSION)
    if state == "creating":
        return "creating"
    for name in ("index", "versions"):
        if not (path / name).is_dir():
            raise CorpusDamaged(path, f"has lost its folder {name}")
    return "ready"


def write_marker(path: Path, state: Literal["creating", "ready"]) -> None:
    """Write corpus.json durably. `creating` also clears what an interrupted making left behind. Raises CorpusFull, CorpusUnwritable."""
    marker = {"format": FORMAT, "format_version": FORMAT_VERSION, "state": state}
    _disk.create(path / "corpus.json", json.dumps(marker, separators=(",", ":")).encode() + b"\n")
    if state == "creating":
        for name in _FOLDERS:
            _disk.remove(path / name)
        with _disk.writing(path):
            for name in _FOLDERS:
                (path / name).mkdir()
        _disk.sync(path)
