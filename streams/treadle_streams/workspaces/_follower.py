"""Which workspaces there are, followed on the operators' topic in a thread: the main thread has processes to look after."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from treadle.errors import LogError
from treadle.log import Admin, Record, TailReader
from treadle_schemas.canonical import loads
from treadle_schemas.errors import ContractError, FieldError
from treadle_schemas.ids import check_workspace
from treadle_schemas.topics import CONTROL

__all__ = ["Follower", "Listed"]

_log = logging.getLogger("treadle.workspaces")

_POLL_S: Final = 0.5
_RETRY_S: Final = 1.0
_PATIENCE: Final = 3
"""So many failures in a row are worth a warning."""
_STEADY_S: Final = 30.0
"""Following for so long ends the row."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What the operators' topic says of a workspace."""

    partitions: int
    """Of each data topic."""
    created_at: str
    """Tells a workspace that was deleted and made again from the one before."""

    @property
    def small(self) -> bool:
        """One partition: it shares a worker process with others of its kind, since it never needs more than a part of a core."""
        return self.partitions == 1


class Follower:
    """Keeps `workspaces` up to date. While Kafka is away it stays as it was."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="workspace-follower", daemon=True)
        self.listed: Mapping[str, Listed] = {}
        """By name, sorted. Replaced as a whole, never changed."""
        self.looked = threading.Event()
        """Set once the list was read for the first time."""

    @property
    def workspaces(self) -> list[str]:
        """The names, sorted."""
        return list(self.listed)

    def start(self) -> Follower:
        """Begin to follow."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Follow no more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        failures = 0
        while not self._end.is_set():
            began = time.monotonic()
            try:
                self._follow()
                failures = 0
            except LogError as err:
                failures = 1 if time.monotonic() - began > _STEADY_S else failures + 1
                if failures == _PATIENCE:  # a new topic has no leader for a moment
                    _log.warning("the list of workspaces cannot be read; going on with the last one: %s", err)
            except Exception:
                _log.exception("following the list of workspaces failed; trying again")
            self._end.wait(_RETRY_S)

    def _follow(self) -> None:
        where = (CONTROL, 0)
        admin = Admin(self._servers)
        if CONTROL not in admin.partitions():
            self.looked.set()
            return  # nobody ever made a workspace
        reader = TailReader(self._servers, {where: admin.start_offsets([where])[where]})
        known: dict[str, Listed] = {}
        try:
            while not self._end.is_set():
                records = reader.poll(_POLL_S)
                for record in records:
                    name = (record.key or b"").decode(errors="replace")
                    if record.value is None:
                        known.pop(name, None)
                    elif _is_workspace(name):
                        known[name] = _listed(record)
                if where in reader.at_end:
                    if known != self.listed:
                        self.listed = dict(sorted(known.items()))
                    self.looked.set()
        finally:
            reader.close()


def _is_workspace(name: str) -> bool:
    try:
        check_workspace(name)
    except FieldError:
        return False
    return True


def _listed(record: Record) -> Listed:
    try:
        entry = loads(record.value or b"")
        return Listed(int(entry["partitions"]), str(entry["created_at"]))
    except (ContractError, KeyError, TypeError, ValueError):
        return Listed(0, "")  # a newer treadle wrote it; its own worker will read its settings
