"""LiteLLM: a logger among its callbacks.

    from treadle.integrations import litellm
    litellm.instrument(recorder)

Together with `treadle.instrument` the HTTP hook records the calls it sees, and this only joins LiteLLM's answers to them, whose ids are
its own for some providers; other calls (botocore, gRPC, mock_response) are recorded from the callbacks, with LiteLLM's cost. Retries and
fallbacks of LiteLLM are calls of their own.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any, Final

import litellm
from litellm.integrations.custom_logger import CustomLogger
from treadle_schemas.moments import now

from treadle import targets
from treadle.integrations._formats import Asked, Reply, format_of, function_tool, picked
from treadle.integrations._publish import Place, publish, recorded_lately, trouble
from treadle.integrations._structure import Node, Open, enter, entered

if TYPE_CHECKING:
    from treadle.recorder import Recorder

__all__ = ["Logger", "instrument", "uninstrument"]

_RESPONSES: Final = frozenset({"responses", "aresponses"})
_CALLS: Final = frozenset({"completion", "acompletion", "text_completion", "atext_completion"}) | _RESPONSES
_OVER: Final = Node()
"""Stands for a call that is recorded: LiteLLM may report it twice."""


class Logger(CustomLogger):
    """Hears of every call. LiteLLM names the arguments."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        super().__init__()
        self.recorder = recorder
        self._calls: Open[str, Node] = Open()

    def log_pre_api_call(self, model: Any, messages: Any, kwargs: dict[str, Any]) -> None:
        """A request is about to leave, from this context."""
        call_id = kwargs.get("litellm_call_id")
        if self.recorder is not None and call_id is not None:
            node = Node(entered(), model=True)
            self._calls.put(call_id, node)
            enter(node)

    def log_success_event(self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any) -> None:
        """A call that was answered, a stream to its end."""
        self._end(kwargs, response_obj, start_time, end_time, None)

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """The same of an asynchronous call."""
        self._end(kwargs, response_obj, start_time, end_time, None)

    def log_failure_event(self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any) -> None:
        """A call that failed."""
        self._end(kwargs, None, start_time, end_time, kwargs.get("exception") or "the call failed")

    async def async_log_failure_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """The same of an asynchronous call."""
        self._end(kwargs, None, start_time, end_time, kwargs.get("exception") or "the call failed")

    def _end(self, kwargs: dict[str, Any], response: Any, start: Any, end: Any, error: Any) -> None:
        recorder, call_id = self.recorder, str(kwargs.get("litellm_call_id"))
        if recorder is None or kwargs.get("call_type") not in _CALLS:
            return
        try:
            node = self._calls.get(call_id)
            if node is _OVER:
                return
            self._calls.put(call_id, _OVER)
            if node is not None:
                node.close()
                if node.seen:
                    if response is not None and node.handle is not None:
                        targets.remember(response, node.handle)
                    return
            asked, reply = _asked(kwargs), _reply(kwargs, response, error)
            if recorded_lately(reply.response_id):
                return
            place = Place.of(recorder, node or Node(model=True))
            first = kwargs.get("completion_start_time")
            waited = (first - start).total_seconds() * 1000 if kwargs.get("stream") and first else None
            if not place.explicit:
                publish(
                    recorder,
                    place,
                    asked,
                    reply,
                    started_at=_moment(start),
                    ended_at=_moment(end),
                    first_token_ms=waited,
                )
        except Exception as err:
            trouble("a LiteLLM call could not be recorded", f"{type(err).__name__}: {err}")


_logger: Final = Logger()


def instrument(recorder: Recorder) -> Logger:
    """Hear of every call in this process. Calling it again changes the recorder."""
    _logger.recorder = recorder
    if _logger not in litellm.callbacks:
        litellm.callbacks.append(_logger)
    return _logger


def uninstrument() -> None:
    """Be deaf again."""
    _logger.recorder = None
    if _logger in litellm.callbacks:
        litellm.callbacks.remove(_logger)


def _asked(kwargs: dict[str, Any]) -> Asked:
    given = kwargs.get("messages") or kwargs.get("input")
    parameters = {**(kwargs.get("optional_params") or {})}
    model = kwargs.get("model")
    if kwargs.get("call_type") in _RESPONSES:
        asked = format_of("/responses").asked({**parameters, "model": model, "input": given}, "")
        if asked is not None:
            return asked
    messages = given if isinstance(given, list) else [{"role": "user", "content": str(given)}]
    return Asked(
        messages=[m if isinstance(m, dict) else m.model_dump(exclude_none=True) for m in messages],
        model=model,
        tools=[function_tool(tool, "input_schema") for tool in parameters.get("tools") or ()] or None,
        sampling=picked(parameters),
    )


def _reply(kwargs: dict[str, Any], response: Any, error: Any) -> Reply:
    if error is not None or response is None:
        return Reply(error=f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error))
    body = response.model_dump(mode="json", exclude_none=True)
    reply = format_of("/responses" if kwargs.get("call_type") in _RESPONSES else "/chat/completions").answered(body)
    cost = kwargs.get("response_cost")
    reply.cost = float(cost) if isinstance(cost, int | float) else reply.cost
    return reply


def _moment(when: Any) -> str:
    # LiteLLM's times are local and without a zone
    return when.astimezone().isoformat(timespec="microseconds") if isinstance(when, datetime.datetime) else now()
