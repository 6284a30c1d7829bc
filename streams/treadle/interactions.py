"""One interaction as a scope: its handle is known from the start, and it is recorded when it ends, however it ends."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from treadle_schemas.ids import Handle, new_id
from treadle_schemas.moments import now

from treadle import _answers, _tools, targets
from treadle.episodes import EpisodeScope, Place, Tags, enter, leave, where
from treadle.streaming import TRUNCATED, AsyncStream, Listener, Stream

if TYPE_CHECKING:
    from treadle.integrations._formats import Reply, Sample
    from treadle.recorder import Recorder

__all__ = ["InteractionScope"]

T = TypeVar("T")
_MAX_ERROR_CHARS = 2000


class InteractionScope:
    """An open interaction. Made by Recorder.interaction; enter it with `with` or `async with`.

    It is recorded when the block ends, or when the last stream that was begun inside ends, if that is later. An exception is recorded as
    its error and goes on. Nothing that the host passes makes a method raise (except under pytest): what cannot be recorded is counted.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        messages: Sequence[Any] | str = (),
        model: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        sampling: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        episode_id: str | None = None,
        interaction_id: str | None = None,
        slot: str | None = None,
        agent: str | None = None,
        release: str | None = None,
        subject: str | None = None,
        tags: Tags | None = None,
        references: Sequence[str] = (),
        explicit: bool = True,
        place: Place | None = None,
    ) -> None:
        self.interaction_id = interaction_id or new_id()
        self.explicit = explicit
        """Whether the host records the model's call itself, so that no integration shall record it too."""
        self.open_calls: list[dict[str, Any]] = []
        """Tool calls of the answer that no tool has run for yet."""
        self.is_open = True
        self._recorder = recorder
        self._problem: Exception | None = None
        inside = place or where()
        if inside is not None and inside.episode.workspace != recorder.workspace:
            inside = None
        self._alone = inside is None and episode_id is None
        if inside is None or episode_id not in (None, inside.episode.episode_id):
            # an episode of its own, in which only what is called from here can take part
            episode = EpisodeScope(recorder, episode_id=episode_id or self.interaction_id, inside=inside)
            inside = Place(episode, None, episode.parent_id)
        self.episode = inside.episode
        self._address = Handle(recorder.workspace, self.episode.episode_id, self.interaction_id)
        self._claimed = self.episode.claim(self.interaction_id, inside.parent_id)
        self._caller_id = inside.caller_id
        said = {
            "model": model,
            "tools": None if tools is None else list(tools),
            "sampling": None if sampling is None else dict(sampling),
            "task_id": task_id,
            "slot": slot,
            "agent": agent,
            "release": release,
            "subject": subject,
        }
        self._said: dict[str, Any] = {name: given for name, given in said.items() if given is not None}
        self._tags: dict[str, Any] = {**self._claimed.pop("tags", {}), **(tags or {})}
        self._references: list[str] = [*self._claimed.pop("references", ()), *references]
        self._entries: list[tuple[bool, Any]] = []  # (whether the model produced it, message)
        self._others: list[Sample] = []
        self._attempts: list[dict[str, Any]] = []
        self._listeners: list[Listener] = []
        self.exited = False
        """Whether the block has ended. Streams that were begun inside may still run."""
        self._error: str | None = None
        self._response: str | None = None
        self._token: Token[Place | None] | None = None
        self._started_at = now()
        self._began_s = time.monotonic()
        self.add(*([{"role": "user", "content": messages}] if isinstance(messages, str) else _each(messages, self)))

    @property
    def handle(self) -> str:
        """The handle's text, from the start. Keep it; treadle.outcome takes it back at any time, anywhere."""
        return str(self._address)

    @property
    def treadle_target(self) -> targets.Target:
        """This interaction, as the target of an outcome."""
        return targets.Target.of_handle(self._address)

    def add(self, *messages: Any) -> None:
        """Messages that the model did not produce: the user's, results of tools. Objects of client libraries are taken too."""
        try:
            # a copy: the host may go on with its list and its messages
            self._entries += [(False, _message(message)) for message in messages]
        except Exception as err:
            self._failed(err)

    def respond(self, answer: T) -> T:
        """What the model answered: text, a message, a list of messages, or the response object of OpenAI, Anthropic or LangChain.

        From a response object also come model, usage, finish reason, log probabilities and the provider's id, which becomes a reference:
        an outcome may later name the answer by its id. Returns `answer`.
        """
        try:
            self._take(_answers.understood(answer))
            if not isinstance(answer, str):
                targets.remember(answer, self._address)
        except Exception as err:
            self._failed(err)
        return answer

    def stream(self, chunks: Iterable[T]) -> Stream[T]:
        """Pass a stream's chunks on unchanged, and record what they amount to; `async for` streams: `astream`.

        Chunks are text, or what OpenAI's, Anthropic's and LangChain's clients give. A stream that is closed, dropped or raises before its
        end is recorded as far as it came, with status error and an error that says so.
        """
        return Stream(chunks, self.listen())

    def astream(self, chunks: AsyncIterable[T]) -> AsyncStream[T]:
        """`stream` for asynchronous iterators."""
        return AsyncStream(chunks, self.listen())

    def listen(self) -> Listener:
        """The bare ear of `stream`, for who drives a stream in another way."""
        listener = Listener(self)
        self._listeners.append(listener)
        return listener

    def attempt(self, error: BaseException | str, **said: Any) -> None:
        """Note an earlier try of the same request that failed; further fields (started_at, ended_at, status) as keywords."""
        self._attempts.append({"status": "error", "error": _words(error), "ended_at": now(), **said})

    def set(
        self,
        *,
        tags: Tags | None = None,
        references: Sequence[str] = (),
        **fields: Any,
    ) -> None:
        """Say more of the interaction: any argument of Recorder.record (usage, cost, token_ids, logprobs, finish_reason, release, ...)."""
        self._tags.update(tags or {})
        self._references += references
        self._said.update(fields)

    def fail(self, error: BaseException | str) -> None:
        """Record the interaction as failed, for a host that handles the exception itself."""
        self._error = _words(error)

    def __enter__(self) -> Self:
        if self._token is None:
            self._token = enter(self.place)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            leave(self._token)
            self._token = None
        if value is not None:
            self.fail(value)
        self.finish()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, value, traceback)

    @property
    def place(self) -> Place:
        """Where code inside this interaction runs."""
        return Place(self.episode, self, self._caller_id)

    def finish(self) -> None:
        """The host is done; record, unless a stream still runs. Called by the end of the `with` block."""
        if self._error is not None:
            for listener in list(self._listeners):
                listener.end(TRUNCATED)
        self.exited = True
        if not self._listeners:
            self._record()

    def stream_began(self) -> None:
        """The first chunk with content came."""
        self._said.setdefault("first_token_ms", round((time.monotonic() - self._began_s) * 1000, 3))

    def stream_ended(self, listener: Listener, reply: Reply | None, problem: BaseException | str | None) -> None:
        """A stream is over: what it amounts to, or why nothing is known of it, and why it ended before its end."""
        self._listeners.remove(listener)
        try:
            if reply is not None:
                self._take(reply)
        except Exception as err:
            self._failed(err)
        if problem is not None and self._error is None:
            self.fail(problem)
        if self.exited and not self._listeners:
            self._record()

    def trouble(self, err: Exception) -> None:
        """Something of the host's could not be understood; the interaction is recorded without it, and says so."""
        self._failed(err)

    def _take(self, reply: Reply) -> None:
        if reply.samples:
            first, *self._others = reply.samples
            messages = [dict(message) for message in first.messages]
            self._entries += [(True, message) for message in messages]
            self.open_calls += _tools.asked_calls(messages)
            for name, given in (
                ("finish_reason", first.finish_reason),
                ("logprobs", first.logprobs),
                ("token_ids", first.token_ids),
            ):
                if given is not None:
                    self._said[name] = given
        for name, told in (("usage", reply.usage), ("cost", reply.cost)):
            if told is not None:
                self._said[name] = told
        if reply.model is not None:
            self._said.setdefault("model", reply.model)
        if reply.error is not None and self._error is None:
            self.fail(reply.error)
        if reply.response_id:
            self._response = f"response:{reply.response_id}"
            self._references.append(self._response)
            targets.remember(reply.response_id, self._address)

    def _failed(self, err: Exception) -> None:
        if self._recorder._raises():
            raise err
        self._problem = self._problem or err

    def _record(self) -> None:
        if not self.is_open:
            return
        self.is_open = False
        said = {**self._claimed, **self._said}
        if self._alone and self.episode.latest == self.interaction_id:
            del said["episode_id"]  # nothing was called inside: it is its own episode
        if self._alone:
            del said["step"]
        if self._error is not None:
            said.update(status="error", error=self._error)
        if self._problem is not None:
            self._tags["treadle.unreadable"] = _words(self._problem)
            said["error"] = said.get("error") or f"unreadable: {_words(self._problem)}"
            said["status"] = "error"
        said.update(
            interaction_id=self.interaction_id,
            messages=[message for _, message in self._entries],
            response=[n for n, (produced, _) in enumerate(self._entries) if produced],
            started_at=self._started_at,
            ended_at=now(),
            tags=self._tags or None,
            references=list(dict.fromkeys(self._references)) or None,
            attempts=self._attempts or None,
        )
        # this interaction knows its place; the one that is open here may be another
        token = enter(None)
        try:
            self._recorder.record(**said)
            self._record_others(said)
        except TypeError as err:  # a field that `set` was given does not exist
            self._recorder._lose(err)
        finally:
            leave(token)
            self.episode.saw([message for _, message in self._entries])
            if self._alone:
                self.episode._record_loose_tools()

    def _record_others(self, said: dict[str, Any]) -> None:
        """Of n > 1 answers to one request each is an interaction."""
        asked = [message for produced, message in self._entries if not produced]
        shared = [name for name in said["references"] or () if name != self._response]
        for index, sample in enumerate(self._others, 1):
            other = new_id()
            own = {
                "interaction_id": other,
                "messages": [*asked, *sample.messages],
                "response": list(range(len(asked), len(asked) + len(sample.messages))),
                "finish_reason": sample.finish_reason,
                "logprobs": sample.logprobs,
                "token_ids": sample.token_ids,
                "usage": None,  # the provider counts all of them together
                "cost": None,
                "references": [*shared, *([f"{self._response}:{index}"] if self._response else ())] or None,
            }
            claimed = self.episode.claim(other, said.get("parent_id"))
            self._recorder.record(**{**said, **own, "episode_id": self.episode.episode_id, "step": claimed["step"]})


def _message(message: Any) -> dict[str, Any]:
    if isinstance(message, Mapping):
        return dict(message)
    (understood,) = _answers.understood(message).samples[0].messages
    if isinstance(message, str):
        understood["role"] = "user"
    return understood


def _each(messages: Any, scope: InteractionScope) -> list[Any]:
    try:
        return list(messages)
    except TypeError as err:
        scope._failed(err)
        return []


def _words(error: BaseException | str) -> str:
    if isinstance(error, str):
        return error[:_MAX_ERROR_CHARS]
    try:
        text = str(error)
    except Exception:  # the host's own exception class
        text = ""
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:_MAX_ERROR_CHARS]
