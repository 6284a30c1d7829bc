"""What a local broker's directory remembers: who runs it, on which ports, and who may start it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from . import _process
from ._errors import BrokerBusy

_LOG_TAIL_BYTES = 4_000
_S = TypeVar("_S", bound=msgspec.Struct)


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """The broker's ports; kept over restarts because clients hold the first."""

    port: int
    controller_port: int


class BrokerState(msgspec.Struct, frozen=True, kw_only=True):
    """One life of a local broker."""

    pid: int
    start_ticks: int
    """Start of the process in clock ticks since boot: with ``boot_id`` it makes a reused pid harmless."""
    boot_id: str
    port: int
    controller_port: int
    kafka: str
    """Version of Kafka."""

    @property
    def alive(self) -> bool:
        """True while this very process runs."""
        return self.boot_id == _process.boot_id() and _process.start_ticks(self.pid) == self.start_ticks


class Directory:
    """The files of one local broker."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data"
        self.properties = path / "server.properties"
        self.log = path / "broker.log"
        self._state = path / "state.json"
        self._ports = path / "ports.json"
        self._lock = path / "lock"

    @contextlib.contextmanager
    def locked(self, timeout_s: float) -> Iterator[None]:
        """Be the only one to start or stop this broker.

        Kafka has a lock of its own, but a second broker opens the metadata log before it fails on it, which can kill
        the first one.

        Raises:
            BrokerBusy: someone else held the lock for ``timeout_s`` seconds.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        end = time.monotonic() + timeout_s
        with self._lock.open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise BrokerBusy(self.path, timeout_s) from None
                    time.sleep(0.05)
            yield

    def state(self) -> BrokerState | None:
        """The running broker, or None."""
        found = read(self._state, BrokerState)
        return found if found is not None and found.alive else None

    def save_state(self, state: BrokerState) -> None:
        """Remember who runs."""
        write(self._state, state)

    def forget_state(self) -> None:
        """Nobody runs any more."""
        self._state.unlink(missing_ok=True)

    def ports(self) -> Ports | None:
        """The ports of the former life, or None."""
        return read(self._ports, Ports)

    def save_ports(self, ports: Ports) -> None:
        """Keep the ports for the next life."""
        write(self._ports, ports)

    def cluster_id(self) -> str | None:
        """The id that the data directory was formatted with, or None."""
        try:
            lines = (self.data / "meta.properties").read_text("ascii", "replace").splitlines()
        except OSError:
            return None
        return next((line.partition("=")[2].strip() for line in lines if line.startswith("cluster.id=")), None)

    def log_tail(self) -> str:
        """The end of the broker's log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""


def read(path: Path, kind: type[_S]) -> _S | None:
    """The value in a file, or None where there is none or it is not of this kind."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


def write(path: Path, value: msgspec.Struct) -> None:
    """All or nothing: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(value))
    new.replace(path)
