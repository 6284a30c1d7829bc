"""What every broker can do, whoever runs it."""

from __future__ import annotations

import logging
from typing import Literal, Protocol

from ._errors import BrokerUnreachable
from ._probe import Probe
from ._settings import BrokerSettings

_log = logging.getLogger("treadle.broker")

Kind = Literal["configured", "docker", "local"]


class Broker(Protocol):
    """A Kafka to talk to."""

    @property
    def kind(self) -> Kind:
        """Who runs it."""
        ...

    @property
    def bootstrap(self) -> str:
        """``host:port,...`` for clients."""
        ...

    def start(self, timeout_s: float = ...) -> Broker:
        """Make it answer, or attach to it where it does; safe to repeat."""
        ...

    def stop(self, timeout_s: float = ...) -> None:
        """Shut it down where treadle runs it; data and address stay. Does nothing where none runs."""
        ...


class ConfiguredBroker:
    """Servers that the user named: checked, never started, never stopped, never replaced."""

    kind: Kind = "configured"

    def __init__(self, settings: BrokerSettings) -> None:
        assert settings.bootstrap_servers is not None
        self._settings = settings
        self._bootstrap = settings.bootstrap_servers

    @property
    def bootstrap(self) -> str:
        """The configured servers."""
        return self._bootstrap

    def start(self, timeout_s: float | None = None) -> ConfiguredBroker:
        """Check that one of the servers answers.

        Raises:
            BrokerUnreachable: none did in ``timeout_s`` (default: the settings' connect_timeout_s) seconds.
        """
        wait_s = self._settings.connect_timeout_s if timeout_s is None else timeout_s
        probe = Probe(self.bootstrap, self._settings.client)
        if probe.wait(wait_s) is None:
            raise BrokerUnreachable(self.bootstrap, wait_s, probe.last_error)
        return self

    def stop(self, timeout_s: float = 0.0) -> None:
        """Leave it alone: it is not treadle's."""
