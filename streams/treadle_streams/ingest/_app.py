"""The receiver as an ASGI application: who may, how much, and what is answered."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from treadle_schemas.canonical import dumps
from treadle_schemas.codec import INTERACTION, OUTCOME

from treadle_streams.ingest import _otlp
from treadle_streams.ingest._access import Access
from treadle_streams.ingest._batches import Answer, take_body, take_delivery, take_spans
from treadle_streams.ingest._body import Bodies
from treadle_streams.ingest._desk import Desk
from treadle_streams.ingest._settings import IngestSettings
from treadle_streams.ingest.errors import AccessFileUnusable, Forbidden, NotAuthorised, NotNow, Refused

__all__ = ["make_app"]

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")
_JSON: Final = "application/json"


def make_app(settings: IngestSettings, access: Access, desk: Desk) -> Starlette:
    """The application. Its lifespan opens the desk and, when the server has no more requests, closes it."""
    return _Receiver(settings, access, desk).app


class _Receiver:
    def __init__(self, settings: IngestSettings, access: Access, desk: Desk) -> None:
        self._settings = settings
        self._access = access
        self._desk = desk
        self._bodies = Bodies(settings)
        self._threads = CapacityLimiter(settings.workers)
        routes = [
            Route("/healthz", self._health, methods=["GET"]),
            Route("/readyz", self._ready, methods=["GET"]),
            Route("/v1/traces", self._spans, methods=["POST"]),
            Route("/v1/{workspace}/traces", self._spans, methods=["POST"]),
            Route("/v1/{workspace}/interactions", self._taking(INTERACTION), methods=["POST"]),
            Route("/v1/{workspace}/outcomes", self._taking(OUTCOME), methods=["POST"]),
            Route("/v1/{workspace}/events", self._taking(None), methods=["POST"]),
            Route("/v1/{workspace}/github", self._webhook, methods=["POST"]),
        ]
        self.app = Starlette(
            routes=routes,
            lifespan=self._life,
            exception_handlers={HTTPException: _no_route, Refused: _refused},
        )

    @asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        await self._in_thread(self._desk.open, self._access.workspaces())
        yield
        left = await self._in_thread(self._desk.close, self._settings.drain_s)
        if left:
            _LOG.warning("%d events stay in the spool; the next receiver on this machine sends them", left)

    async def _health(self, _: Request) -> Response:
        return _json(200, {"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        try:
            self._access.checked()
        except (AccessFileUnusable, OSError):
            return _json(503, {"ready": False, "reason": "the access file cannot be used"})
        if not self._desk.writable:
            return _json(503, {"ready": False, "reason": "the spool cannot be written"})
        return _json(200, {"ready": True})

    def _taking(self, only: str | None) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            workspace = self._authorised(request)
            async with self._bodies.read(request) as body:
                answer = await self._in_thread(take_body, self._desk, workspace, body, _headers(request), only)
            return _answered(answer)

        return _guarded(endpoint)

    async def _webhook(self, request: Request) -> Response:
        return await _guarded(self._delivery)(request)

    async def _delivery(self, request: Request) -> Response:
        workspace, headers = request.path_params["workspace"], _headers(request)
        signature = headers.get("x-hub-signature-256", "")
        if not signature:
            raise NotAuthorised("no X-Hub-Signature-256", code="bad_signature", hint="give GitHub the webhook's secret")
        async with self._bodies.read(request) as body:
            if not await self._in_thread(self._access.signed, workspace, body, signature):
                raise NotAuthorised("the signature is not right", code="bad_signature")
            answer = await self._in_thread(take_delivery, self._desk, workspace, body, headers)
        return _answered(answer)

    async def _spans(self, request: Request) -> Response:
        form = _otlp.PROTOBUF
        try:
            form = _otlp.form_of(_headers(request))
            workspace = self._authorised(request)
            async with self._bodies.read(request) as body:
                said = await self._in_thread(take_spans, self._desk, workspace, body, form)
        except Refused as err:
            return Response(_otlp.failure(form, err), err.status, _extra(err), form)
        except Exception as err:
            problem = _unexpected(err)
            return Response(_otlp.failure(form, problem), problem.status, media_type=form)
        return Response(said, media_type=form)

    def _authorised(self, request: Request) -> str:
        """The workspace that the request may write into: its token's, which has to be the address's where that names one."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        own = self._access.workspace_of(token.strip()) if scheme.lower() == "bearer" and token else None
        if own is None:
            raise NotAuthorised(
                "no token that counts", hint="Authorization: Bearer TOKEN, with what `treadle ingest token` printed"
            )
        if request.path_params.get("workspace", own) != own:
            raise Forbidden("this token is not for that workspace")
        return own

    async def _in_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await to_thread.run_sync(work, *arguments, limiter=self._threads)


def _guarded(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Refused:
            raise
        except Exception as err:
            raise _unexpected(err) from None

    return guarded


def _unexpected(err: Exception) -> Refused:
    # the text of an unknown error could hold what was sent
    _LOG.error("a request failed: %s", type(err).__name__)
    _LOG.debug("a request failed", exc_info=err)
    return Refused("the receiver failed; its log says more")


async def _refused(_: Request, err: Exception) -> Response:
    assert isinstance(err, Refused)
    return _json(err.status, {"error": err.to_json()}, _extra(err))


async def _no_route(request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(err.status_code, "refused")
    said = {"code": code, "message": f"{request.method} on this address does nothing: {err.detail}"}
    return _json(err.status_code, {"error": said}, err.headers)


def _extra(err: Refused) -> dict[str, str]:
    if isinstance(err, NotNow):
        return {"Retry-After": str(err.retry_after_s)}
    return {"WWW-Authenticate": "Bearer"} if isinstance(err, NotAuthorised) else {}


def _answered(answer: Answer) -> Response:
    return _json(answer.status, answer.body, answer.headers)


def _json(status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(dumps(body), status, headers, _JSON)


def _headers(request: Request) -> dict[str, str]:
    """By lower-case name; of a repeated one the last counts."""
    return {name.lower(): value for name, value in request.headers.items()}
