"""Which broker: configured, else Docker, else local; and the broker's part of ``treadle up`` and ``treadle down``."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from treadle.settings import Settings, bootstrap_file

from ._docker import DockerBroker, docker_refusal
from ._errors import NoProvider
from ._local import LocalBroker
from ._provider import Broker, ConfiguredBroker
from ._settings import BrokerSettings

_log = logging.getLogger("treadle.broker")


def choose(settings: BrokerSettings) -> Broker:
    """Decide which broker ``resolve`` uses; starts nothing and asks no broker.

    1. Configured servers: them, whatever else is here. Never a fallback.
    2. The provider that already keeps data in the directory: another one would show an empty Kafka.
    3. Docker, where its engine answers within 2 s and the image is there (or may be pulled).
    4. A local process.

    Raises:
        NoProvider: the provider was named, and cannot be used or is not the one that keeps the data.
    """
    if settings.bootstrap_servers:
        return ConfiguredBroker(settings)
    docker = DockerBroker(settings.directory, image=settings.image, allow_pull=settings.allow_pull)
    local = LocalBroker(
        settings.directory,
        die_with_parent=settings.die_with_parent,
        heap=settings.heap,
        session_timeout_ms=settings.session_timeout_ms,
    )
    keeper = docker if docker.known else local if local.cluster_id is not None else None
    if keeper is not None:
        if settings.provider not in ("auto", keeper.kind):
            raise NoProvider(
                settings.provider,
                f"the broker in {str(settings.directory)!r} was made by {keeper.kind!r} and keeps its data there",
                f"Set TREADLE_BROKER={keeper.kind}, or another TREADLE_HOME for a new, empty broker.",
            )
        return keeper
    if settings.provider == "local":
        return local
    refusal = docker_refusal(settings.image, allow_pull=settings.allow_pull)
    if refusal is None:
        return docker
    if settings.provider == "docker":
        raise NoProvider("docker", refusal, "Repair that, or set TREADLE_BROKER=local.")
    _log.debug("not Docker: %s", refusal)
    return local


def resolve(settings: BrokerSettings) -> Broker:
    """The broker to use, running and answering.

    Raises:
        BrokerUnreachable: servers are configured and do not answer; nothing was started.
        BrokerError: of any kind, where a broker had to be started and could not.
    """
    broker = choose(settings)
    broker.start(settings.connect_timeout_s if broker.kind == "configured" else settings.start_timeout_s)
    _log.info("using the %s broker at %s", broker.kind, broker.bootstrap)
    return broker


def up(settings: Settings) -> Broker:
    """Make a broker answer and, where treadle runs it, announce its address to every other command.

    Raises:
        BrokerError: as ``resolve``.
    """
    broker = resolve(BrokerSettings.of(settings))
    if broker.kind != "configured":
        announce(settings.home, broker.bootstrap)
    return broker


def down(settings: Settings, *, timeout_s: float = 30.0) -> bool:
    """Stop the broker that treadle runs for this home; its data stays. Configured servers are left alone.

    Returns:
        True if one ran.
    """
    directory = settings.home / "broker"
    docker, local = DockerBroker(directory), LocalBroker(directory)
    ran = False
    if docker.known:
        ran = docker.running
        docker.stop(timeout_s)
    if local.state() is not None:
        ran = True
    local.stop(timeout_s)
    bootstrap_file(settings.home).unlink(missing_ok=True)
    return ran


def announce(home: Path, bootstrap: str) -> None:
    """Write the address where ``Settings.bootstrap_servers`` of every process with this home looks for it."""
    path = bootstrap_file(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(json.dumps({"bootstrap_servers": bootstrap}), encoding="utf-8")
    new.replace(path)
