"""Keeps the broker running that treadle itself runs for this home. Configured servers are not its business."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from treadle.settings import Settings

from treadle_streams.broker import Broker, BrokerError, BrokerSettings, DockerBroker, LocalBroker, announce, choose
from treadle_streams.supervisor._folder import BrokerStatus
from treadle_streams.supervisor._life import Life, Restarts

__all__ = ["BrokerKeeper"]

_log = logging.getLogger("treadle.supervisor")

_LOOK_S: Final = {"local": 0.5, "docker": 5.0}
"""A look at a local process reads two small files; at a container, it runs the docker command."""


class BrokerKeeper:
    """Looks after one broker in a thread, since starting one takes seconds. The broker outlives it."""

    def __init__(self, settings: Settings, restarts: Restarts | None = None) -> None:
        """`settings` as for `broker.up`, which has made the broker answer before."""
        self._home = settings.home
        self._settings = BrokerSettings.of(settings)
        self._broker: Broker = choose(self._settings)
        self._rule = restarts or Restarts()
        self._life = Life().started(time.monotonic())
        self._last_error = ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="broker-keeper", daemon=True)

    def status(self) -> BrokerStatus:
        """The broker at this moment."""
        return BrokerStatus(
            kind=self._broker.kind,
            bootstrap_servers=self._broker.bootstrap,
            state=self._life.state(time.monotonic(), self._rule),
            restarts=self._life.restarts,
            last_error=self._last_error,
        )

    def start(self) -> BrokerKeeper:
        """Begin to look."""
        if self._broker.kind != "configured":
            self._thread.start()
        return self

    def stop(self) -> None:
        """Look no more. A start that is under way is not waited for: whoever stops the broker next takes its lock."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _run(self) -> None:
        while not self._end.wait(_LOOK_S.get(self._broker.kind, 1.0)):
            try:
                self._look()
            except Exception:
                _log.exception("broker: looking after it failed; trying again")

    def _look(self) -> None:
        now = time.monotonic()
        if self._life.phase == "alive" and not self._running():
            self._life = self._life.ended(now, self._rule, 0, "")
            _log.warning("broker: ended; next start in %.1f s", self._life.due - now)
        if not self._life.is_due(now):
            return
        try:
            self._broker.start(self._settings.start_timeout_s)
        except BrokerError as err:
            self._last_error = str(err)
            self._life = self._life.not_started(time.monotonic(), self._rule, self._last_error)
            _log.error("broker: %s", err)
            return
        announce(self._home, self._broker.bootstrap)
        self._life = self._life.started(time.monotonic())
        _log.info("broker: started again at %s", self._broker.bootstrap)

    def _running(self) -> bool:
        match self._broker:
            case LocalBroker():
                return self._broker.state() is not None
            case DockerBroker():
                return self._broker.running
            case _:
                return True
