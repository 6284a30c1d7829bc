"""The engines of benchmarks/join.py: how each is installed, started and read. Peers get environments of their own in benchmarks/.peers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = HERE / ".peers"
KAFKA_STREAMS = "4.3.1"
QUIX = "3.28.1"
BYTEWAX = "0.21.1"


class Missing(Exception):
    """A peer that this machine cannot run, and why."""


@dataclass(frozen=True)
class Run:
    """One engine's names and folders in one measurement."""

    servers: str
    workspace: str
    name: str
    folder: Path
    partitions: int
    out: str
    changelog: str

    def environment(self, **more: str) -> dict[str, str]:
        """What every engine finds in its environment."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TREADLE_")}
        return {
            **kept,
            "SERVERS": self.servers,
            "RUN": self.name,
            "DATA": str(self.folder / "state"),
            "INTERACTIONS": f"treadle.{self.workspace}.interactions",
            "OUTCOMES": f"treadle.{self.workspace}.outcomes",
            "OUT": self.out,
            "CHANGELOG": self.changelog,
            "PARTITIONS": str(self.partitions),
            **more,
        }


@dataclass(frozen=True)
class Engine:
    """How to install, start and name an engine. `install` raises Missing and returns the version that runs."""

    install: Callable[[], str]
    command: Callable[[Run], tuple[list[str], dict[str, str]]]
    joins: bool = True
    """Whether its rows are checked: the floor joins nothing."""
    own_topics: tuple[str, ...] = field(default=())
    """Topics to make beforehand, of RUN, with compaction."""


def _treadle(run: Run) -> tuple[list[str], dict[str, str]]:
    home = {"TREADLE_HOME": str(run.folder), "TREADLE_BOOTSTRAP_SERVERS": run.servers}
    return [sys.executable, "-m", "treadle", "worker", "--workspace", run.workspace], run.environment(**home)


def _two_workers(run: Run) -> tuple[list[str], dict[str, str]]:
    given = {"WORKSPACE": run.workspace, "TREADLE_BOOTSTRAP_SERVERS": run.servers}
    return [sys.executable, str(HERE / "join_peers" / "two_workers.py")], run.environment(**given)


def _java(guarantee: str) -> Callable[[Run], tuple[list[str], dict[str, str]]]:
    def command(run: Run) -> tuple[list[str], dict[str, str]]:
        java = shutil.which("java") or "java"
        flags = ["-Xms512m", "-Xmx1500m", "-XX:+UseParallelGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"]
        paths = f"{PEERS / 'kafka-streams' / 'classes'}:{PEERS / 'kafka-streams' / 'lib'}/*"
        return [java, *flags, "-cp", paths, "JoinPeer"], run.environment(GUARANTEE=guarantee)

    return command


def _install_java() -> str:
    folder = PEERS / "kafka-streams"
    javac = shutil.which("javac")
    if javac is None or shutil.which("java") is None:
        raise Missing("no JDK (javac, java) on PATH")
    if not (folder / "lib").is_dir():
        import jgo

        coordinates = f"org.apache.kafka:kafka-streams:{KAFKA_STREAMS}+org.slf4j:slf4j-simple:2.0.17"
        found = jgo.build(coordinates, cache_dir=folder / "cache")
        made = folder / "lib.part"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        for kind in ("jars", "modules"):
            for jar in (found.path / kind).glob("*.jar"):
                shutil.copy(jar.resolve(), made / jar.name)
        made.rename(folder / "lib")
    classes = folder / "classes"
    ran = subprocess.run(
        [javac, "-cp", f"{folder / 'lib'}/*", "-d", str(classes), str(HERE / "join_peers" / "JoinPeer.java")],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise Missing(f"javac: {ran.stderr[-500:]}")
    return KAFKA_STREAMS


def _own_python(name: str, *packages: str) -> Path:
    """The interpreter of an environment with these packages."""
    folder = PEERS / name
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        uv = Path(sys.executable).parent / "uv"
        installer = [str(uv), "pip", "install", "--quiet", "--python", str(python), *packages]
        for step in ([str(uv), "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], installer):
            ran = subprocess.run(step, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise Missing(f"{' '.join(step)}: {ran.stderr[-300:]}")
        (folder / ".installed").touch()
    return python


def _quix(run: Run) -> tuple[list[str], dict[str, str]]:
    return [str(PEERS / "quix/bin/python"), str(HERE / "join_peers/quix_peer.py")], run.environment()


def _bytewax(run: Run) -> tuple[list[str], dict[str, str]]:
    python = str(PEERS / "bytewax/bin/python")
    recovery = run.folder / "recovery"
    recovery.mkdir()
    subprocess.run([python, "-m", "bytewax.recovery", str(recovery), str(run.partitions)], check=True)
    flow = str(HERE / "join_peers/bytewax_peer.py")
    options = ["-r", str(recovery), "-s", "1", "-b", "0", "-w", "1"]
    return [python, "-m", "bytewax.run", flow, *options], run.environment()


def _script(name: str) -> Callable[[Run], tuple[list[str], dict[str, str]]]:
    def command(run: Run) -> tuple[list[str], dict[str, str]]:
        more = ["worker"] if name == "faust_peer.py" else []
        return [sys.executable, str(HERE / "join_peers" / name), *more], run.environment()

    return command


def _install_quix() -> str:
    _own_python("quix", f"quixstreams=={QUIX}")
    return QUIX


def _install_bytewax() -> str:
    _own_python("bytewax", f"bytewax[kafka]=={BYTEWAX}")
    return BYTEWAX


ENGINES: dict[str, Engine] = {
    "floor": Engine(lambda: version("confluent-kafka"), _script("floor.py"), joins=False, own_topics=("-changelog",)),
    "treadle": Engine(lambda: version("treadle"), _treadle),
    "treadle_two": Engine(lambda: version("treadle"), _two_workers),
    "kafka_streams": Engine(_install_java, _java("at_least_once")),
    "kafka_streams_eos": Engine(_install_java, _java("exactly_once_v2")),
    "quix": Engine(_install_quix, _quix),
    "bytewax": Engine(_install_bytewax, _bytewax),
    "faust": Engine(lambda: version("faust-streaming"), _script("faust_peer.py"), own_topics=("-state-changelog",)),
}


def row_of(engine: str, value: bytes) -> tuple[bytes, float] | None:
    """(interaction, reward) of a row as the engine wrote it; None for a record that is no joined row."""
    if engine.startswith("treadle"):
        graded: dict[str, Any] = json.loads(value)
        if "grade" not in graded:
            return None
        start = value.index(b',"interaction":') + len(b',"interaction":')
        return value[start : value.rindex(b',"grade":')], graded["grade"]["reward"]
    head = b'{"status":"joined","interaction":'
    if not value.startswith(head):
        return None
    interaction, outcome = value[len(head) : -1].split(b',"outcome":', 1)
    return interaction, json.loads(outcome)["value"]
