"""The half of a recorder that opens scopes: episodes, interactions, decorated functions and tools."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from treadle.episodes import EpisodeScope, Tags, where

if TYPE_CHECKING:
    from collections.abc import Callable

    from treadle.decorators import Decorator
    from treadle.interactions import InteractionScope
    from treadle.recorder import Recorder

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["Scopes", "load"]


def load() -> None:
    """Import what scopes need, when a recorder is made: a fork while a thread imports leaves the module locked in the child for ever."""
    for name in ("interactions", "decorators", "integrations._formats"):
        importlib.import_module(f"treadle.{name}")


class Scopes:
    """Scopes of an agent's work; see treadle.episodes for how far they reach."""

    def episode(
        self,
        *,
        task_id: str | None = None,
        episode_id: str | None = None,
        slot: str | None = None,
        agent: str | None = None,
        subject: str | None = None,
        tags: Tags | None = None,
        references: Sequence[str] = (),
        first_step: int = 0,
        ends: bool | None = None,
    ) -> EpisodeScope:
        """Open an episode with `with` or `async with`: interactions inside share its id and count steps up from `first_step`.

        Inside another one it is a sub-agent: the same episode and count of steps, its own slot, and the calling interaction as parent.
        What it does not say it takes from the outer one. With an `episode_id` other than the outer's it is an episode of its own. A
        conversation that goes on in another process is opened again by its `episode_id`; give `first_step` where the order of steps
        shall not rest on time alone. `references` are names by which an outcome may find it later, such as `pr:org/repo#12`.

        When the scope closes it says that the episode is over, as `end_episode` does, unless it was given an `episode_id`; `ends`
        decides otherwise.
        """
        return EpisodeScope(
            cast("Recorder", self),
            task_id=task_id,
            episode_id=episode_id,
            slot=slot,
            agent=agent,
            subject=subject,
            tags=tags,
            references=references,
            first_step=first_step,
            ends=ends,
            inside=where(),
        )

    def interaction(
        self,
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
    ) -> InteractionScope:
        """Open one interaction with `with` or `async with`; `messages` is the request. Then say what came back:
        `turn.respond(answer)`, or iterate `turn.stream(chunks)`. `turn.handle` is known from the start.

        Outside an episode it is an episode of its own, which nested interactions and tools join.
        """
        from treadle.interactions import InteractionScope

        return InteractionScope(
            cast("Recorder", self),
            messages=messages,
            model=model,
            tools=tools,
            sampling=sampling,
            task_id=task_id,
            episode_id=episode_id,
            interaction_id=interaction_id,
            slot=slot,
            agent=agent,
            release=release,
            subject=subject,
            tags=tags,
            references=references,
        )

    @overload
    def traced(self, function: F, /) -> F: ...

    @overload
    def traced(
        self,
        function: None = None,
        /,
        *,
        model: str | None = None,
        slot: str | None = None,
        agent: str | None = None,
        release: str | None = None,
        task_id: str | None = None,
        subject: str | None = None,
        tags: Tags | None = None,
    ) -> Decorator: ...

    def traced(self, function: Any = None, /, **options: Any) -> Any:
        """Decorate a function: each call is an interaction. Functions, coroutine functions, generators, asynchronous generators.

        The request is the argument `messages`, if that is a list of chat messages, otherwise one user message with the arguments as
        JSON. The response is what is returned, as `turn.respond` understands it, or what is yielded, as `turn.stream` does. Decorated
        functions that it calls are its children. `treadle.current_turn()` gives the open interaction, for its handle.
        """
        from treadle.decorators import traced

        return traced(cast("Recorder", self), function, **options)

    @overload
    def tool(self, function: F, /) -> F: ...

    @overload
    def tool(self, function: None = None, /, *, name: str | None = None) -> Decorator: ...

    def tool(self, function: Any = None, /, *, name: str | None = None) -> Any:
        """Decorate a tool: each call is kept as a message of role tool, with its arguments, its result or its error.

        It goes to the interaction that is open. Between two interactions of an episode it is matched with the call that the model asked
        for; when no later interaction repeats its result it becomes an interaction without a response at the episode's end. Sub-agents
        that run inside have the interaction that asked for the tool as their parent.
        """
        from treadle.decorators import tool

        return tool(cast("Recorder", self), function, name=name)
