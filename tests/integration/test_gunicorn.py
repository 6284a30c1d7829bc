"""The SDK in a prefork server: gunicorn forks its workers after the application, and with it the recorder, was loaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from treadle.log import read
from treadle_schemas import WorkspaceSettings
from treadle_schemas.codec import decode
from treadle_schemas.topics import topic
from treadle_streams import workspaces

APP = """
import os
import treadle

recorder = treadle.Recorder(os.environ["WORKSPACE"], agent="web")
recorder.record(messages=[{"role": "user", "content": "master"}], interaction_id="master")  # its thread runs before the forks

def app(environ, start_response):
    name = environ["PATH_INFO"].strip("/")
    handle = recorder.record(messages=[{"role": "user", "content": name}], interaction_id=name, tags={"pid": str(os.getpid())})
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(handle).encode()]
"""


def test_workers_of_a_prefork_server_record_and_lose_nothing(broker: str, workspace_name: str, tmp_path: Path) -> None:
    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=1))
    (tmp_path / "web.py").write_text(APP)
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    environment |= {
        "WORKSPACE": workspace_name,
        "TREADLE_BOOTSTRAP_SERVERS": broker,
        "TREADLE_HOME": str(tmp_path / "home"),
    }
    log = tmp_path / "log"
    options = ["--preload", "--workers", "3", "--bind", "127.0.0.1:0", "--no-control-socket", "--chdir", str(tmp_path)]
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "gunicorn", *options, "web:app"],
            env=environment,
            stdout=out,
            stderr=out,
        )
    try:
        url = _address(log, server)
        names = [f"r{n}" for n in range(60)]
        for name in names:
            with urllib.request.urlopen(f"{url}/{name}", timeout=20) as answer:
                assert answer.read().decode().endswith(name)
        killed = _workers(server.pid)[0]
        os.kill(killed, signal.SIGKILL)  # the server forks another one, whose recorder adopts what this one left
        for name in (more := [f"s{n}" for n in range(30)]):
            with urllib.request.urlopen(f"{url}/{name}", timeout=20) as answer:
                assert answer.read().decode().endswith(name)
    finally:
        server.terminate()
        assert server.wait(60) == 0, log.read_text()
    events = [decode(r.value, r.headers).data for r in read(broker, topic(workspace_name, "interactions"), 1)]
    assert {e["interaction_id"] for e in events} == {"master", *names, *more}
    assert len({e["tags"]["pid"] for e in events if "tags" in e}) > 1, "one worker answered everything"


def _address(log: Path, server: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        for line in log.read_text().splitlines():
            if "Listening at: " in line and log.read_text().count("Booting worker") >= 3:
                return line.split("Listening at: ")[1].split()[0]
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def _workers(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
