"""What the join and recorders keep on this machine: databases, which are a copy of the changelog, and events that wait for Kafka."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from treadle.disk import folder_bytes
from treadle.spool import scan
from treadle.spool._format import read_body
from treadle.spool._spool import QUARANTINE
from treadle_schemas.erasing import StoreReport

from treadle_streams.worker._status import status_path

__all__ = ["erase_spool", "erase_state"]

_LOOK_S: Final = 0.1


def erase_state(
    home: Path, workspace: str, passed: Mapping[int, int], episodes: int, wait_s: float, *, dry_run: bool
) -> Iterator[StoreReport]:
    """The databases of the join. A running worker takes the text away and writes its files anew; this waits for it, until it has taken in
    `passed` (offsets of `.interactions` by partition). The files of one that does not run are removed: the changelog has them."""
    root = home / "state" / workspace
    folders = (
        sorted((p for p in root.glob("*") if p.name.isdigit()), key=lambda p: int(p.name)) if root.exists() else []
    )
    deadline = time.monotonic() + wait_s
    for folder in folders:
        size = folder_bytes(folder)
        if dry_run:
            yield StoreReport(store="state", place=str(folder), bytes=size)
            continue
        while True:
            with _unused(folder) as free:
                if free:
                    _clear(folder)
                    note = "no worker uses it: removed, it is rebuilt from the changelog"
                    yield StoreReport(store="state", place=str(folder), bytes=size, notes=(note,))
                    break
            found = _status(home, workspace, int(folder.name))
            if found is not None and _is_done(found, passed):
                yield StoreReport(store="state", place=str(folder), rows=episodes, bytes=size)
                break
            if time.monotonic() > deadline:
                remains = f"its worker has not carried out the erasure in {wait_s:g} s; run the command again"
                yield StoreReport(store="state", place=str(folder), remains=(remains,))
                break
            time.sleep(_LOOK_S)


def erase_spool(folder: Path, episodes: Collection[str], ids: Collection[str], *, dry_run: bool) -> StoreReport | None:
    """Events of this machine that wait for Kafka: they are erased on arrival. Files of what can never be sent are removed."""
    keys = {episode.encode() for episode in episodes} | {name.encode() for name in ids}
    waiting, removed = 0, 0
    for path in sorted(folder.glob("*.seg")):
        waiting += sum(_concerns(body, keys) for body in _bodies(path))
    for path in sorted((folder / QUARANTINE).glob("*")):
        if not any(_concerns(body, keys) for body in _bodies(path)):
            continue
        removed += 1
        if not dry_run:
            path.unlink()
    if not (waiting or removed):
        return None
    remains = f"{waiting} events wait here for Kafka; the recorder that runs sends them, and they are erased on arrival"
    notes = (f"{removed} files of what could never be sent were removed",) if removed else ()
    return StoreReport(
        store="spool",
        place=str(folder),
        rows=waiting,
        remains=(remains,) if waiting and not dry_run else (),
        notes=notes,
    )


def _bodies(path: Path) -> Iterator[bytes]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:  # it was sent meanwhile
        return
    if path.suffix == ".rejected":
        yield data
        return
    for frame in scan(data).frames:
        yield frame.body


def _concerns(body: bytes, keys: Collection[bytes]) -> bool:
    try:
        return read_body(body).key in keys
    except (ValueError, LookupError):
        return False


@contextmanager
def _unused(folder: Path) -> Iterator[bool]:
    """Is it no worker's? Then none takes it inside the block."""
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == "lock":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _status(home: Path, workspace: str, instance: int) -> dict[str, Any] | None:
    try:
        found = json.loads(status_path(home, workspace, instance).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_done(found: Mapping[str, Any], passed: Mapping[int, int]) -> bool:
    if found.get("state") != "running" or found.get("scrubs", 1):
        return False
    return all(
        int(one.get("offsets", {}).get("interactions", 0)) >= passed.get(int(number), 0)
        for number, one in found.get("partitions", {}).items()
    )
