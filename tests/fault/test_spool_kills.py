"""kill -9 of recording processes, and outages of the broker: whatever `record` returned arrives, and duplicates fall away by their ids.

A driver program forks one agent after another. Each adopts what the killed ones before it left, records as fast as it can, and writes
each handle to a file after `record` returned; at a random moment it is killed. For a part of the kills the broker is dead.
"""

from __future__ import annotations

import json
import os
import random
import resource
import secrets
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import treadle
from treadle.log import read
from treadle_schemas import WorkspaceSettings
from treadle_schemas.codec import INTERACTION, decode
from treadle_schemas.topics import topic
from treadle_streams import workspaces

if TYPE_CHECKING:
    from treadle_streams.broker import LocalBroker

PARTITIONS = 2
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]

# The driver itself records nothing and has no thread, so that its forks are clean. It prints a line a kill.
DRIVER = r"""
import os, random, signal, sys, threading, time
import treadle, confluent_kafka  # once, instead of in every child
servers, workspace, spool, handles, seed, kills = *sys.argv[1:6], int(sys.argv[6])
chance = random.Random(seed)

def agent(seed, durable, threads, forks):
    mine = random.Random(seed)
    noted = os.open(handles, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    recorder = treadle.Recorder(workspace, bootstrap_servers=servers, spool_dir=spool, durable=durable)
    def work():
        while True:
            text = "x" * mine.choice((10, 300, 3_000, 30_000))
            handle = recorder.record(messages=[{"role": "user", "content": text}, {"role": "assistant", "content": "y"}])
            if recorder.stats().refused:
                os.write(noted, b"refused\n")
            os.write(noted, handle.interaction_id.encode() + b"\n")
            time.sleep(0.0005)
    for _ in range(threads - 1):
        threading.Thread(target=work, daemon=True).start()
    if forks:
        recorder.record(messages=[{"role": "user", "content": "parent"}])
        os.fork()
    work()

def start(*options):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        try:
            agent(*options)
        finally:
            os._exit(70)
    return pid

def kill(pid):
    while True:  # until it leads its group
        try:
            os.killpg(pid, signal.SIGKILL)
            break
        except ProcessLookupError:
            time.sleep(0.001)
    status = os.waitpid(pid, 0)[1]
    if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        sys.exit(f"an agent ended by itself: {status}")

# how long the machine, as busy as it is, needs until one has recorded something
began, first = time.monotonic(), start(0.5, True, 1, False)
while not (os.path.exists(handles) and os.path.getsize(handles)):
    time.sleep(0.01)
start_s = time.monotonic() - began
kill(first)

for n in range(kills):
    # some are killed while they start
    life = chance.choice((0.01, 0.05, 0.2, 0.4)) + chance.random() * 0.1 + chance.choice((0.0, start_s, start_s))
    options = chance.random(), chance.choice((True, True, "fsync")), chance.choice((1, 1, 3)), chance.random() < 0.2
    pid = start(*options)
    time.sleep(life)
    kill(pid)
    print(n, f"{life:.3f}", *options[1:], flush=True)
"""


def drive(servers: str, workspace: str, spool: Path, handles: Path, seed: str, kills: int) -> None:
    """Let the driver kill so many agents."""
    ran = subprocess.run(
        # Python 3.12 and later warn of every fork beside threads; that this one is safe is what is tested
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            DRIVER,
            servers,
            workspace,
            str(spool),
            str(handles),
            seed,
            str(kills),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120 + 6 * kills,
        env={k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert len(ran.stdout.splitlines()) == kills


def drain(servers: str, workspace: str, spool: Path, timeout_s: float) -> None:
    """What the next agent on this machine does."""
    with treadle.Recorder(workspace, bootstrap_servers=servers, spool_dir=spool, agent="next") as recorder:
        recorder.record(messages=MESSAGES, interaction_id="the-next")
        deadline = time.monotonic() + timeout_s
        while len(left := list((spool / workspace).glob("*.seg"))) > 1:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        assert recorder.flush(30) == 0
    assert [path.name for path in (spool / workspace).iterdir() if path.suffix in (".seg", ".ack")] == []


def kill_agents(own_broker: LocalBroker, folder: Path, kills: int) -> None:
    """A third of the kills with the broker up, a third with it dead, a third with it back. Prints the seed and what was seen."""
    seed = os.environ.get("TREADLE_TEST_SEED") or secrets.token_hex(4)
    print(f"seed {seed} (TREADLE_TEST_SEED={seed} repeats the choices)")
    servers, spool, handles = own_broker.bootstrap, folder / "spool", folder / "handles"
    workspaces.create(servers, WorkspaceSettings(workspace="w", partitions=PARTITIONS))
    third = kills // 3
    drive(servers, "w", spool, handles, f"{seed}-up", third)
    own_broker.kill()
    drive(servers, "w", spool, handles, f"{seed}-down", third)
    left_bytes = sum(path.stat().st_size for path in (spool / "w").glob("*.seg"))
    own_broker.start()
    drive(servers, "w", spool, handles, f"{seed}-back", kills - 2 * third)
    drain(servers, "w", spool, 60 + kills / 5)
    returned = handles.read_text().split()
    assert "refused" not in returned
    arrived: Counter[str] = Counter()
    values: dict[str, bytes | None] = {}
    for record in read(servers, topic("w", "interactions"), PARTITIONS):
        event = decode(record.value, record.headers)
        assert event.type == INTERACTION
        ident = event.data["interaction_id"]
        assert values.setdefault(ident, record.value) == record.value, "a duplicate says something else"
        arrived[ident] += 1
    lost = [ident for ident in returned if ident not in arrived]
    repeated = sum(arrived.values()) - len(arrived)
    print(
        json.dumps(
            {
                "kills": kills,
                "returned": len(returned),
                "lost": len(lost),
                "duplicates": repeated,
                "arrived without having been returned": len(arrived) - len(set(returned)) - 1,
                "spooled while the broker was dead, bytes": left_bytes,
            }
        )
    )
    assert lost == []
    assert len(returned) == len(set(returned)) > 10 * kills
    assert left_bytes > 0
    # a kill in the middle of a write leaves a piece of a frame, and nobody was told that its event was recorded
    torn = [path.suffix for path in (spool / "w").glob("quarantine/*")]
    print(f"{len(torn)} torn frames set aside")
    assert set(torn) <= {".torn"}
    assert len(torn) <= kills


def test_nothing_that_record_returned_is_lost_in_30_kills(own_broker: LocalBroker, tmp_path: Path) -> None:
    kill_agents(own_broker, tmp_path, 30)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_nothing_that_record_returned_is_lost_in_300_kills(own_broker: LocalBroker, tmp_path: Path) -> None:
    kill_agents(own_broker, tmp_path, 300)


@pytest.mark.long
@pytest.mark.timeout(10_800)
def test_nothing_that_record_returned_is_lost_in_3000_kills(own_broker: LocalBroker, tmp_path: Path) -> None:
    kill_agents(own_broker, tmp_path, 3000)


def live_through_an_outage(own_broker: LocalBroker, folder: Path, events: int, seconds: float) -> None:
    """The broker dies under a recorder that goes on recording, and comes back."""
    servers = own_broker.bootstrap
    workspaces.create(servers, WorkspaceSettings(workspace="w", partitions=PARTITIONS))
    chance = random.Random(events)
    with treadle.Recorder("w", bootstrap_servers=servers, spool_dir=folder, raise_errors=False) as recorder:
        recorder.record(messages=MESSAGES)
        assert recorder.flush() == 0
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        own_broker.kill()
        began = time.monotonic()
        took_s = []
        for n in range(events):
            wait_s = began + n * seconds / events - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            called = time.perf_counter()
            recorder.record(messages=[{"role": "user", "content": f"{chance.random()} " * 150}], interaction_id=f"i{n}")
            took_s.append(time.perf_counter() - called)
        stats = recorder.stats()
        assert stats == (events + 1, 1, events, 0, 0)
        own_broker.start()
        assert recorder.flush(120) == 0
        assert recorder.stats() == (events + 1, events + 1, 0, 0, 0)
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    arrived = [
        decode(r.value, r.headers).data["interaction_id"] for r in read(servers, topic("w", "interactions"), PARTITIONS)
    ]
    took_s.sort()
    print(
        f"{events} events in {seconds:g} s without a broker: all arrived, {len(arrived) - len(set(arrived))} twice; record p50 "
        f"{took_s[events // 2] * 1e6:.0f} us, p99 {took_s[events * 99 // 100] * 1e6:.0f} us, longest {took_s[-1] * 1e3:.1f} ms; "
        f"+{grown_mib:.0f} MiB"
    )
    assert {f"i{n}" for n in range(events)} < set(arrived)
    assert grown_mib < 128


def test_what_is_recorded_during_an_outage_arrives_whole(own_broker: LocalBroker, tmp_path: Path) -> None:
    live_through_an_outage(own_broker, tmp_path, 2_000, 3.0)


@pytest.mark.long
def test_ten_thousand_events_of_a_30_s_outage_arrive_whole(own_broker: LocalBroker, tmp_path: Path) -> None:
    live_through_an_outage(own_broker, tmp_path, 10_000, 30.0)
