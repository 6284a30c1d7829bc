"""The recorder's accounts: what became of every event it was handed."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final, NamedTuple

_LOG = logging.getLogger("treadle")
QUIET_S: Final = 10.0
"""After a complaint of one kind the next of that kind waits so long: an outage must not flood the host's log."""


class Stats(NamedTuple):
    """Counts of one recorder in one process. At any moment `produced == acked + spooled + refused`."""

    produced: int
    """Events handed over."""
    acked: int
    """Events that every in-sync replica has."""
    spooled: int
    """Events on this machine's disk, in the bounded queue, or on their way: not acknowledged yet."""
    refused: int
    """Events that will not arrive: invalid, spool or queue full, or never accepted by Kafka. Each was logged."""
    skipped: int
    """Events not even counted as produced, because TREADLE_DISABLED is set."""


class Ledger:
    """Thread-safe counts. An event is opened once and then settled once, as acked or refused.

    The lock is reentrant: a signal handler may ask for the counts while it interrupts their change.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._produced = self._acked = self._refused = self._skipped = 0
        self._undelivered: str | None = None
        self._quiet_until: dict[str, float] = {}
        self._kept_back: dict[str, int] = {}

    def open(self) -> None:
        """One more event, spooled until it is settled."""
        with self._changed:
            self._produced += 1

    def skip(self) -> None:
        """One event that capture, being disabled, ignores."""
        with self._changed:
            self._skipped += 1

    def ack(self) -> None:
        """One event arrived."""
        with self._changed:
            self._acked += 1
            self._changed.notify_all()

    def refuse(self) -> None:
        """One event will not arrive."""
        with self._changed:
            self._refused += 1
            self._changed.notify_all()

    def settle(self, problem: str | None) -> None:
        """What a delivery says of one event: None, or why it will not arrive."""
        if problem is None:
            self.ack()
            return
        self.worry(problem)
        self.refuse()
        self.complain("not accepted by Kafka", problem)

    def worry(self, problem: str) -> None:
        """Remember why Kafka does not accept an event (it may later)."""
        with self._changed:
            self._undelivered = self._undelivered or problem
            self._changed.notify_all()

    def take_undelivered(self) -> str | None:
        """The first reason for which Kafka did not accept an event since the last call."""
        with self._changed:
            problem, self._undelivered = self._undelivered, None
            return problem

    def stats(self) -> Stats:
        """The counts, all of one moment."""
        with self._changed:
            spooled = self._produced - self._acked - self._refused
            return Stats(self._produced, self._acked, spooled, self._refused, self._skipped)

    def wait_settled(self, timeout_s: float, *, or_worried: bool = False) -> int:
        """Wait until nothing is under way (or, on demand, until Kafka did not accept something); how many events still are."""

        def over() -> bool:
            return self._produced == self._acked + self._refused or (or_worried and self._undelivered is not None)

        with self._changed:
            self._changed.wait_for(over, timeout_s)
            return self._produced - self._acked - self._refused

    def complain(self, kind: str, problem: object) -> None:
        """Log a problem, at most one of a kind in QUIET_S; those kept back are counted in the next line."""
        moment = time.monotonic()
        with self._changed:
            if moment < self._quiet_until.get(kind, 0.0):
                self._kept_back[kind] = self._kept_back.get(kind, 0) + 1
                return
            self._quiet_until[kind] = moment + QUIET_S
            more = self._kept_back.pop(kind, 0)
        _LOG.warning("%s: %s%s", kind, problem, f" (and {more} more like it)" if more else "")
