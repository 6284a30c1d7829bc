"""A real Apache Kafka as a plain process: no Java, Docker or root needed, only the extra ``local``.

Safe against kill -9 of the broker or of its owner: an acknowledged record is in the page cache. Not safe against loss of
power, which needs replicas: this broker is for development, tests and small single-machine use.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import subprocess
import time
from pathlib import Path

from . import _ports, _process
from ._errors import (
    BrokerDataDamaged,
    BrokerDirectoryInvalid,
    BrokerPortTaken,
    BrokerStartFailed,
)
from ._jars import classpath, java
from ._probe import Probe
from ._properties import HEAP, KAFKA_VERSION, SESSION_TIMEOUT_MS, as_file, local_properties, new_cluster_id
from ._provider import Kind
from ._state import BrokerState, Directory, Ports

_log = logging.getLogger("treadle.broker")

_LOG_KEEP_BYTES = 16 * 1024 * 1024
_MAIN = "kafka.Kafka"


class LocalBroker:
    """One broker in one directory.

    ``start`` attaches where it already runs. The broker is a process of its own that outlives this one unless
    ``die_with_parent`` is set. The port is chosen once and kept over restarts. Only the loopback interface listens.

    Args:
        directory: holds lock, state, ports, log and data. Made where missing.
        die_with_parent: end the broker when this process ends, however it ends (SIGTERM from the kernel). It may then
            only be started from the main thread.
        heap: Java heap, as after ``-Xmx``.
        session_timeout_ms: after kill -9 the broker can register again when this long has passed; 1500 makes a
            restart take 3-4 s, 3000 takes 5-7 s.

    Raises:
        BrokerDirectoryInvalid: the path holds a comma, where Kafka would split it.
    """

    kind: Kind = "local"

    def __init__(
        self,
        directory: Path | str,
        *,
        die_with_parent: bool = False,
        heap: str = HEAP,
        session_timeout_ms: int = SESSION_TIMEOUT_MS,
    ) -> None:
        self.directory = Path(directory).absolute()
        if any(char in str(self.directory) for char in ",\n\r"):
            raise BrokerDirectoryInvalid(self.directory, "Kafka splits its log directories at commas and lines")
        self._die_with_parent = die_with_parent
        self._heap = heap
        self._session_timeout_ms = session_timeout_ms
        self._files = Directory(self.directory)

    # --- what is -----------------------------------------------------------------------------------------------

    @property
    def bootstrap(self) -> str:
        """The address for clients. Known from the first start on, also while the broker is down.

        Raises:
            BrokerStartFailed: it was never started.
        """
        state = self._files.state() or self._files.ports()
        if state is None:
            raise BrokerStartFailed(self.directory, "it was never started", way_out="Call start() first.")
        return f"{_ports.HOST}:{state.port}"

    @property
    def log_path(self) -> Path:
        """The broker's log."""
        return self._files.log

    def state(self) -> BrokerState | None:
        """The running process, or None. A broker that still starts up counts as running."""
        return self._files.state()

    @property
    def cluster_id(self) -> str | None:
        """The cluster's id; None before the first start."""
        return self._files.cluster_id()

    # --- life --------------------------------------------------------------------------------------------------

    def start(self, timeout_s: float = 90.0, *, wait: bool = True) -> LocalBroker:
        """Start the broker, or attach to it where it runs; return when it answers, or at once without ``wait``.

        Raises:
            MissingExtra, KafkaJarsUnavailable: there is no Kafka to start.
            BrokerStartFailed: it ended or was not ready in ``timeout_s`` seconds; BrokerBusy: another starter hangs.
            BrokerPortTaken, BrokerDataDamaged: see there.
        """
        if self._die_with_parent and not _process.in_main_thread():
            raise ValueError("die_with_parent follows the thread that starts the broker: start it from the main thread")
        if self._files.state() is None:
            jars, runtime = classpath(), java()  # before the lock: the first time this downloads
            with self._files.locked(timeout_s):
                if self._running() is None:
                    self._launch(runtime, jars, timeout_s)
        if wait:
            self.wait_ready(timeout_s)
        return self

    def wait_ready(self, timeout_s: float = 90.0) -> None:
        """Return when the broker answers clients under the cluster id of this directory.

        Raises:
            BrokerStartFailed: it ended, was not ready in time, or another cluster answers at its address.
        """
        end = time.monotonic() + timeout_s
        probe: Probe | None = None
        while time.monotonic() < end:
            state = self._files.state()
            if state is None:
                raise BrokerStartFailed(self.directory, "it ended", self._files.log_tail())
            if _ports.is_open(state.port):
                probe = probe or Probe(f"{_ports.HOST}:{state.port}")
                found = probe.cluster_id(min(2.0, max(0.1, end - time.monotonic())))
                if found is not None:
                    if found == self._files.cluster_id():
                        return
                    raise BrokerStartFailed(
                        self.directory, f"another cluster ({found}) answers at {self.bootstrap}", self._files.log_tail()
                    )
            time.sleep(0.05)
        raise BrokerStartFailed(self.directory, f"it was not ready within {timeout_s:g} s", self._files.log_tail())

    def stop(self, timeout_s: float = 30.0) -> None:
        """Shut the broker down in order, with SIGKILL after ``timeout_s`` seconds. Does nothing where none runs."""
        self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> None:
        """End the broker as a crash would (SIGKILL); returns when the process is gone."""
        self._end(signal.SIGKILL, 10.0)

    # --- inside ------------------------------------------------------------------------------------------------

    def _end(self, sig: signal.Signals, timeout_s: float) -> None:
        if not self.directory.exists():
            return
        with self._files.locked(timeout_s + 15.0):
            state = self._running()
            if state is not None:
                _process.end(state.pid, state.start_ticks, sig, timeout_s)
            self._files.forget_state()

    def _running(self) -> BrokerState | None:
        """The running broker, under the lock; also one whose starter died before it wrote the state."""
        state = self._files.state()
        if state is not None:
            return state
        pid, ports = _process.find(_MAIN, str(self._files.properties)), self._files.ports()
        ticks = _process.start_ticks(pid) if pid is not None else None
        if pid is None or ticks is None or ports is None:
            return None
        _log.warning("adopting the broker with pid %d in %s: its starter died", pid, self.directory)
        return self._remember(pid, ticks, ports)

    def _remember(self, pid: int, ticks: int, ports: Ports) -> BrokerState:
        state = BrokerState(
            pid=pid,
            start_ticks=ticks,
            boot_id=_process.boot_id(),
            port=ports.port,
            controller_port=ports.controller_port,
            kafka=KAFKA_VERSION,
        )
        self._files.save_state(state)
        return state

    def _launch(self, runtime: Path, jars: str, timeout_s: float) -> None:
        """1. ports, 2. properties, 3. format once, 4. process, 5. state; all under the lock."""
        with contextlib.ExitStack() as held:
            ports = self._files.ports()
            if ports is None:
                chosen = held.enter_context(_ports.reserved(2))
                ports = Ports(port=chosen[0], controller_port=chosen[1])
                self._files.save_ports(ports)
            else:
                for port in (ports.port, ports.controller_port):
                    if not _ports.is_free(port):
                        raise BrokerPortTaken(self.directory, port)
            self._write_properties(self._files.properties, self._files.data, ports)
            java_command = [str(runtime), *self._java_flags(), "-cp", jars]
            self._format_once(java_command, ports, timeout_s)
            if self._files.log.exists() and self._files.log.stat().st_size > _LOG_KEEP_BYTES:
                self._files.log.replace(self._files.log.with_suffix(".log.1"))
        # The ports are let go only here, just before the broker takes them.
        with self._files.log.open("ab") as output:
            pid = _process.spawn(
                [*java_command, _MAIN, str(self._files.properties)],
                cwd=self.directory,
                output=output,
                die_with_parent=self._die_with_parent,
            )
        ticks = _process.start_ticks(pid)
        if ticks is None:
            raise BrokerStartFailed(self.directory, "it ended at once", self._files.log_tail())
        self._remember(pid, ticks, ports)
        _log.info("started Apache Kafka %s, pid %d, at %s:%d", KAFKA_VERSION, pid, _ports.HOST, ports.port)

    def _write_properties(self, path: Path, data: Path, ports: Ports) -> None:
        properties = local_properties(
            data=data,
            port=ports.port,
            controller_port=ports.controller_port,
            session_timeout_ms=self._session_timeout_ms,
        )
        path.write_text(as_file(properties), encoding="ascii")

    def _format_once(self, java_command: list[str], ports: Ports, timeout_s: float) -> None:
        """Format beside and rename, so that a data directory is there in full or not at all, and never formatted twice."""
        data = self._files.data
        if self._files.cluster_id() is not None:
            return
        if data.exists():
            raise BrokerDataDamaged(data)
        fresh, properties = data.with_name("data.new"), self.directory / "format.properties"
        shutil.rmtree(fresh, ignore_errors=True)
        self._write_properties(properties, fresh, ports)
        command = [*java_command, "kafka.tools.StorageTool", "format", "-t", new_cluster_id(), "-c", str(properties)]
        try:
            done = _process.run_to_end(command, timeout_s=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise BrokerStartFailed(self.directory, f"formatting took over {timeout_s:g} s") from error
        if done.returncode:
            raise BrokerStartFailed(
                self.directory, "its data directory could not be formatted", done.stdout + done.stderr
            )
        fresh.rename(data)
        properties.unlink()

    def _java_flags(self) -> list[str]:
        return [
            f"-Xmx{self._heap}",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:-UsePerfData",
            # The default (info) writes 1,600 lines a life.
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
            "--sun-misc-unsafe-memory-access=allow",
        ]
