"""Ask a broker whether it is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

_silent = logging.Logger("treadle.broker.probe", level=logging.CRITICAL + 1)


class Probe:
    """A client that asks one cluster for its metadata and remembers the last transport error it heard of."""

    def __init__(self, bootstrap: str, client: Mapping[str, str | int | float | bool] | None = None) -> None:
        self.last_error = ""
        settings: dict[str, Any] = {
            "reconnect.backoff.max.ms": 200,
            "log_level": 0,
            **(client or {}),
            "bootstrap.servers": bootstrap,
            "error_cb": self._on_error,
        }
        # A logger of our own: what librdkafka says while nobody listens yet is no news.
        self._admin = AdminClient(settings, logger=_silent)

    def _on_error(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self.last_error = error.str()

    def cluster_id(self, timeout_s: float) -> str | None:
        """The cluster's id, or None if no broker answered within ``timeout_s`` seconds."""
        try:
            metadata = self._admin.list_topics(timeout=timeout_s)
        except KafkaException as error:
            self.last_error = self.last_error or str(error.args[0])
            return None
        return (metadata.cluster_id or "") if metadata.brokers else None

    def wait(self, timeout_s: float) -> str | None:
        """Ask until someone answers or ``timeout_s`` seconds have passed."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            found = self.cluster_id(min(left, 2.0))
            if found is not None:
                return found
        return None
