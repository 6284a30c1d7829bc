"""Decorators: a function's call as an interaction, a tool's call as part of one.

Both take plain functions, coroutine functions, generators and asynchronous generators, bare or with options, and leave the function's
signature, its results and its exceptions as they are.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextvars import Token
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, overload

from treadle._answers import content_of
from treadle._tools import ToolCall
from treadle.episodes import Place, enter, leave, where
from treadle.interactions import InteractionScope
from treadle.streaming import TRUNCATED, Listener

if TYPE_CHECKING:
    from treadle.recorder import Recorder

__all__ = ["Decorator", "tool", "traced"]

F = TypeVar("F", bound=Callable[..., Any])

_RECEIVERS: Final = ("self", "cls")


class Decorator(Protocol):
    """What decorates any function and gives back one like it."""

    def __call__(self, function: F, /) -> F: ...


class _Span(Protocol):
    """What surrounds one call. `outcome` is told of the result or the error, `item` of each thing that a generator gives."""

    def enter(self) -> None: ...

    def leave(self) -> None: ...

    def item(self, value: Any) -> None: ...

    def end(self, result: Any, error: BaseException | None, *, abandoned: bool = False) -> None: ...


@overload
def traced(recorder: Recorder, function: F, /) -> F: ...


@overload
def traced(recorder: Recorder, function: None = None, /, **options: Any) -> Decorator: ...


def traced(recorder: Recorder, function: Any = None, /, **options: Any) -> Any:
    """Record each call as an interaction: see Recorder.traced."""

    def decorate(inner: Any) -> Any:
        signature = _signature(inner)
        name = getattr(inner, "__qualname__", repr(inner))

        def begin(args: tuple[Any, ...], named: dict[str, Any]) -> _Span:
            return _Traced(recorder, name, _arguments(signature, args, named), options)

        return _around(inner, begin)

    return decorate if function is None else decorate(function)


@overload
def tool(recorder: Recorder, function: F, /) -> F: ...


@overload
def tool(recorder: Recorder, function: None = None, /, *, name: str | None = None) -> Decorator: ...


def tool(recorder: Recorder, function: Any = None, /, *, name: str | None = None) -> Any:
    """Record each call as a tool's: see Recorder.tool."""

    def decorate(inner: Any) -> Any:
        signature = _signature(inner)
        called: str = name or str(getattr(inner, "__name__", "tool"))

        def begin(args: tuple[Any, ...], named: dict[str, Any]) -> _Span:
            return _ToolSpan(recorder, ToolCall.begin(called, _arguments(signature, args, named)))

        return _around(inner, begin)

    return decorate if function is None else decorate(function)


class _Traced:
    def __init__(self, recorder: Recorder, name: str, arguments: dict[str, Any], options: dict[str, Any]) -> None:
        given: Any = arguments.get("messages")
        chat = isinstance(given, list | tuple) and bool(given) and all(_is_message(one) for one in given)
        request: list[Any] = list(given) if chat else [{"role": "user", "content": content_of(arguments)}]
        self._turn = InteractionScope(
            recorder,
            messages=request,
            explicit=False,
            **{**options, "tags": {"treadle.function": name, **(options.get("tags") or {})}},
        )
        self._listener: Listener | None = None
        self._place: Place | None = self._turn.place
        self._token: Token[Place | None] | None = None

    def enter(self) -> None:
        self._token = enter(self._place)

    def leave(self) -> None:
        # what the function opened for itself (an episode around a yield) is there again when it goes on
        self._place = where()
        if self._token is not None:
            leave(self._token)
            self._token = None

    def item(self, value: Any) -> None:
        if self._listener is None:
            self._listener = self._turn.listen()
        self._listener.hear(value)

    def end(self, result: Any, error: BaseException | None, *, abandoned: bool = False) -> None:
        if self._listener is not None:
            self._listener.end(TRUNCATED if abandoned else error)
        elif abandoned:
            self._turn.fail(TRUNCATED)
        elif error is None:
            self._turn.respond(result)
        if error is not None:
            self._turn.fail(error)
        self._turn.finish()


class _ToolSpan:
    def __init__(self, recorder: Recorder, call: ToolCall) -> None:
        self._recorder = recorder
        self._call = call
        self._items: list[Any] = []

    def enter(self) -> None:
        self._call.enter()

    def leave(self) -> None:
        self._call.leave()

    def item(self, value: Any) -> None:
        self._items.append(value)

    def end(self, result: Any, error: BaseException | None, *, abandoned: bool = False) -> None:
        if self._items and all(isinstance(item, str) for item in self._items):
            result = "".join(self._items)
        elif self._items:
            result = self._items
        self._call.end(self._recorder, result, error)


def _around(inner: Any, begin: Callable[[tuple[Any, ...], dict[str, Any]], _Span]) -> Any:
    """`inner` with a span around each call, of the same kind as `inner`."""
    if inspect.isasyncgenfunction(inner):

        @functools.wraps(inner)
        async def async_generator(*args: Any, **named: Any) -> AsyncGenerator[Any, Any]:
            span = begin(args, named)
            generator = inner(*args, **named)
            resume: Callable[[], Any] = generator.__anext__
            try:
                while True:
                    span.enter()
                    try:
                        item = await resume()
                    finally:
                        span.leave()
                    span.item(item)
                    try:
                        sent = yield item
                    except GeneratorExit:
                        span.enter()
                        try:
                            await generator.aclose()
                        finally:
                            span.leave()
                        raise
                    except BaseException as err:
                        resume = functools.partial(generator.athrow, err)
                    else:
                        resume = functools.partial(generator.asend, sent)
            except StopAsyncIteration:
                span.end(None, None)
            except GeneratorExit:
                span.end(None, None, abandoned=True)
                raise
            except BaseException as err:
                span.end(None, err)
                raise

        return async_generator
    if inspect.isgeneratorfunction(inner):

        @functools.wraps(inner)
        def generator(*args: Any, **named: Any) -> Generator[Any, Any, Any]:
            span = begin(args, named)
            generator = inner(*args, **named)
            resume: Callable[[], Any] = generator.__next__
            try:
                while True:
                    span.enter()
                    try:
                        item = resume()
                    finally:
                        span.leave()
                    span.item(item)
                    try:
                        sent = yield item
                    except GeneratorExit:
                        span.enter()
                        try:
                            generator.close()
                        finally:
                            span.leave()
                        raise
                    except BaseException as err:
                        resume = functools.partial(generator.throw, err)
                    else:
                        resume = functools.partial(generator.send, sent)
            except StopIteration as stop:
                span.end(stop.value, None)
                return stop.value
            except GeneratorExit:
                span.end(None, None, abandoned=True)
                raise
            except BaseException as err:
                span.end(None, err)
                raise

        return generator
    if inspect.iscoroutinefunction(inner):

        @functools.wraps(inner)
        async def coroutine(*args: Any, **named: Any) -> Any:
            span = begin(args, named)
            span.enter()
            try:
                result = await inner(*args, **named)
            except BaseException as err:
                span.leave()
                span.end(None, err)
                raise
            span.leave()
            span.end(result, None)
            return result

        return coroutine

    @functools.wraps(inner)
    def function(*args: Any, **named: Any) -> Any:
        span = begin(args, named)
        span.enter()
        try:
            result = inner(*args, **named)
        except BaseException as err:
            span.leave()
            span.end(None, err)
            raise
        span.leave()
        span.end(result, None)
        return result

    return function


def _signature(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return None


def _arguments(signature: inspect.Signature | None, args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, without self or cls."""
    if signature is not None:
        try:
            bound = signature.bind(*args, **named).arguments
            return {name: given for n, (name, given) in enumerate(bound.items()) if n or name not in _RECEIVERS}
        except TypeError:  # the call itself will say so
            pass
    return {**({"args": list(args)} if args else {}), **named}


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str)
