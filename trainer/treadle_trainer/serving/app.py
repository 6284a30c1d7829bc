"""The proxy as an ASGI application: OpenAI's chat completions in, a release's answer out, recorded on the way."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import httpx
import orjson
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from treadle_schemas import ReleaseId
from treadle_schemas.canonical import loads
from treadle_schemas.errors import ContractError, TreadleError
from treadle_schemas.ids import Handle
from treadle_schemas.traffic import Arm

from treadle_trainer.serving.backends import Backend
from treadle_trainer.serving.deployment import Deployment, Loaded
from treadle_trainer.serving.routing import routing_key
from treadle_trainer.serving.settings import ServeSettings

__all__ = ["make_app"]

_LOG = logging.getLogger(__name__)
_JSON: Final = "application/json"
_PASSED: Final = ("content-type", "x-request-id", "retry-after", "openai-processing-ms")
"""Headers of the model's server that the client gets."""
_WHERE: Final = ("episode_id", "task_id", "subject", "agent")
"""Keys of a request's `metadata` that say where it belongs; headers `X-Treadle-Episode-Id` and so on win over them."""


@dataclass(frozen=True)
class _Asked:
    """A request that was understood."""

    body: dict[str, Any]
    where: dict[str, str]
    tags: dict[str, Any]


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


def make_app(settings: ServeSettings, deployments: Mapping[str, Deployment], backend: Backend) -> Starlette:
    """The application. `deployments` by slot; its lifespan follows their registries, and closes them and their backend."""
    return _Proxy(settings, deployments, backend).app


class _Proxy:
    def __init__(self, settings: ServeSettings, deployments: Mapping[str, Deployment], backend: Backend) -> None:
        self._settings = settings
        self._deployments = deployments
        self._backend = backend
        self.app = Starlette(
            routes=[
                Route("/healthz", self._health, methods=["GET"]),
                Route("/readyz", self._ready, methods=["GET"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/treadle/status", self._status, methods=["GET"]),
                Route("/treadle/prepare", self._prepare, methods=["POST"]),
            ],
            lifespan=self._life,
            exception_handlers={_Refused: _refused},
        )

    @asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        following = [asyncio.create_task(each.follow()) for each in self._deployments.values()]
        yield
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        for each in self._deployments.values():
            await each.close()
        await self._backend.close()

    async def _health(self, _: Request) -> Response:
        return _json(200, {"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        waiting = sorted(slot for slot, each in self._deployments.items() if each.traffic.champion is None)
        return _json(503 if waiting else 200, {"ready": not waiting, "waiting": waiting})

    async def _models(self, request: Request) -> Response:
        self._admit(request)
        slots = [{"id": slot, "object": "model", "created": 0, "owned_by": "treadle"} for slot in self._deployments]
        return _json(200, {"object": "list", "data": slots})

    async def _status(self, request: Request) -> Response:
        self._admit(request)
        return _json(200, {slot: _told(each) for slot, each in self._deployments.items()})

    async def _prepare(self, request: Request) -> Response:
        """Load and probe a release before its alias moves."""
        self._admit(request)
        body = await self._body(request)
        try:
            release = ReleaseId.parse(str(body.get("release", "")))
        except TreadleError as err:
            raise _Refused(400, "invalid_release", str(err)) from err
        deployment = self._deployments.get(release.slot)
        if deployment is None or deployment.registry.workspace != release.workspace:
            raise _Refused(404, "not_served", f"{release}: this server has {self._named()}")
        began = monotonic()
        try:
            await deployment.prepare(str(release))
        except (TreadleError, OSError) as err:
            raise _Refused(422, "not_loaded", str(err)) from err
        return _json(200, {"release": str(release), "seconds": round(monotonic() - began, 3)})

    async def _chat(self, request: Request) -> Response:
        self._admit(request)
        asked = _understood(await self._body(request), request.headers)
        slot = asked.body.get("model")
        deployment = self._deployments.get(slot) if isinstance(slot, str) else None
        if deployment is None:
            raise _Refused(404, "model_not_found", f"model {slot!r}: name a slot; this server has {self._named()}")
        answering = deployment.answering(routing_key(asked.where.get("episode_id"), asked.body["messages"]))
        if not answering:
            raise _Refused(503, "no_release", f"slot {slot}: no release is loaded yet; {_why(deployment)}", 1)
        for arm, loaded in answering[:-1]:
            try:
                response, handle = await self._ask(loaded, asked)
            except httpx.HTTPError as err:
                _look_after(deployment, loaded, err)
                self._noted(deployment, loaded, arm, f"{type(err).__name__}: {err}")
                continue
            if response.is_success:
                deployment.breaker.succeeded(loaded.release)
                return _passed(response, arm, loaded, handle)
            await response.aread()
            await response.aclose()
            loaded.open -= 1
            self._noted(deployment, loaded, arm, f"HTTP {response.status_code}")
        arm, loaded = answering[-1]
        try:
            response, handle = await self._ask(loaded, asked)
        except httpx.HTTPError as err:
            _look_after(deployment, loaded, err)
            raise _Refused(
                502, "model_unreachable", f"{loaded.release} does not answer: {type(err).__name__}: {err}"
            ) from err
        return _passed(response, arm, loaded, handle)

    async def _ask(self, loaded: Loaded, asked: _Asked) -> tuple[httpx.Response, str]:
        """Send a request to a release. The wrapped client records it, where the open episode says; returns its handle too."""
        scope = loaded.recorder.episode(
            episode_id=asked.where.get("episode_id"),
            task_id=asked.where.get("task_id"),
            subject=asked.where.get("subject"),
            agent=asked.where.get("agent"),
            tags=asked.tags,
            # a proxy sees one request of many: how often the agent spoke before is its step
            first_step=sum(message.get("role") == "assistant" for message in asked.body["messages"]),
            ends=False,
        )
        body = orjson.dumps(_for(loaded, asked.body))
        request = loaded.client.build_request(
            "POST", f"{loaded.served.url}/chat/completions", content=body, headers={"Content-Type": _JSON}
        )
        loaded.open += 1
        try:
            async with scope:
                response = await loaded.client.send(request, stream=True)
        except BaseException:
            loaded.open -= 1
            raise
        return response, str(Handle(loaded.recorder.workspace, scope.episode_id, scope.latest or scope.episode_id))

    def _noted(self, deployment: Deployment, loaded: Loaded, arm: Arm, problem: str) -> None:
        deployment.breaker.failed(loaded.release, monotonic())
        _LOG.warning("%s (%s) failed, the champion answers: %s", loaded.release, arm, problem)

    def _admit(self, request: Request) -> None:
        token = self._settings.token
        if token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
            raise _Refused(401, "invalid_api_key", "give TREADLE_SERVE_TOKEN as the API key")

    async def _body(self, request: Request) -> dict[str, Any]:
        # a page of another origin may send text without asking; JSON it may not
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            raise _Refused(415, "unsupported_media_type", f"send JSON, with Content-Type: {_JSON}")
        taken = bytearray()
        async for chunk in request.stream():
            taken += chunk
            if len(taken) > self._settings.body_bytes:
                raise _Refused(413, "too_large", f"the request is longer than {self._settings.body_bytes:,} bytes")
        try:
            value = loads(bytes(taken))
        except ContractError as err:
            raise _Refused(400, "invalid_json", f"the request is not JSON: {err}") from err
        if not isinstance(value, dict):
            raise _Refused(400, "invalid_request", "the request is no JSON object")
        return value

    def _named(self) -> str:
        return ", ".join(sorted(self._deployments))


def _look_after(deployment: Deployment, loaded: Loaded, err: httpx.HTTPError) -> None:
    if isinstance(err, httpx.ConnectError):  # nobody listens there any more
        deployment.lost(loaded)


def _understood(body: dict[str, Any], headers: Mapping[str, str]) -> _Asked:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise _Refused(400, "invalid_request", "messages: expected a list of at least one message")
    metadata = body.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise _Refused(400, "invalid_request", "metadata: expected an object")
    said = {name: headers.get(f"x-treadle-{name.replace('_', '-')}") or metadata.get(name) for name in _WHERE}
    for name, value in said.items():
        if value is not None and not isinstance(value, str):
            raise _Refused(400, "invalid_request", f"metadata.{name}: expected text, got {value!r}")
    tags = {name: value for name, value in metadata.items() if name not in _WHERE}
    return _Asked(body, {name: value for name, value in said.items() if value}, tags)


def _for(loaded: Loaded, body: dict[str, Any]) -> dict[str, Any]:
    """What the release's server gets: its model; its prompt and sampling where the agent says nothing of them."""
    manifest = loaded.manifest
    sent = {**manifest.sampling, **body, "model": loaded.served.model}
    sent.pop("metadata", None)
    prompt = manifest.system_prompt
    if prompt is not None and body["messages"][0].get("role") not in ("system", "developer"):
        sent["messages"] = [{"role": "system", "content": prompt}, *body["messages"]]
    return sent


def _passed(response: httpx.Response, arm: Arm, loaded: Loaded, handle: str) -> Response:
    headers = {name: response.headers[name] for name in _PASSED if name in response.headers}
    headers |= {"x-treadle-release": loaded.release, "x-treadle-arm": arm, "x-treadle-handle": handle}

    async def end() -> None:
        await response.aclose()
        loaded.open -= 1

    return _Streamed(response.aiter_raw(), response.status_code, headers, background=BackgroundTask(end))


class _Streamed(StreamingResponse):
    """Runs its background task also when the client leaves in the middle: what the model said until then is recorded."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        background, self.background = self.background, None
        try:
            await super().__call__(scope, receive, send)
        finally:
            if background is not None:
                await asyncio.shield(background())


def _told(deployment: Deployment) -> dict[str, Any]:
    traffic = deployment.traffic
    return {
        "champion": traffic.champion,
        "canary": traffic.canary,
        "canary_share": traffic.canary_share,
        "control": traffic.control,
        "control_share": traffic.control_share,
        "loaded": deployment.loaded,
        "failures": {release: n for release in deployment.loaded if (n := deployment.breaker.failures(release))},
        "problems": deployment.problems,
    }


def _why(deployment: Deployment) -> str:
    return "; ".join(deployment.problems.values()) or "it is being loaded, or nothing was promoted"


async def _refused(_: Request, err: Exception) -> Response:
    assert isinstance(err, _Refused)
    said = {"message": str(err), "type": "treadle_error", "param": None, "code": err.code}
    headers = {} if err.retry_after_s is None else {"Retry-After": str(err.retry_after_s)}
    return _json(err.status, {"error": said}, headers)


def _json(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, dict(headers or {}), _JSON)
