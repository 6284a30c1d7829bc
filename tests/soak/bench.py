"""A workspace under load, the workers and the broker that serve it, and the folders that their state lies in."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from treadle.errors import LogError
from treadle.log import Admin
from treadle_schemas import Metric, WorkspaceSettings
from treadle_schemas.topics import group, topic
from treadle_schemas.workspace import Credit
from treadle_streams import workspaces
from treadle_streams.broker import LocalBroker
from treadle_streams.join import INPUTS, Grading
from treadle_streams.worker import status_path

from soak.history import POISON, Writer
from soak.verdict import Findings, Outputs, compare, offline

__all__ = ["BROKER_MB", "HOMES_MB", "Bench", "Disk", "Standstill", "Verified", "own_broker", "settings_of", "stopped"]

BROKER_MB: Final = 1024
HOMES_MB: Final = 512
"""Sizes of the disks that are filled: of the broker, and of all workers' local state."""
JOIN_PATIENCE_S: Final = 120.0
"""After the last event everything must be joined and settled within this time."""


class Standstill(AssertionError):
    """Something that must happen did not, in its time."""


class Disk:
    """A folder that can be filled: a small tmpfs where this process may mount one, else any folder, which cannot."""

    def __init__(self, folder: Path, size_mb: int) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._filler = folder / "filler"
        self.small = os.geteuid() == 0 and _mount("-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder))
        """May it be filled?"""

    def fill(self) -> None:
        """Leave no byte free."""
        assert self.small, "a folder that is shared with others is not filled"
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Give the space back."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount."""
        if self.small:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
            self.small = False


def _mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True)
class Verified:
    """What was compared, and what was found."""

    events: int
    poison: int
    """Events that no join can take."""
    rows: int
    revisions: int
    dead_letters: int
    findings: Findings

    def __str__(self) -> str:
        return (
            f"{self.events} events ({self.poison} poison), {self.rows} rows, {self.revisions} revisions, "
            f"{self.dead_letters} dead letters: {self.findings}"
        )


def settings_of(workspace: str, partitions: int) -> WorkspaceSettings:
    """Metrics of every level, settling within seconds."""
    return WorkspaceSettings(
        workspace=workspace,
        partitions=partitions,
        metrics=(
            Metric(name="reward", required=True, horizon_s=2.0, low=-1.0, high=1.0),
            Metric(name="score", aggregate="mean", horizon_s=4.0, absent=0.5),
            Metric(name="done", type="bool", level="episode", horizon_s=3.0),
        ),
        credit=Credit(rule="discounted", gamma=0.5),
        reward="reward + COALESCE(score, 0)",
        grace_s=0.5,
    )


class Bench:
    """See the module. `homes` holds a folder a worker, which it finds again when it is started again."""

    def __init__(
        self,
        servers: str,
        workspace: str,
        homes: Disk,
        *,
        seed: int,
        partitions: int = 4,
        rate_per_s: float = 120.0,
        broker: LocalBroker | None = None,
        broker_disk: Disk | None = None,
        standbys: int = 0,
    ) -> None:
        self.standbys = standbys
        """Copies that the workers keep of each partition of the others."""
        self.servers, self.workspace, self.homes, self.partitions = servers, workspace, homes, partitions
        self.broker, self.broker_disk = broker, broker_disk
        self.grading = Grading(workspaces.create(servers, settings_of(workspace, partitions)))
        self.admin = Admin(servers)
        self.writer = Writer(servers, workspace, partitions, seed, rate_per_s)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.ends: Counter[str] = Counter()
        """How often workers ended by themselves, by what they said."""
        self.struck: Counter[str] = Counter()
        """Faults by kind."""
        self.home = homes.folder / workspace
        self.home.mkdir()
        self.log_folder = homes.folder.parent / f"logs-{workspace}"
        self.log_folder.mkdir()
        self.writer.start()

    # Workers.

    def log(self, name: str) -> Path:
        """What a worker said on stderr; not on the disk that is filled."""
        return self.log_folder / f"{name}.log"

    def start(self, name: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker in the home of that name."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")} | environment
        env |= {"TREADLE_HOME": str(self.home / name), "TREADLE_BOOTSTRAP_SERVERS": self.servers}
        env["TREADLE_STANDBY"] = str(self.standbys)
        command = [sys.executable, "-m", "treadle_streams.worker", "--workspace", self.workspace, "-v"]
        with self.log(name).open("ab") as log:
            self.workers[name] = subprocess.Popen(command, env=env, stderr=log, stdout=log)
        return self.workers[name]

    def kill(self, name: str) -> None:
        """SIGKILL, whatever it was at; also where it is stopped."""
        self.workers[name].kill()
        self.workers[name].wait(30)
        del self.workers[name]

    def wipe(self, name: str) -> None:
        """Take a dead worker's local state."""
        shutil.rmtree(self.home / name, ignore_errors=True)

    def keep_alive(self) -> None:
        """What a supervisor does: a worker that ended is started again."""
        for name, worker in list(self.workers.items()):
            if worker.poll() is not None:
                self.ends[f"{worker.returncode}: {self.said(name)}"] += 1
                self.start(name)

    def said(self, name: str) -> str:
        """A worker's last words."""
        lines = self.log(name).read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")[:160]

    def tail(self) -> str:
        """The end of what each worker said."""
        return "\n".join(f"--- {n}: {self.log(n).read_text(errors='replace')[-1500:]}" for n in sorted(self.workers))

    def mine(self, name: str) -> set[int]:
        """The partitions that a worker says it runs on; none while it is not up."""
        worker = self.workers.get(name)
        try:
            said = json.loads(status_path(self.home / name, self.workspace).read_text())
        except FileNotFoundError:
            return set()
        return {int(p) for p in said["partitions"]} if worker is not None and said["pid"] == worker.pid else set()

    # Waiting.

    def wait(self, what: str, condition: Callable[[], bool], deadline_s: float, *, restart: bool = True) -> None:
        """Wait for a condition; LogError counts as not yet. Raises Standstill."""
        end = time.monotonic() + deadline_s
        while True:
            if restart:
                self.keep_alive()
            with contextlib.suppress(LogError):
                if condition():
                    return
            if time.monotonic() > end:
                raise Standstill(f"{self.workspace}: {what}: not within {deadline_s:g} s\n{self.tail()}")
            time.sleep(0.05)

    def progress(self) -> tuple[int, int, int]:
        """(input records appended, input positions committed, output end), summed over partitions. Raises LogError."""
        inputs = [(topic(self.workspace, k), p) for k in ("interactions", "outcomes") for p in range(self.partitions)]
        output = [(topic(self.workspace, "graded"), p) for p in range(self.partitions)]
        return (
            sum(self.admin.end_offsets(inputs).values()),
            sum(self.admin.committed(group(self.workspace, "join"), inputs).values()),
            sum(self.admin.stable_offsets(output).values()),
        )

    def advanced(self, why: str, *, restart: bool = True, deadline_s: float = 90.0) -> None:
        """Wait until input, committed positions and output have all moved on from where they are now."""
        before: list[tuple[int, int, int]] = []

        def moved() -> bool:
            before.append(self.progress())
            return all(b + 20 < n for b, n in zip(before[0], before[-1], strict=True))

        self.wait(f"{why}: stands still", moved, deadline_s, restart=restart)

    # The end.

    def verify(self) -> Verified:
        """Close the history, let the workers finish, and compare. Raises Standstill where not all is ever joined."""
        acked = self.writer.finish()
        outputs = Outputs(self.servers, self.workspace, self.partitions)
        try:
            self.wait("all is committed", lambda: self.progress()[:2] == (acked, acked), JOIN_PATIENCE_S)
            truth = offline(self.servers, self.grading)
            assert truth.captured == len(truth.rows), "each captured row settles in the offline fold"
            findings = Findings()

            def agree() -> bool:
                nonlocal findings
                outputs.read()
                findings = compare(truth, outputs.seen)
                return not findings

            with contextlib.suppress(Standstill):  # then the findings say what is wrong
                self.wait("the outputs are what the offline fold says", agree, JOIN_PATIENCE_S)
            self._positions_agree()
        finally:
            outputs.close()
        return Verified(
            events=acked,
            poison=sum(self.writer.history.counts[kind] for kind in POISON),
            rows=len(truth.rows),
            revisions=sum(map(len, outputs.seen.revisions.values())),
            dead_letters=outputs.seen.sources.total(),
            findings=findings,
        )

    def _positions_agree(self) -> None:
        inputs = [(topic(self.workspace, k), p) for k in INPUTS for p in range(self.partitions)]
        ends, committed = self.admin.end_offsets(inputs), self.admin.committed(group(self.workspace, "join"), inputs)
        assert all(committed[place] <= end for place, end in ends.items()), (
            f"positions past the end: {committed}, {ends}"
        )

    def close(self) -> None:
        """Kill the workers, end the writer, and heal what a fault that went wrong left broken."""
        self.writer.stop()
        for worker in self.workers.values():
            if worker.poll() is None:
                worker.kill()
            worker.wait(30)
        self.homes.free()
        if self.broker_disk is not None:
            self.broker_disk.free()
        if self.broker is not None:
            wake(self.broker)
            self.broker.start()


def wake(broker: LocalBroker) -> None:
    """Let a broker that was stopped go on."""
    state = broker.state()
    if state is not None:
        os.kill(state.pid, signal.SIGCONT)


def stopped(process: subprocess.Popen[bytes]) -> bool:
    """Is a process stopped by a signal?"""
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] == "T"


@contextlib.contextmanager
def own_broker(folder: Path, *, die_with_parent: bool) -> Iterator[tuple[LocalBroker, Disk]]:
    """A local broker, on a disk that can be filled where this process may mount one."""
    disk = Disk(folder / "broker-disk", BROKER_MB)
    # A short session: after kill() the broker is back within 3-4 s.
    local = LocalBroker(disk.folder / "broker", die_with_parent=die_with_parent, session_timeout_ms=1500)
    try:
        local.start()
        yield local, disk
    finally:
        disk.free()
        try:
            wake(local)
            local.kill()
        finally:
            disk.close()
