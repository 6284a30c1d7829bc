"""The broker on real parts: through it, two starters at once, crashes, refusals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from treadle.settings import Settings, bootstrap_file
from treadle_streams.broker import (
    BrokerDataDamaged,
    BrokerPortTaken,
    BrokerSettings,
    BrokerStartFailed,
    BrokerUnreachable,
    DockerBroker,
    LocalBroker,
    _docker,
    _process,
    _state,
    down,
    resolve,
    up,
)


def create_topic(bootstrap: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    created = admin.create_topics([NewTopic(topic, 1, 1, config={"max.message.bytes": str(16 * 1024 * 1024)})])
    created[topic].result(20)


def produce(bootstrap: str, topic: str, values: list[bytes]) -> None:
    failures: list[str] = []
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "message.max.bytes": 16 * 1024 * 1024,
            "message.timeout.ms": 20_000,
            "log_level": 0,
        }
    )
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, _: failures.append(str(error)) if error else None)
    left = producer.flush(20)
    if left or failures:
        raise KafkaException(f"{left} left, {failures}")


def consume(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"{topic}.group",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "session.timeout.ms": 6_000,
        }
    )
    consumer.subscribe([topic])
    found: list[bytes] = []
    end = time.monotonic() + 20
    try:
        while len(found) < count and time.monotonic() < end:
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                value = message.value()
                assert value is not None
                found.append(value)
    finally:
        consumer.close()
    return found


def wait_until(condition: Callable[[], bool], deadline_s: float, what: str) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.02)


def jvms_of(directory: Path) -> list[int]:
    """Every broker process of the directory, found without the broker's own bookkeeping."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"kafka.Kafka" in arguments and os.fsencode(directory / "server.properties") in arguments:
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A local broker that several tests attach to and none ends; its path has a blank and a letter outside ASCII."""
    local = LocalBroker(tmp_path_factory.mktemp("steady") / "bröker 1", die_with_parent=True)
    local.start()
    yield local
    local.kill()


def test_a_record_and_one_of_ten_megabytes_go_through_the_broker(broker: str, workspace_name: str) -> None:
    topic = f"treadle.{workspace_name}.interactions"
    create_topic(broker, topic)
    values = [b"small", os.urandom(10 * 1024 * 1024)]
    produce(broker, topic, values)
    assert consume(broker, topic, 2) == values


def test_a_topic_that_nobody_created_is_not_made_by_asking_for_it(broker: str, workspace_name: str) -> None:
    topic = f"treadle.{workspace_name}.typo"
    asking = Producer({"bootstrap.servers": broker, "allow.auto.create.topics": True})
    error = asking.list_topics(topic, timeout=20).topics[topic].error
    assert error is not None
    assert error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
    assert topic not in asking.list_topics(timeout=20).topics


def test_two_racing_starters_get_one_broker_which_outlives_them_and_ends_with_down(tmp_path: Path) -> None:
    code = (
        "import sys; from treadle.settings import Settings; from treadle_streams.broker import up;"
        "print(up(Settings.load()).bootstrap)"
    )
    environment = {**os.environ, "TREADLE_HOME": str(tmp_path), "TREADLE_BROKER": "local"}
    starters = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    settings = Settings.load({"TREADLE_HOME": str(tmp_path)})
    try:
        addresses = {starter.communicate(timeout=90)[0].strip() for starter in starters}
        assert [starter.returncode for starter in starters] == [0, 0]
        assert addresses == {settings.bootstrap_servers}
        assert len(jvms_of(tmp_path / "broker")) == 1
        create_topic(settings.bootstrap_servers, "still-there")
    finally:
        assert down(settings)
    assert jvms_of(tmp_path / "broker") == []
    assert not bootstrap_file(tmp_path).exists()
    assert not down(settings), "a second down finds nothing to stop"


def test_after_kill_9_the_broker_is_back_at_its_port_with_every_acknowledged_record(own_broker: LocalBroker) -> None:
    address, first = own_broker.bootstrap, own_broker.state()
    values = [b"%d" % number for number in range(5_000)]
    create_topic(address, "t")
    produce(address, "t", values)
    own_broker.kill()
    assert own_broker.state() is None
    assert own_broker.bootstrap == address, "the address stays known while it is down"
    own_broker.start()
    second = own_broker.state()
    assert own_broker.bootstrap == address
    assert first is not None
    assert second is not None
    assert second.pid != first.pid
    assert consume(address, "t", len(values)) == values


def test_a_broker_whose_starter_died_before_it_wrote_the_state_is_adopted(steady: LocalBroker) -> None:
    before = steady.state()
    (steady.directory / "state.json").unlink()
    assert steady.state() is None
    steady.start()
    assert steady.state() == before


def test_another_object_on_the_same_directory_attaches(steady: LocalBroker) -> None:
    other = LocalBroker(steady.directory).start()
    assert (other.bootstrap, other.state(), other.cluster_id) == (steady.bootstrap, steady.state(), steady.cluster_id)
    assert jvms_of(steady.directory) == [other.state().pid]  # type: ignore[union-attr]


def test_with_die_with_parent_the_broker_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from treadle_streams.broker import LocalBroker;"
        "b = LocalBroker(sys.argv[1], die_with_parent=True).start(wait=False); print(b.state().pid, flush=True); time.sleep(120)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "b")], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        ticks = _process.start_ticks(pid)
        assert ticks is not None
        starter.send_signal(signal.SIGKILL)
    wait_until(lambda: _process.start_ticks(pid) != ticks, 20, "the broker ends")


def test_configured_servers_that_do_not_answer_are_an_error_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        settings = BrokerSettings(directory=tmp_path / "b", bootstrap_servers=address, connect_timeout_s=1.0)
        with pytest.raises(BrokerUnreachable, match=address) as caught:
            resolve(settings)
    assert caught.value.retriable
    assert "TREADLE_BOOTSTRAP_SERVERS" in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_configured_servers_are_used_never_announced_and_never_stopped(steady: LocalBroker, tmp_path: Path) -> None:
    settings = Settings.load({"TREADLE_HOME": str(tmp_path), "TREADLE_BOOTSTRAP_SERVERS": steady.bootstrap})
    broker = up(settings)
    assert (broker.kind, broker.bootstrap) == ("configured", steady.bootstrap)
    broker.stop()
    assert not down(settings)
    assert list(tmp_path.iterdir()) == []
    assert steady.state() is not None


def test_a_port_that_someone_else_took_is_named_and_not_replaced_silently(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        _state.write(tmp_path / "ports.json", _state.Ports(port=port, controller_port=port))
        with pytest.raises(BrokerPortTaken, match=str(port)):
            LocalBroker(tmp_path).start()
    assert jvms_of(tmp_path) == []


def test_a_data_directory_that_is_not_kafkas_is_left_untouched(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("x")
    with pytest.raises(BrokerDataDamaged, match=r"meta\.properties"):
        LocalBroker(tmp_path).start()
    assert (tmp_path / "data" / "precious").read_text() == "x"


def test_a_broker_that_ends_at_its_start_reports_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(BrokerStartFailed, match="heap") as caught:
        LocalBroker(tmp_path, heap="1k").start()
    assert "heap" in caught.value.log_tail
    assert not (tmp_path / "data").exists(), "a failed format leaves nothing half done"


def test_a_container_keeps_address_and_records_when_stopped_and_when_removed(tmp_path: Path) -> None:
    refusal = _docker.docker_refusal()
    if refusal is not None:
        pytest.skip(f"Docker cannot run the broker here: {refusal}")
    container = DockerBroker(tmp_path)
    try:
        address = container.start().bootstrap
        assert DockerBroker(tmp_path).start().bootstrap == address, "a second object attaches"
        create_topic(address, "t")
        produce(address, "t", [b"kept"])
        container.stop()
        assert not container.running
        record = _state.read(tmp_path / "docker.json", _docker._Container)
        assert record is not None
        subprocess.run(["docker", "rm", record.name], check=True, capture_output=True)
        assert container.start().bootstrap == address
        assert consume(address, "t", 1) == [b"kept"]
    finally:
        container.delete()
    assert not container.known
