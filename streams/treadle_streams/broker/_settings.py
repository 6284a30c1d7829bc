"""What a user may decide about the broker.

| variable | meaning | default |
|---|---|---|
| TREADLE_BROKER | how to run a broker where none is configured: auto, docker, local | auto |
| TREADLE_BROKER_IMAGE | the container image | apache/kafka at the pinned version |
| TREADLE_BROKER_PULL | 1: that image may be pulled | only a present image is used |
| TREADLE_BROKER_HEAP | Java heap of the local broker | 256m |
| TREADLE_CACHE | where Kafka's jars are kept (read in ``_jars``) | treadle in the user's cache directory |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from treadle.settings import Settings

from ._errors import NoProvider
from ._properties import HEAP, IMAGE, SESSION_TIMEOUT_MS

Provider = Literal["auto", "docker", "local"]


@dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    """Which broker to use, and how to run one where none is configured."""

    directory: Path
    """Where a broker that treadle runs keeps its state: data, log, ports, lock."""

    bootstrap_servers: str | None = None
    """Configured servers (``host:port,...``). Given, they are used and nothing is ever started."""

    client: Mapping[str, str | int | float | bool] = field(default_factory=dict, repr=False)
    """Further librdkafka settings for configured servers (SASL, TLS). May hold secrets: never shown."""

    provider: Provider = "auto"
    """``auto`` takes Docker where its engine answers and the image is there, else a local process."""

    image: str = IMAGE
    """The container image; it must understand the official image's ``KAFKA_*`` variables."""

    allow_pull: bool = False
    """Whether the image may be pulled; by default only one that is already present is used."""

    heap: str = HEAP
    """The local broker's Java heap (``-Xmx``)."""

    session_timeout_ms: int = SESSION_TIMEOUT_MS
    """After kill -9 the broker can register again only when this long has passed."""

    die_with_parent: bool = False
    """Whether a local broker ends with this process; for tests and the demo."""

    connect_timeout_s: float = 10.0
    """How long configured servers have to answer."""

    start_timeout_s: float = 90.0
    """How long a started broker has to become ready (without the download of its jars)."""

    @classmethod
    def of(
        cls,
        settings: Settings,
        environ: Mapping[str, str] | None = None,
        *,
        client: Mapping[str, str | int | float | bool] | None = None,
        die_with_parent: bool = False,
    ) -> BrokerSettings:
        """The servers and the home of ``settings``; the rest from the variables above.

        Raises:
            NoProvider: ``TREADLE_BROKER`` names no provider.
        """
        env = os.environ if environ is None else environ
        provider = env.get("TREADLE_BROKER") or "auto"
        if provider not in get_args(Provider):
            known = ", ".join(get_args(Provider))
            raise NoProvider(provider, "there is no such provider", f"Set TREADLE_BROKER to one of {known}.")
        return cls(
            directory=settings.home / "broker",
            bootstrap_servers=settings.configured_servers,
            client=client or {},
            provider=cast("Provider", provider),
            image=env.get("TREADLE_BROKER_IMAGE") or IMAGE,
            allow_pull=env.get("TREADLE_BROKER_PULL") == "1",
            heap=env.get("TREADLE_BROKER_HEAP") or HEAP,
            die_with_parent=die_with_parent,
        )
