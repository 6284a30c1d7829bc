"""Workers that keep copies of each other's partitions, on a real broker: the one that is left goes on from its copy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from treadle.log import read
from treadle_schemas.topics import group
from treadle_streams.worker import status_path

sys.path.append(str(Path(__file__).resolve().parent))

from test_worker import PARTITIONS, Bench

_TOOK_OVER: Final = re.compile(r"took over partitions \[([0-9, ]*)\] in [0-9.]+ s, ([0-9]+) records replayed")
ALL: Final = {str(p) for p in range(PARTITIONS)}


class Worker:
    """A process with a folder, a status and a log of its own."""

    def __init__(self, bench: Bench, instance: int, name: str) -> None:
        self._status = status_path(bench.home, bench.workspace, instance)
        self._status.unlink(missing_ok=True)
        self._log = bench.home / f"{name}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")}
        environment |= {"TREADLE_HOME": str(bench.home), "TREADLE_BOOTSTRAP_SERVERS": bench.servers}
        command = [sys.executable, "-m", "treadle_streams.worker", "--workspace", bench.workspace, "--verbose"]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment | {"TREADLE_STANDBY": "1"}, stderr=log)

    @property
    def status(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._status.read_text()))
        except FileNotFoundError:
            return {}

    def owns(self, *, level: bool = True) -> set[str]:
        """Its partitions, where everything is joined and its copies have all there is; else none."""
        status = self.status
        done = status.get("lag") == 0 and all(copy["level"] or not level for copy in status["standbys"].values())
        return set(status["partitions"]) if done else set()

    def replayed(self, partitions: set[str]) -> int | None:
        """Records replayed by the last take-over, if it was of these partitions."""
        found = _TOOK_OVER.findall(self._log.read_text())
        return int(found[-1][1]) if found and set(found[-1][0].split(", ")) == partitions else None

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


class Workers:
    """All workers of a test."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.running: list[Worker] = []

    def start(self, instance: int, name: str) -> Worker:
        self.running.append(Worker(self.bench, instance, name))
        return self.running[-1]

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        def met() -> bool:
            assert all(worker.process.poll() in (None, -9) for worker in self.running)
            return condition()

        self.bench.wait(what, met)


@pytest.fixture
def workers(broker: str, workspace_name: str, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(Bench(broker, workspace_name, tmp_path))
    try:
        yield made
    finally:
        for worker in made.running:
            worker.process.terminate()
        for worker in made.running:
            worker.process.wait(30)


def _send(bench: Bench, first: int, last: int) -> None:
    for number in range(first, last):
        bench.interaction(f"i{number}")
        bench.outcome(f"i{number}", number % 8 / 8)
    bench.sender.flush()


def _after(bench: Bench, offsets: dict[str, int]) -> int:
    """Committed changelog records from these offsets on, by partition."""
    changelog = f"{group(bench.workspace, 'join')}-rows-changelog"
    start = {int(p): offset for p, offset in offsets.items()}
    records = read(bench.servers, changelog, PARTITIONS, start=start)
    return sum(record.partition in start for record in records)


def test_a_killed_owner_is_replaced_by_its_standby_which_replays_the_tail_only(workers: Workers) -> None:
    bench = workers.bench
    _send(bench, 0, 400)
    first = workers.start(0, "first")
    workers.wait("the first joins all", lambda: first.owns() == ALL and first.status["settled"] == 400)
    assert first.status["standbys"] == {}, "there is nobody to copy from"
    second = workers.start(1, "second")
    marks: dict[str, int] = {}

    def each_copies_the_other() -> bool:
        copies = (second.status.get("standbys", {}), first.status.get("standbys", {}))
        marks.update({p: copy["applied"] for half in copies for p, copy in half.items()})
        return tuple(map(set, copies)) == (first.owns(), second.owns()) and first.owns() | second.owns() == ALL

    workers.wait("each owns one and copies the other", each_copies_the_other)
    assert marks.keys() == ALL

    _send(bench, 400, 440)
    workers.wait("both join", lambda: bool(first.owns() and second.owns()))
    first.kill()
    _send(bench, 440, 480)
    workers.wait("the second goes on alone", lambda: second.owns() == ALL and second.status["settled"] == 480)
    replayed = second.replayed(ALL)
    assert replayed is not None
    assert replayed <= _after(bench, marks) < _after(bench, dict.fromkeys(marks, 0))

    # and back: what lies in the folder of the one that was killed is good, but for what came later
    third = workers.start(0, "third")
    workers.wait("they share again", lambda: bool(third.owns() and second.owns()))
    taken = third.owns()
    _send(bench, 480, 500)
    workers.wait(
        "everything is joined",
        lambda: bool(third.owns() and second.owns()) and third.status["settled"] + second.status["settled"] == 500,
    )
    again = third.replayed(taken)
    assert again is not None
    assert again <= _after(bench, {p: marks[p] for p in taken}) < _after(bench, dict.fromkeys(taken, 0))

    graded = bench.graded()
    assert {key: [row.grade.reward for row in rows] for key, rows in graded.items()} == {
        f"i{number}": [number % 8 / 8] for number in range(500)
    }
    assert all(row.provenance.revision == 1 for rows in graded.values() for row in rows)
    assert bench.records("dead-letter") == []
