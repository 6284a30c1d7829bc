"""One request to a model on its way: its tries, its stream, and its end as interactions."""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from treadle_schemas.canonical import loads
from treadle_schemas.errors import ContractError
from treadle_schemas.moments import now

from treadle.integrations._formats import ROUTES, Asked, Reply, Unreadable, decoded, error_text, events, format_of
from treadle.integrations._publish import Place, note, publish, trouble

if TYPE_CHECKING:
    from treadle.recorder import Recorder

__all__ = ["Call", "Request", "Response", "begin", "give_up_waiting"]

_RETRY_COUNT: Final = "x-stainless-retry-count"
"""OpenAI's and Anthropic's clients number their tries with it, from 0."""
RETRY_WAIT_S: Final = 70.0
"""A client waits at most 60 s before it tries again. A failed try that is not followed by another in that time was the last."""

_Key = tuple[int, int, str, bytes]


class Url(Protocol):
    """What is needed of httpx.URL."""

    @property
    def path(self) -> str: ...


class Request(Protocol):
    """What is needed of httpx.Request and httpx2.Request."""

    method: str
    headers: Any

    @property
    def url(self) -> Any: ...

    @property
    def content(self) -> bytes: ...


class Response(Protocol):
    """What is needed of httpx.Response and httpx2.Response."""

    status_code: int
    headers: Any
    is_closed: bool
    stream: Any

    @property
    def content(self) -> bytes: ...


def begin(recorder: Recorder, request: Request) -> Call | None:
    """The call that `request` is a try of; None where it is no request to a model, or nothing is recorded."""
    path = request.url.path
    if not path.endswith(ROUTES) or request.method != "POST" or not recorder.enabled:
        return None
    try:
        body = request.content
    except Exception:  # a body that is streamed out: an upload, not a chat
        return None
    # other services have such paths too, and shall take no step of the caller's episode
    if not any(field in body for field in (b'"messages"', b'"input"', b'"prompt"')):
        return None
    call = Call(recorder, path, body, request.headers.get(_RETRY_COUNT))
    return None if call.place.explicit else call


class Call:
    """One try of a call; `attempts` are the failed ones before it."""

    def __init__(self, recorder: Recorder, path: str, body: bytes, retry_count: str | None) -> None:
        self._recorder = recorder
        self._path = path
        self._body = body
        self._numbered = retry_count is not None
        self.attempts: list[dict[str, Any]] = []
        self._key: _Key = (
            (threading.get_ident(), _task(), path, hashlib.sha256(body).digest()) if self._numbered else (0, 0, "", b"")
        )
        earlier = _waiting.take(self._key) if retry_count not in (None, "0") else None
        self._began = now()
        self._clock = time.monotonic()
        self.place: Place = Place(recorder) if earlier is None else earlier.place
        self._started_at: str = self._began if earlier is None else earlier._started_at
        if earlier is not None:
            self.attempts = earlier.attempts
        self._last_problem: tuple[int | None, str] = (None, "")

    def failed(self, err: BaseException) -> None:
        """The request got no response."""
        said = f"{type(err).__name__}: {err}" if str(err) else type(err).__name__
        self._try_failed(None, said, may_retry=isinstance(err, Exception))

    def answered(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """The response is there, body and all."""
        if not 200 <= status < 300:
            self._refused(status, headers, body)
            return
        if _is_stream(headers, body):
            self._publish(self._assembled([body], [], None))
            return
        try:
            value = loads(body)
        except ContractError as err:
            self._publish(Reply(error=f"the response is not JSON: {err}"))
            return
        self._publish(self._understood(value))

    def streamed(
        self, status: int, headers: Mapping[str, str], chunks: list[bytes], times: list[float], problem: str | None
    ) -> None:
        """A body that was taken chunk by chunk, as it came over the wire, is over or was left. `times` are those of the first chunks."""
        encoding = headers.get("content-encoding", "")
        if 200 <= status < 300 and "json" not in headers.get("content-type", ""):
            self._publish(self._assembled(chunks, times, problem, encoding), self._first_token)
            return
        try:
            body = b"".join(decoded(chunks, encoding))
        except Unreadable as err:
            body, problem = b"", problem or str(err)
        # however the stream came to its end: a whole JSON document is a whole answer
        if problem is not None and 200 <= status < 300 and not _is_json(body):
            self._publish(Reply(error=f"truncated: {problem}", complete=False))
        else:
            self.answered(status, headers, body)

    def record_failure(self) -> None:
        """No further try came: the last failure is how the call ended."""
        status, words = self._last_problem
        self._started_at = self.attempts[0]["started_at"]
        self.attempts = self.attempts[:-1]
        self._publish(Reply(error=_failure(status, words)))

    _first_token: float | None = None

    def _assembled(self, chunks: list[bytes], times: list[float], problem: str | None, encoding: str = "") -> Reply:
        assembler = format_of(self._path).assembler()
        try:
            for index, name, data in events(decoded(chunks, encoding)):
                if assembler.feed(name, data) and self._first_token is None:
                    at = times[index] if 0 <= index < len(times) else None
                    self._first_token = -1.0 if at is None else (at - self._clock) * 1000
            reply = assembler.reply()
        except Unreadable as err:
            return Reply(error=str(err), complete=False)
        except Exception as err:
            return Reply(error=f"treadle does not understand the stream: {type(err).__name__}: {err}")
        if not reply.complete and problem is not None and reply.error is None:
            reply.error = f"truncated: {problem}"
            for sample in reply.samples:
                sample.finish_reason = "truncated"
        return reply

    def _understood(self, value: Any) -> Reply:
        try:
            return format_of(self._path).answered(value)
        except Exception as err:  # the call happened: what was asked is kept, and why the rest is not
            return Reply(error=f"treadle does not understand the response: {type(err).__name__}: {err}")

    def _refused(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        try:
            words = error_text(loads(body)) if body else None
        except ContractError:
            words = error_text(body.decode(errors="replace"))
        may = headers.get("x-should-retry") or ("true" if status in (408, 409, 429) or status >= 500 else "false")
        self._try_failed(status, words or "", may_retry=may == "true")

    def _try_failed(self, status: int | None, words: str, *, may_retry: bool) -> None:
        self._last_problem = (status, words)
        attempt = {"status": status, "error": words or None, "started_at": self._began, "ended_at": now()}
        self.attempts = [*self.attempts, attempt]
        if self._numbered and may_retry and _retries_left() != 0:
            _waiting.put(self._key, self)
        else:
            self.record_failure()

    def _publish(self, reply: Reply, first_token_ms: float | None = None) -> None:
        asked = self._asked()
        if asked is not None:
            if reply.response_id:
                note(reply.response_id)
            publish(
                self._recorder,
                self.place,
                asked,
                reply,
                started_at=self._started_at,
                first_token_ms=first_token_ms if first_token_ms is not None and first_token_ms >= 0 else None,
                attempts=self.attempts,
            )

    def _asked(self) -> Asked | None:
        try:
            value = loads(self._body)
        except ContractError:
            return None  # a form, or another service whose path ends alike
        if not isinstance(value, dict):
            return None
        try:
            return format_of(self._path).asked(value, self._path)
        except Exception as err:
            trouble("a request was not understood, and not recorded", f"{self._path}: {type(err).__name__}: {err}")
            return None


class _Waiting:
    """Calls whose latest try failed and whose client may try again. A thread exists only while there are any."""

    def __init__(self) -> None:
        self._calls: dict[_Key, tuple[Call, float]] = {}
        self._watching = False

    def put(self, key: _Key, call: Call) -> None:
        self._calls[key] = (call, time.monotonic() + RETRY_WAIT_S)
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._watch, name="treadle-retries", daemon=True).start()

    def take(self, key: _Key) -> Call | None:
        found = self._calls.pop(key, None)
        return None if found is None else found[0]

    def end(self, until: float) -> None:
        """Record as failed what waits for a try that was due before `until`."""
        for key, (call, deadline) in list(self._calls.items()):
            if deadline <= until and self.take(key) is not None:
                try:
                    call.record_failure()
                except Exception as err:
                    trouble("a failed call could not be recorded", err)

    def _watch(self) -> None:
        while self._calls:
            earliest = min((deadline for _, deadline in list(self._calls.values())), default=0.0)
            time.sleep(max(0.05, min(5.0, earliest - time.monotonic())))
            self.end(time.monotonic())
        self._watching = False

    def forget(self) -> None:
        """In a forked child: they are the parent's."""
        self._calls = {}
        self._watching = False


_waiting = _Waiting()
# registered after the recorders' own, hence run before them
atexit.register(lambda: _waiting.end(float("inf")))
os.register_at_fork(after_in_child=_waiting.forget)


def give_up_waiting() -> None:
    """Record every call whose latest try failed as failed."""
    _waiting.end(float("inf"))


def _task() -> int:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs here
        return 0
    return id(task)


def _retries_left() -> int | None:
    """How many tries the OpenAI or Anthropic client that is sending has left; None where no such client is on the stack.

    Nothing that goes over the wire tells a last try from one that will be repeated, and no hook does. Only read, and only after a failure.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if "remaining_retries" in frame.f_code.co_varnames and frame.f_globals.get("__name__", "").endswith(
            "._base_client"
        ):
            left = frame.f_locals.get("remaining_retries")
            return left if isinstance(left, int) else None
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _is_stream(headers: Mapping[str, str], body: bytes) -> bool:
    # not every server sets the type of a stream
    return "event-stream" in headers.get("content-type", "") or body[:6] in (b"data: ", b"event:")


def _is_json(body: bytes) -> bool:
    try:
        loads(body)
    except ContractError:
        return False
    return True


def _failure(status: int | None, words: str) -> str:
    return words if status is None else f"HTTP {status}: {words}" if words else f"HTTP {status}"
