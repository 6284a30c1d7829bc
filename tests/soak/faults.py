"""The faults. A new one is one more entry of `FAULTS`.

Each is a generator: it strikes, yields the seconds for which it holds, and heals when it is resumed; None says that it has not struck yet.
Several may hold at once, as long as they take hold of different things.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from treadle_streams.worker._faults import STEPS
from treadle_streams.worker._settings import SESSION_TIMEOUT_S

from soak.bench import Bench, stopped

__all__ = ["AWAY_S", "FAULTS", "Driver", "Fault", "feasible"]

PAST_SESSION_S: Final = SESSION_TIMEOUT_S + 1.5
AWAY_S: Final = 30.0
_STOP_PATIENCE_S: Final = 45.0
_END_PATIENCE_S: Final = 20.0
_LOOK_S: Final = 0.1

Fault = Callable[[Bench, str], Iterator[float | None]]
"""Of a bench and the name of the worker that it may take."""


def kill_worker(b: Bench, name: str) -> Iterator[float | None]:
    """kill -9; a supervisor starts it again at once."""
    b.kill(name)
    b.start(name)
    yield 0.0


def kill_worker_for_long(b: Bench, name: str) -> Iterator[float | None]:
    """kill -9 of one under load; the others take over before it is back."""
    b.kill(name)
    yield PAST_SESSION_S
    b.start(name)


def wipe_worker(b: Bench, name: str) -> Iterator[float | None]:
    """kill -9, and its local state is gone."""
    b.kill(name)
    b.wipe(name)
    b.start(name)
    yield 0.0


def kill_workers(b: Bench, name: str) -> Iterator[float | None]:
    """kill -9 of all workers at once; one has lost its state."""
    names = list(b.workers)
    for other in names:
        b.kill(other)
    b.wipe(name)
    yield 1.0
    for other in names:
        b.start(other)


def end_worker(b: Bench, name: str) -> Iterator[float | None]:
    """SIGTERM, as in every deployment."""
    worker = b.workers.pop(name)
    worker.terminate()
    end = time.monotonic() + _END_PATIENCE_S
    while worker.poll() is None and time.monotonic() < end:
        yield 0.1
    if worker.poll() is None:
        worker.kill()  # as its supervisor does; without a broker there is no orderly end
        worker.wait(30)
        b.ends["killed after SIGTERM"] += 1
    b.start(name)


def stop_worker(b: Bench, name: str) -> Iterator[float | None]:
    """SIGSTOP past the session, then SIGCONT."""
    worker = b.workers[name]
    worker.send_signal(signal.SIGSTOP)
    yield PAST_SESSION_S
    worker.send_signal(signal.SIGCONT)


def stop_worker_briefly(b: Bench, name: str) -> Iterator[float | None]:
    """SIGSTOP past the transaction's timeout, within the session."""
    worker = b.workers[name]
    worker.send_signal(signal.SIGSTOP)
    yield 5.4
    worker.send_signal(signal.SIGCONT)


def stop_after(step: str, timers_only: bool) -> Fault:
    """A worker stops itself right after a step of a transaction, is left past its session, and woken."""

    def fault(b: Bench, name: str) -> Iterator[float | None]:
        b.kill(name)
        worker = b.start(name, TREADLE_FAULT_STOP_AT=f"{step}:3{':t' if timers_only else ''}")
        end = time.monotonic() + _STOP_PATIENCE_S
        while not stopped(worker):
            if b.workers.get(name) is not worker:
                b.writer.rest(False)
                return  # something else ended it first
            if time.monotonic() > end:
                b.writer.rest(False)
                b.kill(name)
                b.start(name)
                return
            if timers_only and b.mine(name):
                b.writer.rest(True)  # under load, or on a slow machine, every batch has events
            yield None
        b.writer.rest(False)
        yield PAST_SESSION_S
        worker.send_signal(signal.SIGCONT)

    return fault


def kill_broker(b: Bench, name: str) -> Iterator[float | None]:
    """kill -9 of the broker, started again at once."""
    assert b.broker is not None
    b.broker.kill()
    b.broker.start()
    yield 0.0


def kill_both(b: Bench, name: str) -> Iterator[float | None]:
    """kill -9 of the broker and of all workers."""
    assert b.broker is not None
    names = list(b.workers)
    b.broker.kill()
    for other in names:
        b.kill(other)
    for other in names:
        b.start(other)
    b.broker.start()
    yield 0.0


def broker_away(seconds: float) -> Fault:
    """The broker is stopped, and answers nobody; its clients keep their connections."""

    def fault(b: Bench, name: str) -> Iterator[float | None]:
        assert b.broker is not None
        state = b.broker.state()
        assert state is not None
        os.kill(state.pid, signal.SIGSTOP)
        yield seconds
        os.kill(state.pid, signal.SIGCONT)

    return fault


def broker_gone(seconds: float) -> Fault:
    """The broker is killed and stays away."""

    def fault(b: Bench, name: str) -> Iterator[float | None]:
        assert b.broker is not None
        b.broker.kill()
        yield seconds
        b.broker.start()

    return fault


def worker_disk_full(b: Bench, name: str) -> Iterator[float | None]:
    """No space for local state; a worker is killed meanwhile, and finds none when it starts."""
    b.homes.fill()
    yield 1.0
    b.kill(name)
    b.start(name)
    yield 6.0
    b.homes.free()


def broker_disk_full(b: Bench, name: str) -> Iterator[float | None]:
    """No space for the log: the broker gives up. It is started again when there is."""
    assert b.broker is not None
    assert b.broker_disk is not None
    b.broker_disk.fill()
    end = time.monotonic() + 30.0
    while b.broker.state() is not None and time.monotonic() < end:
        yield None
    if b.broker.state() is not None:
        b.broker.kill()  # it only refused what was sent
    yield 1.0
    b.broker_disk.free()
    b.broker.start()


FAULTS: Final[dict[str, tuple[float, str, Fault]]] = {
    "worker killed": (3, "worker", kill_worker),
    "worker killed, back late": (2, "worker", kill_worker_for_long),
    "worker killed and wiped": (2, "worker", wipe_worker),
    "all workers killed": (1, "all", kill_workers),
    "worker ended": (1, "worker", end_worker),
    "worker stopped past its session": (1, "worker", stop_worker),
    "worker stopped past its transaction": (1, "worker", stop_worker_briefly),
    "broker killed": (2, "broker", kill_broker),
    "broker and workers killed": (1, "all", kill_both),
    "broker stopped for 30 s": (0.4, "broker", broker_away(AWAY_S)),
    "broker gone for 30 s": (0.4, "broker", broker_gone(AWAY_S)),
    "worker's disk full": (1, "worker", worker_disk_full),
    "broker's disk full": (0.5, "broker", broker_disk_full),
    **{f"stopped after {s}": (0.5, "worker", stop_after(s, False)) for s in STEPS},
    **{f"stopped after {s}, timers only": (0.4, "worker", stop_after(s, True)) for s in STEPS},
}
"""By name: how often, what it takes hold of, and the fault."""


def feasible(b: Bench) -> list[str]:
    """The faults that can strike here: without root no disk is filled, without a broker of its own none is broken."""
    return [
        name
        for name, (_, takes, _) in FAULTS.items()
        if (b.broker is not None or (takes == "worker" and "broker" not in name))
        and ("disk" not in name or b.homes.small)
        and ("broker's disk" not in name or (b.broker_disk is not None and b.broker_disk.small))
    ]


@dataclass(slots=True)
class _Active:
    name: str
    takes: set[str]
    rest: Iterator[float | None]
    resume_s: float
    struck: bool = False


class Driver:
    """Lets faults strike one after the other, each after a proof that the join got on, or while another one holds."""

    def __init__(self, bench: Bench, random: Random, say: Callable[[str], None]) -> None:
        self._bench, self._random, self._say = bench, random, say
        self._active: list[_Active] = []
        self._started_s = time.monotonic()

    def run(self, names: Sequence[str], overlap: float = 0.0) -> None:
        """All of these; with probability `overlap` the next one strikes while the last one holds. Raises Standstill."""
        for name in names:
            if not self._active or self._random.random() >= overlap:
                self.settle()
            takes = self._takes(FAULTS[name][1])
            while takes is None:
                self._tend()
                takes = self._takes(FAULTS[name][1])
            self._strike(name, takes)
        self.settle()

    def settle(self) -> None:
        """Wait until every fault is healed and the join gets on."""
        while self._active:
            self._tend()
        self._bench.advanced("after the faults")

    def _takes(self, what: str) -> set[str] | None:
        """What the fault takes hold of; None while it is taken."""
        taken = {one for active in self._active for one in active.takes}
        free = sorted(self._bench.workers.keys() - taken)
        match what:
            case "worker":
                return {self._random.choice(free)} if free else None
            case "broker":
                return {what} if what not in taken else None
            case _:
                return {"broker", *free} if not taken else None

    def _strike(self, name: str, takes: set[str]) -> None:
        workers = sorted(takes - {"broker"})
        worker = self._random.choice(workers or sorted(self._bench.workers) or [""])
        self._say(f"{time.monotonic() - self._started_s:7.1f} s  {name} ({worker})")
        active = _Active(name, takes, FAULTS[name][2](self._bench, worker), 0.0)
        self._active.append(active)
        self._resume(active)

    def _tend(self) -> None:
        self._bench.keep_alive()
        for active in list(self._active):
            if active.resume_s <= time.monotonic():
                self._resume(active)
        time.sleep(_LOOK_S)

    def _resume(self, active: _Active) -> None:
        try:
            hold_s = next(active.rest)
        except StopIteration:
            self._active.remove(active)
            if not active.struck:
                self._say(f"           {active.name}: did not strike")
            return
        if hold_s is not None and not active.struck:
            active.struck = True
            self._bench.struck[active.name] += 1
        active.resume_s = time.monotonic() + (hold_s or 0.0)
