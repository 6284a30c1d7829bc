"""The files of a corpus around its dataset.

    PATH/corpus.json    format marker: {"format", "format_version", "state"}
    PATH/lock           held by the writer
    PATH/seals/vN.json  name and size of each dataset file that is new in vN
    PATH/data/          the Deeplake dataset

Deeplake opens truncated files without a word and dies of empty ones (SIGSEGV). Its files are written once, under new names, so
a list of their sizes finds the damage first. Only `next_base` and locks are rewritten; they are not listed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Final, Literal

from treadle_corpus.errors import CorpusDamaged, CorpusLocked, CorpusMissing

__all__ = ["Lock", "check_marker", "check_seals", "data_path", "empty_files", "seal", "write_marker"]

FORMAT: Final = "treadle-corpus"
FORMAT_VERSION: Final = 1


class Lock:
    """The right to write a corpus, until `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        """Raises CorpusLocked naming the holder."""
        path.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 64).decode(errors="replace").strip()
            os.close(self._file)
            raise CorpusLocked(path, f"process {holder}" if holder else "another process") from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let another writer in."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def data_path(path: Path) -> Path:
    """Where the dataset lies."""
    return path / "data"


def check_marker(path: Path) -> Literal["ready", "creating", "absent"]:
    """Is there a corpus? `creating`: its making was interrupted, and nothing is in it. `absent`: the folder is empty but for a lock.

    Raises CorpusMissing where there is no folder, CorpusDamaged where there is something else.
    """
    if not path.exists():
        raise CorpusMissing(path)
    try:
        text = (path / "corpus.json").read_bytes()
    except FileNotFoundError:
        if path.is_dir() and not [p for p in path.iterdir() if p.name != "lock"]:
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
    if version != FORMAT_VERSION:
        raise CorpusDamaged(
            path,
            f"has format version {version!r}, and this treadle reads {FORMAT_VERSION}; use the treadle that wrote it",
        )
    if state == "creating":
        return "creating"
    if not data_path(path).is_dir():
        raise CorpusDamaged(path, "has lost its data folder")
    return "ready"


def write_marker(path: Path, state: Literal["creating", "ready"]) -> None:
    """Write corpus.json durably. `creating` also clears what an interrupted making left behind."""
    if state == "creating":
        for name in ("data", "seals"):
            shutil.rmtree(path / name, ignore_errors=True)
    _write(path / "corpus.json", {"format": FORMAT, "format_version": FORMAT_VERSION, "state": state})


def empty_files(path: Path) -> list[str]:
    """Dataset files without content, that no reader may touch. Locks are empty by nature."""
    return [name for name, size in _sizes(path).items() if size == 0]


def seal(path: Path, version: int) -> None:
    """List the dataset files that are new since the version before. They are synced already."""
    sealed = _sealed(path, version - 1)
    new = {name: size for name, size in _sizes(path).items() if name not in sealed}
    (path / "seals").mkdir(exist_ok=True)
    _write(_seal_path(path, version), new)


def check_seals(path: Path) -> None:
    """Is each listed file there, in its size? Raises CorpusDamaged naming the first that is not."""
    for name, size in _sealed(path, _newest_seal(path)).items():
        try:
            found = os.stat(data_path(path) / name).st_size
        except OSError:
            raise CorpusDamaged(path, f"the file data/{name} is gone") from None
        if found != size:
            raise CorpusDamaged(path, f"the file data/{name} has {found} bytes, and {size} were written")


def _newest_seal(path: Path) -> int:
    numbers = (f.stem[1:] for f in (path / "seals").glob("v*.json"))
    return max((int(n) for n in numbers if n.isdecimal()), default=0)


def _sealed(path: Path, version: int) -> dict[str, int]:
    total: dict[str, int] = {}
    for n in range(1, version + 1):
        try:
            part = json.loads(_seal_path(path, n).read_bytes())
            total.update({str(name): int(size) for name, size in part.items()})
        except (OSError, ValueError, AttributeError, TypeError) as err:
            raise CorpusDamaged(path, f"the file list seals/v{n}.json cannot be read ({err})") from None
    return total


def _seal_path(path: Path, version: int) -> Path:
    return path / "seals" / f"v{version}.json"


def _sizes(path: Path) -> dict[str, int]:
    root = data_path(path)
    sizes: dict[str, int] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            if name != "next_base" and not name.endswith(".lock"):
                file = Path(folder, name)
                sizes[str(file.relative_to(root))] = file.stat().st_size
    return sizes


def _write(file: Path, value: object) -> None:
    temporary = file.with_suffix(".new")
    with temporary.open("wb") as out:
        out.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
