"""Episodes and interactions as scopes: what an agent does inside them belongs together without being told so.

    with recorder.episode(task_id="refund-17") as episode:
        with recorder.interaction(messages=messages, model="gpt-4o-mini") as turn:
            answer = turn.respond(client.chat.completions.create(...))
    save(turn.handle)

The open scope lies in a context variable. It reaches what is called, asyncio tasks made inside, `asyncio.to_thread`, and threads given
`contextvars.copy_context().run`. It does not reach a plain `threading.Thread`, an executor's `submit` or another process: open
`episode.attach()` there, or in a process `recorder.episode(episode_id=...)`. A forked child has a copy: both go on with the same
step, and time alone orders what they do at once. A `with` inside a generator would leak to whoever iterates
it between two items: decorate the generator with `recorder.traced`, or call `episode.interaction(...)`, which asks no context variable.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from treadle_schemas.ids import new_id
from treadle_schemas.moments import now

from treadle.targets import Target

if TYPE_CHECKING:
    from treadle._tools import ToolCall
    from treadle.interactions import InteractionScope
    from treadle.recorder import Recorder

__all__ = ["EpisodeScope", "Place", "Tags", "claim", "current", "current_turn", "enter", "leave", "recorded", "where"]

Tags = Mapping[str, str | int | float | bool | None]

_MAX_OPEN_CALLS: Final = 128


class Place(NamedTuple):
    """Where code runs: in which episode, inside which interaction, and called by which one."""

    episode: EpisodeScope
    turn: InteractionScope | None
    caller_id: str | None
    """The interaction that called the sub-agent or tool that runs here."""
    in_tool: bool = False

    @property
    def parent_id(self) -> str | None:
        """The parent of an interaction that begins here."""
        return self.caller_id if self.turn is None else self.turn.interaction_id

    @property
    def calling_id(self) -> str | None:
        """The parent of a sub-agent's interactions: between two interactions of a loop the last one called it."""
        if self.turn is not None:
            return self.turn.interaction_id
        return self.caller_id if self.in_tool else self.episode.latest or self.caller_id


_place: Final[ContextVar[Place | None]] = ContextVar("treadle_place", default=None)


def current() -> EpisodeScope | None:
    """The episode that is open here. An interaction outside any episode is one of its own."""
    place = _place.get()
    return None if place is None else place.episode


def current_turn() -> InteractionScope | None:
    """The interaction that is open here."""
    place = _place.get()
    return None if place is None else place.turn


def claim(workspace: str, interaction_id: str) -> dict[str, Any]:
    """Join an interaction to the episode that is open here: keyword arguments for Recorder.record, none outside an episode.

    It takes the episode's next step, so call it once an interaction, when the interaction begins.
    """
    place = _place.get()
    if place is None or place.episode.workspace != workspace:
        return {}
    return place.episode.claim(interaction_id, place.parent_id)


def recorded(workspace: str, value: dict[str, Any]) -> None:
    """Tell the episode that is open here that an interaction of its own was recorded."""
    place = _place.get()
    if (
        place is not None
        and place.episode.workspace == workspace
        and value.get("episode_id") == place.episode.episode_id
    ):
        place.episode.latest = value["interaction_id"]
        place.episode.saw(value["messages"])


def where() -> Place | None:
    """The place itself."""
    return _place.get()


def enter(place: Place | None) -> Token[Place | None]:
    """Be at a place until `leave`."""
    return _place.set(place)


def leave(token: Token[Place | None]) -> None:
    """Be where one was. A scope that ends in another context than it began in (an asynchronous generator that was garbage) changes nothing
    there."""
    try:
        _place.reset(token)
    except ValueError:
        pass


class EpisodeScope:
    """One episode, or the part of it that one sub-agent has: an own slot and parent, the same episode id and count of steps."""

    def __init__(
        self,
        recorder: Recorder,
        *,
        episode_id: str | None = None,
        task_id: str | None = None,
        slot: str | None = None,
        agent: str | None = None,
        subject: str | None = None,
        tags: Tags | None = None,
        references: Sequence[str] = (),
        first_step: int = 0,
        ends: bool | None = None,
        inside: Place | None = None,
        parent_id: str | None = None,
    ) -> None:
        outer = None if inside is None or inside.episode.workspace != recorder.workspace else inside.episode
        self.parent_id: str | None = parent_id or (None if inside is None or outer is None else inside.calling_id)
        if outer is not None and episode_id not in (None, outer.episode_id):
            outer = None  # an episode of its own, of which only the parent is known
        self._recorder = recorder
        self.workspace: str = recorder.workspace
        self.episode_id: str = episode_id or (new_id() if outer is None else outer.episode_id)
        self.task_id: str | None = task_id or (None if outer is None else outer.task_id)
        self.slot: str | None = slot or (None if outer is None else outer.slot)
        self.agent: str | None = agent or (None if outer is None else outer.agent)
        self.subject: str | None = subject or (None if outer is None else outer.subject)
        self.tags: dict[str, str | int | float | bool | None] = {
            **(outer.tags if outer is not None else {}),
            **(tags or {}),
        }
        self.references: list[str] = list(
            dict.fromkeys([*(outer.references if outer is not None else ()), *references])
        )
        self.steps: Iterator[int] = itertools.count(first_step) if outer is None else outer.steps
        self.latest: str | None = None
        self.open_calls: list[dict[str, Any]] = []
        self.loose_tools: list[ToolCall] = []
        self._tokens: list[Token[Place | None]] = []
        # a part of another scope's episode ends nothing, and of one named by its caller more may come
        self._ends = outer is None and (episode_id is None if ends is None else ends)
        self._has_steps = False

    @property
    def treadle_target(self) -> Target:
        """The whole episode, as the target of an outcome."""
        return Target(workspace=self.workspace, episode_id=self.episode_id)

    def refer(self, *references: str) -> None:
        """Give external names (`pr:org/repo#12`) to the interactions that this episode still records."""
        self.references += [name for name in references if name not in self.references]

    def next_step(self) -> int:
        """The step of the next interaction; it is taken."""
        return next(self.steps)

    def claim(self, interaction_id: str, parent_id: str | None = None) -> dict[str, Any]:
        """Take the next step for an interaction that begins: keyword arguments for Recorder.record."""
        self.latest = interaction_id
        said: dict[str, Any] = {
            "episode_id": self.episode_id,
            "step": self.next_step(),
            "parent_id": parent_id or self.parent_id,
            "task_id": self.task_id,
            "slot": self.slot,
            "agent": self.agent,
            "subject": self.subject,
            "tags": dict(self.tags) or None,
            "references": list(self.references) or None,
        }
        return {name: given for name, given in said.items() if given is not None}

    def saw(self, messages: Sequence[Any]) -> None:
        """Note what a recorded interaction tells of tools: results that it repeats, and calls that it asks for at its end."""
        from treadle import _tools

        self._has_steps = True
        if self.loose_tools:
            self.loose_tools = [call for call in self.loose_tools if not _tools.repeats(messages, call)]
        if messages:
            asked = _tools.asked_calls(messages[-1:])
            if asked:
                # what was asked long ago is not answered any more
                self.open_calls = [*self.open_calls, *asked][-_MAX_OPEN_CALLS:]

    def interaction(self, **options: Any) -> InteractionScope:
        """An interaction of this episode, wherever the code runs; options as those of Recorder.interaction."""
        from treadle.interactions import InteractionScope

        return InteractionScope(self._recorder, place=Place(self, None, self.parent_id), **options)

    def episode(self, **options: Any) -> EpisodeScope:
        """A sub-agent of this episode, wherever the code runs; options as those of Recorder.episode."""
        return EpisodeScope(self._recorder, inside=Place(self, None, self.parent_id), **options)

    @contextmanager
    def attach(self) -> Iterator[Self]:
        """Be in this episode here too, in a thread that the context did not reach. The episode stays open afterwards."""
        token = enter(Place(self, None, self.parent_id))
        try:
            yield self
        finally:
            leave(token)

    def __enter__(self) -> Self:
        self._tokens.append(enter(Place(self, None, self.parent_id)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._tokens:
            leave(self._tokens.pop())
        if not self._tokens:
            self._record_loose_tools()
            if self._ends and self._has_steps:
                self._recorder.end_episode(self)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, value, traceback)

    def _record_loose_tools(self) -> None:
        """Tool calls whose results no interaction repeated: one interaction without a response, so that they are kept."""
        calls, self.loose_tools = self.loose_tools, []
        if not calls:
            return
        interaction = new_id()
        self._recorder.record(
            interaction_id=interaction,
            messages=[message for call in calls for message in call.messages()],
            response=[],
            started_at=min(call.started_at for call in calls),
            ended_at=now(),
            **self.claim(interaction, calls[0].caller_id),
        )
