"""`transformers serve` as a child process: the models of releases on this machine. The one place that knows its command line and routes."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.util
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import httpx
from treadle.errors import MissingExtra
from treadle_schemas.records import ReleaseManifest

from treadle_trainer.errors import DeployFailed
from treadle_trainer.serving.backends import CONNECT_S, LOAD_S, Served

__all__ = ["TransformersBackend"]

START_S: Final = 120.0
POLL_S: Final = 0.2
IDLE_S: Final = 3600
"""A model that nobody asks for so long leaves memory, and comes back when it is asked for."""
_PR_SET_PDEATHSIG: Final = 1


class TransformersBackend:
    """Starts the server with the first release. If it dies, the next load starts another one."""

    def __init__(self, root: Path, log: Path, device: str = "auto") -> None:
        """`root` is the registry's folder: releases are known to the server by their path below it. `log` gets what it writes."""
        self._root = root
        self._log = log
        self._device = device
        self._child: asyncio.subprocess.Process | None = None
        self._url = ""
        self._starting = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Of the running server."""
        return None if self._child is None or self._child.returncode is not None else self._child.pid

    async def load(self, manifest: ReleaseManifest, folder: Path) -> Served:
        """See Backend. Weights are read from `folder` once; code in it is not executed."""
        async with self._starting:
            if self.pid is None:
                await self._start()
        model = folder.relative_to(self._root).as_posix()
        try:
            async with httpx.AsyncClient(timeout=httpx.Timeout(LOAD_S, connect=CONNECT_S)) as client:
                answer = await client.post(f"{self._url}/load_model", json={"model": model})
        except httpx.HTTPError as err:
            raise DeployFailed(f"{manifest.release}: the model server did not load it; its log is {self._log}") from err
        problem = _problem(answer)
        if problem is not None:
            raise DeployFailed(
                f"{manifest.release}: the model server cannot load it: {problem}; its log is {self._log}"
            )
        return Served(url=f"{self._url}/v1", model=model)

    async def unload(self, manifest: ReleaseManifest) -> None:
        """See Backend. The server lets go of it by itself after an idle hour."""

    async def close(self) -> None:
        """See Backend."""
        child, self._child = self._child, None
        if child is None or child.returncode is not None:
            return
        child.terminate()
        try:
            await asyncio.wait_for(child.wait(), 5.0)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()

    async def _start(self) -> None:
        for module in ("fastapi", "openai", "uvicorn"):
            if importlib.util.find_spec(module) is None:
                raise MissingExtra("serve", module, "serve")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        command = [
            sys.executable,
            "-m",
            "transformers.cli.transformers",
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        command += ["--device", self._device, "--model-timeout", str(IDLE_S)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}
        with self._log.open("ab") as log:
            self._child = await asyncio.create_subprocess_exec(
                *command,
                cwd=self._root,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )
        self._url = f"http://127.0.0.1:{port}"
        try:
            await asyncio.wait_for(self._wait_healthy(), START_S)
        except TimeoutError as err:
            await self.close()
            raise DeployFailed(f"the model server was not ready in {START_S:g} s; its log is {self._log}") from err

    async def _wait_healthy(self) -> None:
        assert self._child is not None
        async with httpx.AsyncClient(timeout=CONNECT_S) as client:
            while True:
                if self._child.returncode is not None:
                    raise DeployFailed(f"the model server ended with {self._child.returncode}; its log is {self._log}")
                try:
                    if (await client.get(f"{self._url}/health")).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(POLL_S)


def _problem(answer: httpx.Response) -> str | None:
    """What the server's progress events say went wrong; None: it is ready."""
    if answer.status_code >= 300:
        return f"HTTP {answer.status_code}: {answer.text[:300]}"
    last: dict[str, object] = {}
    for line in answer.text.splitlines():
        if line.startswith("data: "):
            with contextlib.suppress(ValueError):
                last = json.loads(line[6:])
    if last.get("status") == "ready":
        return None
    return str(last.get("message") or last.get("error") or last or "it gave no reason")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
