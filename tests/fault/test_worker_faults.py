"""Workers and broker are killed and stopped while events flow; the committed rows must equal an offline fold of the log.

A writer keeps producing a history with late, early, repeated, conflicting, retracted and missing outcomes. Each fault falls between two
proofs that input and output advanced. At the end nothing may be lost, repeated or wrong:

- every row's last record on `.graded` has the content of a fold of the whole input log in memory;
- the revisions of a row are 1, 2, 3, ... each once;
- every record that lost or was refused is exactly one dead letter.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from treadle.errors import LogError
from treadle.log import Admin, Record, Sender, read
from treadle_schemas import Metric, WorkspaceSettings, codec, content_hash
from treadle_schemas.moments import from_micros
from treadle_schemas.topics import group, topic
from treadle_streams import workspaces
from treadle_streams.broker import LocalBroker
from treadle_streams.join import END_MARGIN_MS, INPUTS, Arrival, Grading, MemoryPartition
from treadle_streams.worker import status_path

pytestmark = pytest.mark.fault

PARTITIONS = 4
SESSION_S = 6.0
T0_US = 1_700_000_000_000_000
FAR_MS = 60 * 86_400_000
"""So long after the last append that every row's time is up, and no row has ended."""


class Writer(threading.Thread):
    """Produces the history until told to stop, and counts what Kafka acknowledged."""

    def __init__(self, servers: str, workspace: str, seed: int, rate_per_s: int) -> None:
        super().__init__(daemon=True)
        self.workspace, self.rate_per_s = workspace, rate_per_s
        self.rng = random.Random(seed)
        self.sender = Sender(servers, timeout_s=60.0)
        self.quit = threading.Event()
        self.numbers = iter(range(10**9))

    def run(self) -> None:
        started, made = time.monotonic(), 0
        while not self.quit.is_set():
            for send in self._row(next(self.numbers)):
                send()
                made += 1
            ahead_s = made / self.rate_per_s - (time.monotonic() - started)
            if ahead_s > 0:
                self.quit.wait(ahead_s)

    def finish(self) -> int:
        self.quit.set()
        self.join(30)
        self.sender.flush(60.0)
        assert self.sender.failed == 0
        return self.sender.acked

    def _row(self, number: int) -> list[Callable[[], None]]:
        rng, episode, interaction = self.rng, f"e{number // 3}", f"i{number}"
        sends = [lambda ended=0: self._interaction(episode, interaction, ended)]
        if rng.random() < 0.8:
            for n in range(rng.choice((1, 1, 2, 3))):
                outcome = [f"o{n}", rng.choice((0.0, 0.5, 1.0, None)), rng.randint(0, 50)]
                sends += [lambda o=tuple(outcome): self._outcome(episode, interaction, *o)] * rng.choice((1, 1, 1, 2))
        if rng.random() < 0.1:
            sends.append(lambda: self._outcome(episode, interaction, "o0", 0.25, 60))
        if rng.random() < 0.1:
            at, one = rng.randint(0, 60), rng.choice(("o0", None))
            sends.append(lambda: self._outcome(episode, interaction, one, None, at, op="retract"))
        if rng.random() < 0.05:
            sends.append(lambda: self._interaction(episode, interaction, 1))
        if rng.random() < 0.05:
            sends.append(lambda: self._outcome(episode, interaction, "bad", "text", 1))
        rng.shuffle(sends)
        return sends

    def _interaction(self, episode: str, interaction: str, ended: int) -> None:
        self._send(
            "interactions",
            codec.INTERACTION,
            episode,
            {
                "interaction_id": interaction,
                "episode_id": episode,
                "agent": "bot",
                "task_id": episode,
                "messages": [{"role": "user", "content": interaction * 50}, {"role": "assistant", "content": "yes"}],
                "started_at": _at(0),
                "ended_at": _at(ended),
            },
        )

    def _outcome(
        self, episode: str, interaction: str, outcome_id: str | None, value: Any, second: int, op: str = "set"
    ) -> None:
        data = {"interaction_id": interaction, "episode_id": episode, "name": "reward", "value": value, "op": op}
        data |= {"observed_at": _at(second)} | ({"outcome_id": outcome_id} if outcome_id else {})
        self._send("outcomes", codec.OUTCOME, episode, data)

    def _send(self, kind: str, event_type: str, key: str, data: Any) -> None:
        headers = codec.make_headers(event_type, self.workspace, source="test")
        self.sender.send(topic(self.workspace, kind), key.encode(), json.dumps(data).encode(), headers)


class Bench:
    """A workspace under load, the workers in it, and what is asked of the log."""

    def __init__(self, servers: str, workspace: str, home: Path, rate_per_s: int = 150) -> None:
        self.servers, self.workspace, self.home = servers, workspace, home
        metrics = (
            Metric(name="reward", required=True, horizon_s=2.0),
            Metric(name="later", horizon_s=4.0),
        )
        settings = WorkspaceSettings(workspace=workspace, partitions=PARTITIONS, metrics=metrics, grace_s=0.5)
        self.grading = Grading(workspaces.create(servers, settings))
        self.admin = Admin(servers)
        self.writer = Writer(servers, workspace, seed=7, rate_per_s=rate_per_s)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.ends: list[tuple[str, int | None]] = []
        self.log = home / "workers.log"
        home.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker with a home of its own, which it finds again when it is started again."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")} | environment
        env |= {"TREADLE_HOME": str(self.home / name), "TREADLE_BOOTSTRAP_SERVERS": self.servers}
        command = [sys.executable, "-m", "treadle_streams.worker", "--workspace", self.workspace]
        with self.log.open("ab") as log:
            self.workers[name] = subprocess.Popen(command, env=env, stderr=log, stdout=log)
        return self.workers[name]

    def kill(self, name: str) -> None:
        self.workers[name].kill()
        self.workers[name].wait(30)

    def keep_alive(self) -> None:
        """What a supervisor does: a worker that ended is started again."""
        for name, worker in list(self.workers.items()):
            if worker.poll() is not None:
                self.ends.append((name, worker.returncode))
                self.start(name)

    def progress(self) -> tuple[int, int, int]:
        """(input records appended, input positions committed, output end) summed over partitions."""
        inputs = [(topic(self.workspace, k), p) for k in ("interactions", "outcomes") for p in range(PARTITIONS)]
        output = [(topic(self.workspace, "graded"), p) for p in range(PARTITIONS)]
        return (
            sum(self.admin.end_offsets(inputs).values()),
            sum(self.admin.committed(group(self.workspace, "join"), inputs).values()),
            sum(self.admin.stable_offsets(output).values()),
        )

    def advanced(self, why: str, *, restart: bool = True, deadline_s: float = 60.0) -> tuple[int, int, int]:
        """Wait until input, committed positions and output have all moved on from where they are now."""
        before = None
        end = time.monotonic() + deadline_s
        while True:
            if restart:
                self.keep_alive()
            try:
                now = self.progress()
                before = before or now
                if all(b + 20 < n for b, n in zip(before, now, strict=True)):
                    print(f"{why}: appended {now[0]}, committed {now[1]}, graded {now[2]}", flush=True)
                    return now
            except LogError:
                pass
            assert time.monotonic() < end, f"{why}: stands still at {before}; {self.log.read_text()[-3000:]}"
            time.sleep(0.1)

    def owns_all(self, name: str, deadline_s: float = 40.0) -> None:
        """Wait until the worker says that every partition is its own."""
        path = status_path(self.home / name, self.workspace)
        end = time.monotonic() + deadline_s
        while not path.exists() or len(json.loads(path.read_text())["partitions"]) < PARTITIONS:
            assert self.workers[name].poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < end, f"{name} has not taken over: {path.exists() and path.read_text()}"
            time.sleep(0.1)

    def close(self) -> None:
        self.writer.quit.set()
        for worker in self.workers.values():
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
            worker.wait(30)

    # The verdict.

    def records(self, kind: str) -> list[Record]:
        return list(read(self.servers, topic(self.workspace, kind), PARTITIONS))

    def offline(self) -> tuple[dict[str, Any], Counter[tuple[str, int, int]]]:
        """The content of every row, and every dead letter, of a fold of the whole log in memory."""
        log = {kind: self.records(kind) for kind in INPUTS}
        rows: dict[str, Any] = {}
        dead: Counter[tuple[str, int, int]] = Counter()
        for number in range(PARTITIONS):
            partition = MemoryPartition(self.grading, number)
            arrivals = [
                Arrival(k, number, r.offset, r.timestamp_ms, r.key, r.value, r.headers)
                for k in INPUTS
                for r in log[k]
                if r.partition == number
            ]
            partition.step(arrivals)
            far_ms = max(a.append_ms for a in arrivals) + FAR_MS
            partition.step(at_end_ms=dict.fromkeys(INPUTS, far_ms + END_MARGIN_MS))
            for emission in partition.outputs:
                headers = dict(emission.headers)
                if emission.stream == "graded":
                    rows[headers["row_id"].decode()] = _content(emission.value)
                elif emission.stream == "dead-letter":
                    dead[_source(headers)] += 1
        return rows, dead

    def verify(self) -> None:
        """Stop writing, let the workers finish, and compare."""
        acked = self.writer.finish()
        expected, expected_dead = self.offline()
        appended = self.progress()[0]
        assert appended == acked, "the history is all there, once"
        end = time.monotonic() + 60
        while True:
            self.keep_alive()
            try:
                graded = self.records("graded")
                last = {codec.header_map(r.headers)["row_id"].decode(): _content(r.value) for r in graded}
                if last == expected and self.progress()[1] == appended:
                    break
            except LogError:
                graded, last = [], {}
            wrong = [k for k in expected if last.get(k) != expected[k]]
            said = f"{len(wrong)} of {len(expected)} rows wrong or lost, for example {wrong[:3]}"
            assert time.monotonic() < end, f"{said}; {self.log.read_text()[-3000:]}"
            time.sleep(0.5)
        revisions: dict[bytes, list[int]] = {}
        for record in graded:
            headers = codec.header_map(record.headers)
            revisions.setdefault(headers["row_id"], []).append(int(headers["revision"]))
        assert all(r == list(range(1, len(r) + 1)) for r in revisions.values()), "each revision once, in order"
        dead = Counter(_source(codec.header_map(r.headers)) for r in self.records("dead-letter"))
        assert dead == expected_dead
        print(
            f"verified {len(expected)} rows of {acked} events, {len(graded)} revisions, {sum(dead.values())} dead letters; "
            f"workers that ended by themselves: {self.ends}",
            flush=True,
        )


def _at(second: int) -> str:
    return from_micros(T0_US + second * 1_000_000)


def _content(value: bytes | None) -> Any:
    row = json.loads(value or b"")
    return [content_hash(row["interaction"]), row["grade"], row["split"], row["split_group"]]


def _source(headers: Any) -> tuple[str, int, int]:
    return headers["topic"].decode(), int(headers["partition"]), int(headers["offset"])


def _stopped(process: subprocess.Popen[bytes]) -> bool:
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return stat.rsplit(")", 1)[1].split()[0] == "T"


def _wait_stopped(bench: Bench, name: str, deadline_s: float = 60.0) -> None:
    end = time.monotonic() + deadline_s
    while not _stopped(bench.workers[name]):
        assert bench.workers[name].poll() is None, bench.log.read_text()[-3000:]
        assert time.monotonic() < end, f"{name} did not stop"
        time.sleep(0.02)


@pytest.fixture
def bench(broker: str, workspace_name: str, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(broker, workspace_name, tmp_path / "bench")
    made.writer.start()
    try:
        yield made
    finally:
        made.close()


def _kill_workers(bench: Bench, kills: int) -> None:
    bench.start("a")
    for number in range(kills):
        bench.advanced(f"before kill {number + 1} of the worker")
        bench.kill("a")
        if number % 2:
            shutil.rmtree(bench.home / "a")
        print(f"killed the worker{' and took its state' if number % 2 else ''} at {bench.progress()}", flush=True)
        bench.start("a")
        bench.advanced(f"after kill {number + 1} of the worker")
    bench.verify()


def test_a_worker_killed_in_mid_stream_loses_repeats_and_changes_nothing(bench: Bench) -> None:
    _kill_workers(bench, 2)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_worker_killed_many_times_loses_repeats_and_changes_nothing(bench: Bench) -> None:
    _kill_workers(bench, 10)


def _kill_broker(local: LocalBroker, workspace: str, folder: Path, kills: int, rate_per_s: int = 150) -> Bench:
    bench = Bench(local.bootstrap, workspace, folder, rate_per_s=rate_per_s)
    bench.writer.start()
    try:
        bench.start("a")
        for number in range(kills):
            bench.advanced(f"before kill {number + 1} of the broker")
            fell = bench.progress()
            local.kill()
            print(f"killed the broker at {fell}", flush=True)
            local.start()
            bench.advanced(f"after kill {number + 1} of the broker", deadline_s=90)
        bench.verify()
    finally:
        bench.close()
    return bench


def test_a_broker_killed_in_mid_stream_loses_repeats_and_changes_nothing(
    own_broker: LocalBroker, workspace_name: str, tmp_path: Path
) -> None:
    _kill_broker(own_broker, workspace_name, tmp_path / "bench", 1)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_broker_killed_several_times_loses_repeats_and_changes_nothing(
    own_broker: LocalBroker, workspace_name: str, tmp_path: Path
) -> None:
    _kill_broker(own_broker, workspace_name, tmp_path / "bench", 4)


@pytest.mark.long
def test_a_worker_with_little_to_do_lives_on_when_the_broker_is_killed_and_comes_back(
    own_broker: LocalBroker, workspace_name: str, tmp_path: Path
) -> None:
    bench = _kill_broker(own_broker, workspace_name, tmp_path / "bench", 3, rate_per_s=8)
    assert len(bench.ends) < 3, "not every time: only a kill in the middle of a transaction ends the worker"


def _stop_past_session(bench: Bench, step: str) -> None:
    """One of two workers stops itself after a step, the other takes everything over, the first is woken and must change nothing."""
    bench.start("sleeper", TREADLE_FAULT_STOP_AT=step)
    bench.start("other")
    _wait_stopped(bench, "sleeper")
    fell = time.monotonic()
    print(f"stopped itself after {step} at {bench.progress()}", flush=True)
    bench.owns_all("other")
    bench.advanced(f"taken over while one is stopped after {step}", restart=False)
    while time.monotonic() < fell + SESSION_S + 1.0:
        time.sleep(0.1)
    bench.workers["sleeper"].send_signal(signal.SIGCONT)
    bench.advanced(f"woken {time.monotonic() - fell:.1f} s after {step}")
    bench.verify()


def _stop_after(servers: str, workspace: str, home: Path, steps: list[str]) -> None:
    """A workspace for each step, all at once: most of the time is spent waiting for sessions to end."""
    benches = [Bench(servers, f"{workspace}-{n}", home / str(n), rate_per_s=60) for n in range(len(steps))]
    try:
        for made in benches:
            made.writer.start()
        with ThreadPoolExecutor(len(steps)) as pool:
            for done in [
                pool.submit(_stop_past_session, made, step) for made, step in zip(benches, steps, strict=True)
            ]:
                done.result()
    finally:
        for made in benches:
            made.close()


def test_a_worker_stopped_past_its_session_between_two_steps_changes_nothing_when_it_wakes(
    broker: str, workspace_name: str, tmp_path: Path
) -> None:
    _stop_after(broker, workspace_name, tmp_path, ["send:5", "commit:5", "local:5"])


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("flag", ["", ":t"])
def test_a_worker_stopped_after_any_step_changes_nothing_when_it_wakes(
    broker: str, workspace_name: str, tmp_path: Path, flag: str
) -> None:
    for steps in (["plan", "begin", "produce"], ["flush", "send"], ["commit", "local"]):
        _stop_after(broker, f"{workspace_name}-{steps[0]}", tmp_path / steps[0], [f"{s}:5{flag}" for s in steps])


@pytest.mark.long
def test_a_worker_stopped_by_the_system_past_its_session_changes_nothing_when_it_wakes(bench: Bench) -> None:
    bench.start("a")
    bench.start("b")
    bench.advanced("before the stop")
    bench.workers["a"].send_signal(signal.SIGSTOP)
    fell = time.monotonic()
    print(f"stopped a at {bench.progress()}", flush=True)
    bench.owns_all("b")
    bench.advanced("taken over while a is stopped", restart=False)
    bench.workers["a"].send_signal(signal.SIGCONT)
    bench.advanced(f"a woke after {time.monotonic() - fell:.1f} s")
    bench.verify()
