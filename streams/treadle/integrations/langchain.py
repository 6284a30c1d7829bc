"""LangChain and LangGraph: a callback handler that is told of every run, without being passed to any.

    from treadle.integrations import langchain
    langchain.instrument(recorder)

The outermost run is the episode, each model call a step, an agent's or a graph node's name the slot; what a tool calls has the
interaction that called the tool as its parent. Together with `treadle.instrument` the HTTP hook records the calls it sees, and this only
says where they belong; calls that go another way (gRPC, botocore, a model in this process) are recorded from the callbacks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGenerationChunk, GenerationChunk, LLMResult
from langchain_core.tracers.context import register_configure_hook
from treadle_schemas.moments import now

from treadle import targets
from treadle.integrations._formats import Asked, Reply, Sample, function_tool, picked, total_usage
from treadle.integrations._publish import Place, publish, recorded_lately, trouble
from treadle.integrations._structure import Node, Open, enter, id_of, slot_of

if TYPE_CHECKING:
    from treadle.recorder import Recorder

__all__ = ["Handler", "instrument", "uninstrument"]

_NO_SLOT: Final = frozenset({"agent", "model", "tools", "chatbot", "LangGraph"})
"""Names that prebuilt agents give to their nodes: they tell no agent from another."""


class Handler(BaseCallbackHandler):
    """Hears of chains, tools and models. For one run alone: `config={"callbacks": [Handler(recorder)]}`."""

    run_inline = True
    """In the context of the run, not in another thread, so that the request that follows finds its place."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        super().__init__()
        self.recorder = recorder
        self._nodes: Open[UUID, Node] = Open()

    @property
    def ignore_chain(self) -> bool:
        """Deaf without a recorder."""
        return self.recorder is None

    @property
    def ignore_llm(self) -> bool:
        """Deaf without a recorder."""
        return self.recorder is None

    @property
    def ignore_chat_model(self) -> bool:
        """Deaf without a recorder."""
        return self.recorder is None

    @property
    def ignore_agent(self) -> bool:
        """Deaf without a recorder."""
        return self.recorder is None

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: UUID, **said: Any) -> None:
        """A run, a graph or one of its nodes begins."""
        self._begin(run_id, said)

    def on_tool_start(self, serialized: Any, input_str: str, *, run_id: UUID, **said: Any) -> None:
        """A tool begins. What it calls is its own."""
        self._begin(run_id, said, tool=True)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **said: Any) -> None:
        """It is over."""
        self._end(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **said: Any) -> None:
        """It failed."""
        self._end(run_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, **said: Any) -> None:
        """It is over."""
        self._end(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **said: Any) -> None:
        """It failed."""
        self._end(run_id)

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], *, run_id: UUID, **said: Any
    ) -> None:
        """A model is about to be called."""
        self._begin_model(run_id, [message for batch in messages for message in batch], said)

    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **said: Any) -> None:
        """A completion model is about to be called: each prompt is a user's message."""
        self._begin_model(run_id, [{"role": "user", "content": prompt} for prompt in prompts], said)

    def on_llm_new_token(
        self, token: Any, *, chunk: GenerationChunk | ChatGenerationChunk | None = None, run_id: UUID, **said: Any
    ) -> None:
        """A piece of a stream."""
        node = self._nodes.get(run_id)
        if node is not None and not node.seen:
            node.details.setdefault("first_token_ms", (time.monotonic() - node.details["clock"]) * 1000)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **said: Any) -> None:
        """The model answered."""
        self._end_model(run_id, response, None)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **said: Any) -> None:
        """The model, or the way to it, failed; `response` is what came before."""
        self._end_model(run_id, said.get("response"), f"{type(error).__name__}: {error}")

    def _begin(self, run_id: UUID, said: dict[str, Any], *, tool: bool = False, model: bool = False) -> Node:
        outer = self._nodes.get(said.get("parent_run_id"))
        metadata = said.get("metadata") or {}
        named = metadata.get("lc_agent_name") or metadata.get("langgraph_node")
        thread = metadata.get("thread_id")
        node = Node(
            outer,
            # a model that is called alone is no run of several steps
            episode_id=None if model and outer is None else str(run_id),
            slot=None if named in _NO_SLOT else slot_of(named),
            tags=None if thread is None else {"thread_id": str(thread)},
            tool=tool,
            model=model,
        )
        self._nodes.put(run_id, node)
        enter(node)
        return node

    def _end(self, run_id: UUID) -> Node | None:
        node = self._nodes.take(run_id)
        if node is not None:
            node.close()
        return node

    def _begin_model(self, run_id: UUID, messages: Sequence[Any], said: dict[str, Any]) -> None:
        node = self._begin(run_id, said, model=True)
        node.details = {
            "messages": messages,
            "parameters": said.get("invocation_params") or {},
            "started_at": now(),
            "clock": time.monotonic(),
        }

    def _end_model(self, run_id: UUID, result: LLMResult | None, error: str | None) -> None:
        node, recorder = self._end(run_id), self.recorder
        if node is None or recorder is None:
            return
        try:
            if node.seen:
                self._remember(node, result)
                return
            reply = _reply(result, error)
            # the request may have left in a context that the node did not reach
            if recorded_lately(reply.response_id):
                return
            place = Place.of(recorder, node)
            if not place.explicit:
                publish(
                    recorder,
                    place,
                    _asked(node.details),
                    reply,
                    started_at=node.details["started_at"],
                    first_token_ms=node.details.get("first_token_ms"),
                )
                self._remember(node, result)
        except Exception as err:
            trouble("a LangChain call could not be recorded", f"{type(err).__name__}: {err}")

    def _remember(self, node: Node, result: LLMResult | None) -> None:
        """The id that LangChain gives to the answer; of a stream it is the only one that the caller sees."""
        for generation in result.generations[0] if result is not None and result.generations else ():
            name = getattr(getattr(generation, "message", None), "id", None)
            if isinstance(name, str) and node.handle is not None:
                targets.remember(name, node.handle)


_handler: Final = Handler()
_hook: Final[ContextVar[Handler | None]] = ContextVar("treadle_langchain", default=_handler)
_hooked = False


def instrument(recorder: Recorder) -> Handler:
    """Hear of every run in this process. Calling it again changes the recorder."""
    global _hooked
    _handler.recorder = recorder
    if not _hooked:
        _hooked = True
        register_configure_hook(_hook, inheritable=True)
    return _handler


def uninstrument() -> None:
    """Be deaf again. LangChain has no way to forget a hook; without a recorder it hears nothing."""
    _handler.recorder = None


def _asked(details: dict[str, Any]) -> Asked:
    parameters = details["parameters"]
    return Asked(
        messages=_plain(details["messages"]),
        model=_model(parameters),
        tools=[function_tool(tool, "input_schema") for tool in parameters.get("tools") or ()] or None,
        sampling=picked(parameters),
    )


def _reply(result: LLMResult | None, error: str | None) -> Reply:
    reply = Reply(error=error)
    for generation in result.generations[0] if result is not None and result.generations else ():
        message = getattr(generation, "message", None)
        if error is not None and not generation.text and not getattr(message, "tool_calls", None):
            continue  # langchain puts the response's headers into an empty message then
        told = {**(generation.generation_info or {}), **(getattr(message, "response_metadata", None) or {})}
        reason = told.get("finish_reason") or told.get("stop_reason") or told.get("stopReason")
        shown = [{"role": "assistant", "content": generation.text}] if message is None else _plain([message])
        reply.samples.append(Sample(messages=shown, finish_reason=reason if isinstance(reason, str) else None))
        reply.response_id = reply.response_id or id_of(told.get("id"))
        reply.model = reply.model or told.get("model_name") or told.get("model")
        reply.usage = reply.usage or total_usage(dict(getattr(message, "usage_metadata", None) or {}))
    return reply


def _plain(messages: Sequence[Any]) -> list[dict[str, Any]]:
    plain = convert_to_openai_messages(messages)
    return plain if isinstance(plain, list) else [plain]


def _model(parameters: dict[str, Any]) -> str | None:
    named = parameters.get("model") or parameters.get("model_name") or parameters.get("_type")
    return named if isinstance(named, str) else None
