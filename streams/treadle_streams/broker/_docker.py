"""The official Apache Kafka image, run through the docker command line."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import time
from pathlib import Path

import msgspec

from . import _ports
from ._errors import BrokerPortTaken, BrokerStartFailed, DockerFailed
from ._probe import Probe
from ._properties import CONTAINER_DATA, IMAGE, container_environment, new_cluster_id
from ._provider import Kind
from ._state import Directory, read, write

_log = logging.getLogger("treadle.broker")

_ANSWER_S = 2.0
_PULL_S = 900.0


class _Container(msgspec.Struct, frozen=True, kw_only=True):
    """What the directory remembers of its container."""

    name: str
    image: str
    port: int
    cluster_id: str


def docker_refusal(image: str = IMAGE, *, allow_pull: bool = False) -> str | None:
    """Why Docker cannot run the broker here, or None if it can: its engine answers within 2 s, and has the image."""
    try:
        context = _docker("context", "inspect", "--format", "{{.Endpoints.docker.Host}}", timeout_s=_ANSWER_S)
        if context and not context.startswith("unix://"):
            return f"its engine runs elsewhere ({context.split('://')[0]}), and the broker listens on that machine only"
        version = _docker("info", "--format", "{{.ServerVersion}}", timeout_s=_ANSWER_S)
    except DockerFailed as error:
        return f"no engine answers: {error.output.strip()[-200:]}"
    if not version:
        return "no engine answers"
    if not allow_pull and not _has_image(image):
        return f"the image {image} is not there (docker pull {image}, or TREADLE_BROKER_PULL=1)"
    return None


def docker_ready(image: str = IMAGE) -> bool:
    """True where a Docker engine answers within 2 s and already has the image."""
    return docker_refusal(image) is None


class DockerBroker:
    """One broker in one container; its data in a named volume, its address and name in ``directory``.

    Args:
        directory: remembers the container. The same directory is the same broker.
        image: used when the container is made.
        allow_pull: whether a missing image may be pulled.
    """

    kind: Kind = "docker"

    def __init__(self, directory: Path | str, *, image: str = IMAGE, allow_pull: bool = False) -> None:
        self.directory = Path(directory).absolute()
        self._image = image
        self._allow_pull = allow_pull
        self._files = Directory(self.directory)
        self._record = self.directory / "docker.json"

    @property
    def known(self) -> bool:
        """True if this directory's broker lives in a container."""
        return read(self._record, _Container) is not None

    @property
    def bootstrap(self) -> str:
        """The address for clients on this host.

        Raises:
            BrokerStartFailed: it was never started.
        """
        container = read(self._record, _Container)
        if container is None:
            raise BrokerStartFailed(self.directory, "it was never started", way_out="Call start() first.")
        return f"{_ports.HOST}:{container.port}"

    @property
    def running(self) -> bool:
        """True while the container runs."""
        container = read(self._record, _Container)
        return container is not None and self._status(container.name) == "running"

    def start(self, timeout_s: float = 120.0) -> DockerBroker:
        """Make the container, start it, or attach to it; return when the broker answers.

        Raises:
            DockerFailed: docker refused.
            BrokerPortTaken: another program has the port.
            BrokerStartFailed: it was not ready in ``timeout_s`` seconds; BrokerBusy: another starter hangs.
        """
        with self._files.locked(timeout_s):
            container = read(self._record, _Container)
            status = None if container is None else self._status(container.name)
            if container is None or status is None:
                container = self._create(container)
            if status != "running":
                if not _ports.is_free(container.port):
                    raise BrokerPortTaken(self.directory, container.port)
                _docker("start", container.name)
                _log.info("started container %s at %s", container.name, self.bootstrap)
        self._wait(container, timeout_s)
        return self

    def stop(self, timeout_s: float = 30.0) -> None:
        """Stop the container; it and its volume stay, so that the next start has the data."""
        if not self.known:
            return
        with self._files.locked(timeout_s + 15.0):
            container = read(self._record, _Container)
            if container is not None and self._status(container.name) == "running":
                _docker("stop", "-t", str(int(timeout_s)), container.name, timeout_s=timeout_s + 30.0)

    def delete(self) -> None:
        """Remove the container and its volume: all its data is lost. Does nothing where none was made."""
        container = read(self._record, _Container)
        if container is None:
            return
        with self._files.locked(60.0):
            if self._status(container.name) is not None:
                _docker("rm", "--force", "--volumes", container.name)  # the anonymous ones
            _docker("volume", "rm", "--force", container.name)
            self._record.unlink(missing_ok=True)

    def _create(self, former: _Container | None) -> _Container:
        """Make the container; one that was removed comes back with its old port, id and volume."""
        if not _has_image(self._image):
            if not self._allow_pull:
                raise DockerFailed(f"docker image inspect {self._image}", "the image is not there")
            _log.info("pulling %s", self._image)
            _docker("pull", self._image, timeout_s=_PULL_S)
        name = f"treadle-broker-{hashlib.sha256(str(self.directory).encode()).hexdigest()[:12]}"
        with _ports.reserved(1) as (free,):
            container = former or _Container(name=name, image=self._image, port=free, cluster_id=new_cluster_id())
        variables = container_environment(host_port=container.port, cluster_id=container.cluster_id)
        _docker(
            "create",
            *("--name", container.name),
            *("--label", f"dev.treadle.directory={self.directory}"),
            *("--publish", f"{_ports.HOST}:{container.port}:9092"),
            *("--volume", f"{container.name}:{CONTAINER_DATA}"),
            *("--stop-timeout", "30"),
            *(part for name, value in variables.items() for part in ("--env", f"{name}={value}")),
            self._image,
        )
        write(self._record, container)
        return container

    def _wait(self, container: _Container, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        probe: Probe | None = None
        while time.monotonic() < end:
            if self._status(container.name) != "running":
                raise self._failed("its container ended", container)
            if _ports.is_open(container.port):
                probe = probe or Probe(f"{_ports.HOST}:{container.port}")
                found = probe.cluster_id(2.0)
                if found == container.cluster_id:
                    return
                if found is not None:
                    raise self._failed(f"another cluster ({found}) answers at {self.bootstrap}", container)
            time.sleep(0.1)
        raise self._failed(f"it was not ready within {timeout_s:g} s", container)

    def _failed(self, reason: str, container: _Container) -> BrokerStartFailed:
        done = _run("logs", "--tail", "40", container.name, timeout_s=30.0)
        return BrokerStartFailed(
            self.directory, reason, done.stdout + done.stderr, way_out=f"Its whole log: docker logs {container.name}."
        )

    @staticmethod
    def _status(name: str) -> str | None:
        """``running``, ``exited``, ``created`` ...; None if there is no such container."""
        done = _run("container", "inspect", "--format", "{{json .State.Status}}", name, timeout_s=30.0)
        return str(json.loads(done.stdout)) if done.returncode == 0 else None


def _has_image(image: str) -> bool:
    return _run("image", "inspect", "--format", "{{.Id}}", image, timeout_s=30.0).returncode == 0


def _docker(*arguments: str, timeout_s: float = 60.0) -> str:
    done = _run(*arguments, timeout_s=timeout_s)
    if done.returncode:
        raise DockerFailed(f"docker {' '.join(arguments[:2])}", done.stderr or done.stdout)
    return done.stdout.strip()


def _run(*arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["docker", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except FileNotFoundError:
        raise DockerFailed(f"docker {arguments[0]}", "there is no docker command") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DockerFailed(f"docker {arguments[0]}", str(error)) from None
