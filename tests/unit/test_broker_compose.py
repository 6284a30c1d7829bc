"""compose.yaml and Dockerfile: accepted, in step with the code, and naming commands that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from treadle_streams.broker import IMAGE, container_environment

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE = REPOSITORY / "compose.yaml"


def substitute(value: str) -> str:
    """``${NAME:-default}``, also nested, as compose sees it with an empty environment."""
    while (inner := re.sub(r"\$\{\w+:-([^${}]*)\}", r"\1", value)) != value:
        value = inner
    return value


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    document = yaml.safe_load(substitute(COMPOSE.read_text()))
    assert isinstance(document["services"], dict)
    return document["services"]


def test_the_broker_is_the_official_image_with_the_settings_of_the_other_brokers(services: dict[str, Any]) -> None:
    broker = services["broker"]
    assert broker["image"] == IMAGE
    wanted = container_environment(host_port=9092, cluster_id=broker["environment"]["CLUSTER_ID"], inside="broker")
    assert broker["environment"] == wanted
    assert broker["ports"] == ["127.0.0.1:9092:9092"], "reachable from this machine only"


def test_every_process_waits_for_the_workspace_and_finds_the_broker(services: dict[str, Any]) -> None:
    processes = {name: service for name, service in services.items() if name not in ("broker", "init")}
    assert {"worker", "snapshotter", "trainer", "guard"} <= processes.keys()
    for service in processes.values():
        assert service["depends_on"] == {"init": {"condition": "service_completed_successfully"}}
        assert service["environment"]["TREADLE_BOOTSTRAP_SERVERS"] == "broker:19092"
        assert service["volumes"] == ["state:/var/lib/treadle"]
    assert services["init"]["depends_on"] == {"broker": {"condition": "service_healthy"}}


def test_a_gpu_is_reserved_only_in_its_profile(services: dict[str, Any]) -> None:
    reserving = {name for name, service in services.items() if "deploy" in service}
    assert reserving == {"trainer-gpu"}
    assert services["trainer-gpu"]["profiles"] == ["gpu"]


def test_the_image_does_not_run_as_root_and_copies_all_that_its_build_needs() -> None:
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    assert "USER treadle" in lines
    assert lines.index("USER treadle") < lines.index('ENTRYPOINT ["treadle"]')
    let_in = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = set(re.findall(r'"(\w+)/\w+"', (REPOSITORY / "pyproject.toml").read_text().split("[tool.ruff]")[0]))
    assert sources | {"pyproject.toml", "requirements/lock.txt", "README.md", "LICENSE"} <= let_in


@pytest.mark.parametrize("profile", [[], ["--profile", "gpu"]])
def test_docker_compose_accepts_the_file(profile: list[str]) -> None:
    if shutil.which("docker") is None:
        pytest.skip("there is no docker command here")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=30).returncode:
        pytest.skip("the docker command here has no compose plugin")
    command = ["docker", "compose", "--file", str(COMPOSE), *profile, "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("init", "treadle_streams"),
        ("worker", "treadle_streams"),
        ("snapshotter", "treadle_streams"),
        ("trainer", "treadle_trainer"),
        ("trainer-gpu", "treadle_trainer"),
        ("guard", "treadle_trainer"),
    ],
)
def test_the_command_of_a_service_exists_and_takes_its_arguments(
    services: dict[str, Any], name: str, package: str
) -> None:
    cli = pytest.importorskip("treadle.cli", reason="the command line is not built yet")
    pytest.importorskip(f"{package}.cli", reason=f"the commands of {package} are not built yet")
    import click

    words = services[name]["command"]
    # with the root's settings: click keeps the first help option that a command is asked for
    root = click.Context(cli.main, info_name="treadle", **cli.main.context_settings)
    command, context, rest = cli.main, root, list(words)
    while isinstance(command, click.Group):
        found = command.get_command(context, rest[0])
        assert found is not None, f"treadle {' '.join(words)}: there is no {rest[0]!r}"
        command, context = found, click.Context(found, info_name=rest.pop(0), parent=context)
    command.make_context(words[0], rest, parent=context.parent)  # parses the arguments, runs nothing


def test_no_service_with_a_command_is_left_out_of_the_check(services: dict[str, Any]) -> None:
    with_commands = {name for name, service in services.items() if "command" in service}
    assert with_commands == {"init", "worker", "snapshotter", "trainer", "trainer-gpu", "guard"}
