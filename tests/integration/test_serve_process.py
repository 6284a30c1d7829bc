"""`treadle serve` as a process with a real model behind it: transformers' own server, OpenAI's client, a real Kafka."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from treadle.cli import main
from treadle.log import read
from treadle_schemas import WorkspaceSettings
from treadle_schemas.codec import INTERACTION, decode
from treadle_schemas.topics import topic
from treadle_streams import workspaces
from treadle_trainer.policy import TrainingPolicy
from treadle_trainer.registry import Registry

from .train_world import make_base

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

PARTITIONS = 2
DEADLINE_S = 120.0


@contextmanager
def serving(servers: str, home: Path, workspace: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    environment = {
        **os.environ,
        "TREADLE_HOME": str(home),
        "TREADLE_SPOOL": str(home / "spool"),
        "TREADLE_BOOTSTRAP_SERVERS": servers,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "treadle", "serve", workspace, "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), line
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def until(what: str, holds: Any) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        found = holds()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {DEADLINE_S:g} s: {what}")


@pytest.mark.long
def test_a_model_folder_is_served_recorded_and_replaced(broker: str, workspace_name: str, tmp_path: Path) -> None:
    import httpx

    workspaces.create(broker, WorkspaceSettings(workspace=workspace_name, partitions=PARTITIONS))
    registry = Registry(tmp_path / "registry", workspace_name)
    for seed in (0, 1):
        make_base(tmp_path / f"model-{seed}", seed)
        registry.register(tmp_path / f"model-{seed}", reason="test")
    first, second = registry.id(0), registry.id(1)
    registry.promote(first, expect=None, reason="test")
    with serving(broker, tmp_path, workspace_name) as (process, address):
        root = address.removesuffix("/v1")
        until("the champion is loaded", lambda: httpx.get(f"{root}/readyz").status_code == 200)
        with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:

            def ask(**more: Any) -> Any:
                return client.chat.completions.with_raw_response.create(
                    model="main",
                    messages=[{"role": "user", "content": "sky 7"}],
                    max_tokens=4,
                    metadata={"episode_id": "e1"},
                    **more,
                )

            whole = ask()
            assert whole.headers["x-treadle-release"] == str(first)
            assert isinstance(whole.parse().choices[0].message.content, str)
            with client.chat.completions.create(
                model="main", messages=[{"role": "user", "content": "sky 7"}], max_tokens=4, stream=True
            ) as stream:
                assert list(stream)[-1].choices[0].finish_reason in ("stop", "length")
            # a file that was changed after the release was made is never loaded
            weights = registry.folder(second) / "model.safetensors"
            kept = weights.read_bytes()
            weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
            refused = httpx.post(f"{root}/treadle/prepare", json={"release": str(second)}, timeout=DEADLINE_S)
            assert (refused.status_code, "model.safetensors" in refused.text) == (422, True)
            weights.write_bytes(kept)
            TrainingPolicy(deploy=(root,)).save(tmp_path / "registry", workspace_name, "main")
            promote = ["release", "promote", str(second), "--reason", "test", "--yes"]
            done = CliRunner().invoke(main, ["--home", str(tmp_path), "--bootstrap-servers", broker, *promote])
            assert done.exit_code == 0, done.output
            assert f"{root} has loaded {second}" in done.stderr
            until("the new champion answers", lambda: ask().headers["x-treadle-release"] == str(second))
            # the model server dies, and comes back with the champion
            (server,) = _children(process.pid)
            os.kill(server, signal.SIGKILL)

            def answers() -> bool:
                try:
                    return bool(ask().headers["x-treadle-release"] == str(second))
                except openai.APIStatusError as err:
                    if err.status_code not in (502, 503):
                        raise
                    return False

            until("the champion answers again", answers)
        children = _children(process.pid)
        assert children
        assert server not in children
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        until("the model server is gone", lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    rows = [
        event.data
        for record in read(broker, topic(workspace_name, "interactions"), PARTITIONS)
        if (event := decode(record.value, record.headers)).type == INTERACTION
    ]
    assert {row["release"] for row in rows} == {str(first), str(second)}
    failed = [row for row in rows if row.get("status") == "error"]
    answered = [row for row in rows if row not in failed]
    assert all(row["slot"] == "main" and row["messages"][-1]["role"] == "assistant" for row in answered), json.dumps(
        rows
    )
    assert {row["release"] for row in failed} == {str(second)}, "asked while its server was dead"
    assert {row.get("episode_id") for row in rows} > {"e1"}


def _children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
