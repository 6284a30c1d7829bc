"""The audit log: one ReleaseEvent a line, in order of their sequence numbers, synced before the caller hears of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
from treadle_schemas import ReleaseEvent

from treadle_trainer.errors import RegistryError

__all__ = ["AuditLog"]


class AuditLog:
    """Appends and reads. Only the holder of the registry's lock appends or repairs."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, after: int = -1) -> list[ReleaseEvent]:
        """Entries with a sequence number above `after`. A last line without its end was never acknowledged and does not count."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        out: list[ReleaseEvent] = []
        for n, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
            try:
                event = msgspec.json.decode(line, type=ReleaseEvent)
            except msgspec.MsgspecError as err:
                raise RegistryError(f"{self._path}:{n}: not an audit entry: {err}") from err
            if event.sequence > after:
                out.append(event)
        return out

    def append(self, events: Iterable[ReleaseEvent]) -> None:
        """Add entries and sync."""
        data = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)
        finally:
            os.close(fd)

    def drop_torn_line(self) -> None:
        """Cut off what a crash left of a last line."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self._path, whole)
