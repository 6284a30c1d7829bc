"""Servers that hold models: each speaks OpenAI's chat completions, and differs in how a release gets onto it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
from treadle_schemas.records import ReleaseManifest

from treadle_trainer.errors import DeployFailed

__all__ = ["Backend", "Backends", "HostedBackend", "Served", "VllmBackend", "probe"]

LOAD_S: Final = 600.0
"""Longest time in which a server has to have loaded a model."""
PROBE_S: Final = 120.0
CONNECT_S: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """Where a loaded release answers: `model` on the server at `url` (ending in /v1)."""

    url: str
    model: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with each request; may hold a key."""


class Backend(Protocol):
    """One kind of server."""

    async def load(self, manifest: ReleaseManifest, folder: Path) -> Served:
        """Get a release onto the server. Raises DeployFailed."""
        ...

    async def unload(self, manifest: ReleaseManifest) -> None:
        """Nothing is sent to it any more. Never raises."""
        ...

    async def close(self) -> None:
        """The end of whatever was started for it."""
        ...


class HostedBackend:
    """An API that has its models already: a release names one, or is a prompt for the default one."""

    def __init__(self, url: str, key: str | None = None, model: str | None = None) -> None:
        """`url` ends in /v1; `model` is what releases without a model of their own are served by."""
        self._url = url.rstrip("/")
        self._model = model
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    async def load(self, manifest: ReleaseManifest, folder: Path) -> Served:
        """See Backend."""
        model = manifest.hosted_model or self._model
        if model is None:
            raise DeployFailed(
                f"{manifest.release} is a prompt without a model; name the one that serves it with --upstream-model"
            )
        return Served(url=self._url, model=model, headers=self._headers)

    async def unload(self, manifest: ReleaseManifest) -> None:
        """See Backend."""

    async def close(self) -> None:
        """See Backend."""


class VllmBackend:
    """A vLLM server that was started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True: adapters are loaded into it.

    It reads the adapter's folder itself, so the registry must lie where it can see it, at the same path.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    async def load(self, manifest: ReleaseManifest, folder: Path) -> Served:
        """See Backend. Each release has a name of its own on the server, so that loading one never replaces another."""
        if manifest.kind != "adapter":
            raise DeployFailed(
                f"{manifest.release} is a whole model; a running vLLM loads adapters only. Serve it by transformers, or start vLLM with it"
            )
        said = {"lora_name": manifest.release, "lora_path": str(folder)}
        try:
            async with httpx.AsyncClient(
                headers=self._headers, timeout=httpx.Timeout(LOAD_S, connect=CONNECT_S)
            ) as client:
                answer = await client.post(f"{self._url}/load_lora_adapter", json=said)
        except httpx.HTTPError as err:
            raise DeployFailed(f"{manifest.release}: {self._url} did not load it: {_words(err)}") from err
        if answer.status_code >= 300 and "already been loaded" not in answer.text:
            raise DeployFailed(f"{manifest.release}: {self._url} refused to load it: {_said(answer)}")
        return Served(url=self._url, model=manifest.release, headers=self._headers)

    async def unload(self, manifest: ReleaseManifest) -> None:
        """See Backend."""
        try:
            async with httpx.AsyncClient(headers=self._headers, timeout=CONNECT_S) as client:
                await client.post(f"{self._url}/unload_lora_adapter", json={"lora_name": manifest.release})
        except httpx.HTTPError:
            pass  # it holds an adapter more than it needs

    async def close(self) -> None:
        """See Backend."""


class Backends:
    """The servers of a deployment: which of them takes a release depends on what the release is."""

    def __init__(
        self, *, local: Backend | None, hosted: Backend | None = None, adapters: Backend | None = None
    ) -> None:
        """`local` takes model folders and adapters, `adapters` adapters before it, `hosted` all that has no files."""
        self._local = local
        self._hosted = hosted
        self._adapters = adapters

    async def load(self, manifest: ReleaseManifest, folder: Path) -> Served:
        """See Backend."""
        return await self._of(manifest).load(manifest, folder)

    async def unload(self, manifest: ReleaseManifest) -> None:
        """See Backend."""
        await self._of(manifest).unload(manifest)

    async def close(self) -> None:
        """See Backend."""
        for backend in (self._local, self._hosted, self._adapters):
            if backend is not None:
                await backend.close()

    def _of(self, manifest: ReleaseManifest) -> Backend:
        if not manifest.files:
            if self._hosted is None:
                raise DeployFailed(
                    f"{manifest.release} has no model of its own; name the API that serves it with --upstream URL"
                )
            return self._hosted
        if manifest.kind == "adapter" and self._adapters is not None:
            return self._adapters
        if self._local is None:
            raise DeployFailed(f"{manifest.release} is a model folder, and --no-local was given")
        return self._local


async def probe(served: Served) -> None:
    """Ask for one token. Raises DeployFailed unless there comes an answer as of a model."""
    said: dict[str, Any] = {
        "model": served.model,
        "messages": [{"role": "user", "content": "ping"}],
        "max_tokens": 1,
    }
    try:
        async with httpx.AsyncClient(
            headers=dict(served.headers), timeout=httpx.Timeout(PROBE_S, connect=CONNECT_S)
        ) as client:
            answer = await client.post(f"{served.url}/chat/completions", json=said)
    except httpx.HTTPError as err:
        raise DeployFailed(f"{served.model} at {served.url} does not answer: {_words(err)}") from err
    if answer.status_code >= 300:
        raise DeployFailed(f"{served.model} at {served.url} answers a probe with {_said(answer)}")
    try:
        message = answer.json()["choices"][0]["message"]
    except (ValueError, LookupError, TypeError):
        message = None
    if not isinstance(message, dict):
        raise DeployFailed(
            f"{served.model} at {served.url} answers a probe with no chat completion: {answer.text[:200]!r}"
        )


def _said(answer: httpx.Response) -> str:
    return f"HTTP {answer.status_code}: {answer.text[:300]}"


def _words(err: httpx.HTTPError) -> str:
    return f"{type(err).__name__}: {err}" if str(err) else type(err).__name__
