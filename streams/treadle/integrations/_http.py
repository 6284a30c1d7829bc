"""One hook for every client that sends through httpx or httpx2: OpenAI's, Anthropic's, and what is built on them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from treadle.integrations._call import Call, Request, Response, begin, give_up_waiting
from treadle.integrations._publish import trouble

if TYPE_CHECKING:
    from treadle.recorder import Recorder

__all__ = ["instrument", "uninstrument", "wrap"]

_MODULES: Final = ("httpx", "httpx2")
MAX_STREAM_BYTES: Final = 64 * 1024 * 1024
"""Of one response; events carry many bytes a token. What is longer passes, and is recorded as truncated."""
_TIMED_CHUNKS: Final = 256
"""The first token is in one of these, or its time is not known."""

_recorder: Recorder | None = None
_originals: dict[type, Any] = {}
_inside: ContextVar[bool] = ContextVar("treadle_http_inside", default=False)
"""A wrapped client of an instrumented class passes through the hook once."""


def instrument(recorder: Recorder | None = None) -> Recorder:
    """Record every call that this process makes to a model over HTTP, through any client built on httpx or httpx2.

    Without a recorder one is made from the environment. Calling it again changes the recorder. Requests and responses pass unchanged;
    headers are never recorded. Returns the recorder.
    """
    global _recorder
    if recorder is None:
        from treadle.recorder import Recorder

        recorder = Recorder()
    _recorder = recorder
    found = False
    for name in _MODULES:
        try:
            if importlib.util.find_spec(name) is None:
                continue
            module = importlib.import_module(name)
            for cls in (module.Client, module.AsyncClient):
                _patch(cls, module)
            found = True
        except Exception as err:
            trouble(f"{name} could not be instrumented", err)
    if not found:
        trouble("nothing was instrumented", "neither httpx nor httpx2 is installed")
    return recorder


def uninstrument() -> None:
    """Take the hook out again. What is on its way is still recorded."""
    global _recorder
    _recorder = None
    while _originals:
        cls, original = _originals.popitem()
        if getattr(cls.__dict__.get("send"), "_treadle", False):
            cls.send = original  # type: ignore[attr-defined]
    give_up_waiting()


def wrap(client: Any, recorder: Recorder) -> Any:
    """Record the calls of one OpenAI or Anthropic client (or one httpx client) only. Returns the client.

    Copies made with `with_options` send through the same HTTP client and are recorded too. Raises TypeError for anything else.
    """
    inner = client if _module_of(client) is not None else getattr(client, "_client", None)
    module = _module_of(inner)
    if inner is None or module is None:
        raise TypeError(
            f"{type(client).__name__} is not a client that can be wrapped; give an openai.OpenAI, openai.AsyncOpenAI, anthropic.Anthropic, "
            "anthropic.AsyncAnthropic, httpx.Client or httpx.AsyncClient, or use treadle.instrument(recorder)"
        )
    original = inner.send
    if getattr(original, "_treadle", False) and "send" in vars(inner):
        original = original._treadle_original
    inner.send = _hooked(original, module, lambda: recorder, isinstance(inner, module.AsyncClient))
    inner.send._treadle_original = original
    return client


def _module_of(client: Any) -> ModuleType | None:

    for name in _MODULES:
        module = sys.modules.get(name)
        if module is not None and isinstance(client, module.Client | module.AsyncClient):
            return module
    return None


def _patch(cls: type, module: ModuleType) -> None:
    original = cls.send  # type: ignore[attr-defined]
    if getattr(original, "_treadle", False):
        return
    _originals[cls] = original
    cls.send = _hooked(original, module, lambda: _recorder, issubclass(cls, module.AsyncClient))  # type: ignore[attr-defined]


def _hooked(original: Any, module: ModuleType, recorder_of: Callable[[], Recorder | None], is_async: bool) -> Any:
    """`send`, of a class or bound to a client, with the hook around it."""
    tee = _tee_of(module)

    def send(*args: Any, **kwargs: Any) -> Any:
        call = None if _inside.get() else _begin(recorder_of(), args, kwargs)
        if call is None:
            return original(*args, **kwargs)
        token = _inside.set(True)
        try:
            response = original(*args, **kwargs)
        except BaseException as err:
            _quietly(call.failed, err)
            raise
        finally:
            _inside.reset(token)
        _quietly(_after, call, response, tee)
        return response

    async def send_async(*args: Any, **kwargs: Any) -> Any:
        call = None if _inside.get() else _begin(recorder_of(), args, kwargs)
        if call is None:
            return await original(*args, **kwargs)
        token = _inside.set(True)
        try:
            response = await original(*args, **kwargs)
        except BaseException as err:
            _quietly(call.failed, err)
            raise
        finally:
            _inside.reset(token)
        _quietly(_after, call, response, tee)
        return response

    made: Any = send_async if is_async else send
    made._treadle = True
    made.__name__, made.__qualname__, made.__doc__ = "send", "send", getattr(original, "__doc__", None)
    made.__wrapped__ = original
    return made


def _begin(recorder: Recorder | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """The request is the first argument, after self where the class is patched."""
    if recorder is None:
        return None
    try:
        request: Request = kwargs["request"] if "request" in kwargs else next(a for a in args[:2] if hasattr(a, "url"))
        return begin(recorder, request)
    except Exception as err:
        trouble("a request could not be looked at", err)
        return None


def _after(call: Call, response: Response, tee: type[_Tee]) -> None:
    if response.is_closed:
        call.answered(response.status_code, response.headers, response.content)
    else:
        response.stream = tee(response.stream, call, response.status_code, response.headers)


def _quietly(report: Callable[..., None], *args: Any) -> None:
    try:
        report(*args)
    except Exception as err:
        trouble("a call could not be recorded", f"{type(err).__name__}: {err}")


class _Tee:
    """Passes a body through and keeps its chunks; tells the call once: at the end, at close, or when it is thrown away."""

    def __init__(self, inner: Any, call: Call, status: int, headers: Any) -> None:
        self._inner = inner
        self._call: Call | None = call
        self._status = status
        self._headers = headers
        self._chunks: list[bytes] = []
        self._times: list[float] = []
        self._bytes = 0
        self._problem: str | None = "the caller left the stream"

    def __iter__(self) -> Iterator[bytes]:
        take, times = self._take, self._times
        try:
            for chunk in self._inner:
                if len(times) < _TIMED_CHUNKS:
                    times.append(time.monotonic())
                take(chunk)
                yield chunk
            self._problem = "the server ended the stream"
        except Exception as err:
            self._problem = f"{type(err).__name__}: {err}"
            raise

    async def __aiter__(self) -> AsyncIterator[bytes]:
        take, times = self._take, self._times
        try:
            async for chunk in self._inner:
                if len(times) < _TIMED_CHUNKS:
                    times.append(time.monotonic())
                take(chunk)
                yield chunk
            self._problem = "the server ended the stream"
        except Exception as err:
            self._problem = f"{type(err).__name__}: {err}"
            raise

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            self._end()

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            self._end()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __del__(self) -> None:
        try:
            self._end()
        except Exception:  # the interpreter may be half gone
            return

    def _take(self, chunk: bytes) -> None:
        self._bytes += len(chunk)
        if self._bytes <= MAX_STREAM_BYTES:
            self._chunks.append(chunk)

    def _end(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            problem = self._problem
            if self._bytes > MAX_STREAM_BYTES:
                problem = f"the stream is longer than {MAX_STREAM_BYTES} bytes"
            _quietly(call.streamed, self._status, self._headers, self._chunks, self._times, problem)


def _tee_of(module: ModuleType) -> type[_Tee]:
    """The tee as a stream of that module, sync and async: responses check which they have."""
    return type("Tee", (_Tee, module.SyncByteStream, module.AsyncByteStream), {})
