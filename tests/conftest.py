"""What all tests share: a broker for the session, brokers to break, fresh workspace names, the real data set.

Warnings are errors here, so whatever these fixtures start they also end.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from treadle_streams.broker import LocalBroker

_REPOSITORY = Path(__file__).resolve().parent.parent
_CONTAINER_START_TIMEOUT_S = 120


@pytest.fixture(scope="session", autouse=True)
def _settings_of_the_user_do_not_count(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No ``TREADLE_*`` variable of the caller reaches a test, but for the cache of downloaded jars."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TREADLE_") and name != "TREADLE_CACHE"]:
            patch.delenv(name)
        patch.setenv("TREADLE_HOME", str(tmp_path_factory.mktemp("treadle-home")))
        yield


@pytest.fixture(autouse=True)
def _spools_are_not_shared(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test leaves in a spool is not adopted, and sent, by the next one that uses the same workspace name."""
    monkeypatch.setenv("TREADLE_SPOOL", str(tmp_path_factory.getbasetemp() / f"spool-{secrets.token_hex(6)}"))


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap address of one real Kafka for the whole session: never stop it, use a fresh workspace a test.

    A container where a Docker engine answers and the image is already there, else a local broker.
    """
    from treadle_streams.broker import IMAGE, LocalBroker, docker_ready

    if docker_ready(IMAGE):
        container = _kafka_container(IMAGE)
        try:
            container.start()
            yield container.bootstrap
        finally:
            container.stop()
        return
    local = LocalBroker(tmp_path_factory.mktemp("broker"), die_with_parent=True)
    local.start()
    try:
        yield local.bootstrap
    finally:
        local.stop()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[LocalBroker]:
    """A started local broker of the test's own, to be stopped, killed and started again at will."""
    from treadle_streams.broker import LocalBroker

    # A short session: after kill() the broker is back within 3-4 s.
    local = LocalBroker(tmp_path / "own-broker", die_with_parent=True, session_timeout_ms=1500)
    local.start()
    try:
        yield local
    finally:
        local.kill()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of one real S3 server on this machine for the whole session: use a fresh `bucket` a test."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://NAME` of a fresh bucket; the environment says how it is reached, to this process and to its children."""
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "a-secret-for-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
    }.items():
        monkeypatch.setenv(name, value)
    name = f"b-{secrets.token_hex(6)}"
    client = boto3.client("s3")
    try:
        client.create_bucket(Bucket=name)
    finally:
        client.close()
    return f"s3://{name}"


@pytest.fixture
def workspace_name() -> str:
    """A valid workspace name that no other test uses."""
    return f"t-{secrets.token_hex(6)}"


@pytest.fixture(scope="session")
def tau_airline() -> Path:
    """The folder of the tau-bench airline logs beside the checkout: 200 interactions, 595 outcomes."""
    folder = _REPOSITORY.parent / "shared" / "data" / "tau-airline"
    if not folder.is_dir():
        pytest.skip(f"the real data set is not on this machine ({folder.name} beside the checkout)")
    return folder


def _kafka_container(image: str) -> Any:
    # The resource reaper is an image of its own, which may not be there; the fixture stops what it starts.
    os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy
    from treadle_streams.broker import container_environment, new_cluster_id, reserved_ports

    # testcontainers' own KafkaContainer is for another vendor's image only.
    class ApacheKafkaContainer(DockerContainer):
        bootstrap = ""

    with reserved_ports(1) as (port,):
        pass
    container = ApacheKafkaContainer(image)
    container.bootstrap = f"127.0.0.1:{port}"
    # Not with_bind_ports, which takes no address: the port is for this machine only.
    container.ports["9092/tcp"] = ("127.0.0.1", port)
    for name, value in container_environment(host_port=port, cluster_id=new_cluster_id()).items():
        container.with_env(name, value)
    container.waiting_for(
        LogMessageWaitStrategy("Kafka Server started").with_startup_timeout(_CONTAINER_START_TIMEOUT_S)
    )
    return container
