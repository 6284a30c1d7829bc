"""What can be said of recorded work afterwards: the half of a recorder that is about outcomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from treadle_schemas.codec import EPISODE_END, OUTCOME
from treadle_schemas.events import OutcomeValue, Right
from treadle_schemas.ids import new_id

from treadle import targets
from treadle._given import Moment
from treadle._outcome_event import Kind, end_event, outcome_event

__all__ = ["Reporting"]


class _Publishes(Protocol):
    @property
    def workspace(self) -> str: ...

    def _publish_said(self, event: Callable[[], tuple[dict[str, Any], str]], kind: str = OUTCOME) -> None: ...


class Reporting:
    """Outcomes of interactions, episodes and references.

    `target` is whatever treadle.targets understands: a handle, its text, an open interaction or episode, a client library's answer, a
    provider's id, or a reference such as `pr:org/repo#12`. A repeated report should carry the same `outcome_id` (a webhook's delivery
    id), then it counts once; without one each call is a new outcome. Each call returns the outcome's id. `subject` says whose it is, for
    workspaces that encrypt by subject; of what this recorder recorded itself it is known.
    """

    def outcome(
        self: _Publishes,
        target: Any,
        name: str,
        value: OutcomeValue = None,
        *,
        observed_at: Moment | None = None,
        outcome_id: str | None = None,
        source: str | None = None,
        usage: Mapping[str, Any] | None = None,
        subject: str | None = None,
        op: Literal["set", "retract"] = "set",
    ) -> str | None:
        """Publish what became of an interaction, and return the outcome's id.

        `value` None says that its source has no value: absent, not pending. `op` retract is what `retract` does. `usage` is what a judge
        used to say it: `calls`, `prompt_tokens`, `completion_tokens`, `seconds`, `usd`, for `treadle cycle`.
        """
        return _publish(
            self,
            target,
            name,
            value,
            observed_at=observed_at,
            outcome_id=outcome_id,
            source=source,
            op=op,
            usage=usage,
            subject=subject,
        )

    def episode_outcome(
        self: _Publishes,
        episode: Any,
        name: str,
        value: OutcomeValue = None,
        *,
        observed_at: Moment | None = None,
        outcome_id: str | None = None,
        source: str | None = None,
        subject: str | None = None,
    ) -> str | None:
        """Publish what became of a whole episode: its id, its open scope, or the handle of any of its interactions."""
        return _publish(
            self,
            targets.WholeEpisode(episode, self.workspace),
            name,
            value,
            observed_at=observed_at,
            outcome_id=outcome_id,
            source=source,
            subject=subject,
        )

    def end_episode(self: _Publishes, episode: Any, *, ended_at: Moment | None = None) -> None:
        """Say that an episode is over: its id, its open scope, or the handle of any of its interactions. Scopes say it by themselves.

        What the workspace declares as a metric of episodes is final then; without a word that is so when nothing of the episode was
        recorded for a day. An interaction that starts after `ended_at` (now) opens it again.
        """
        self._publish_said(lambda: end_event(self.workspace, episode, ended_at), EPISODE_END)

    def retract(
        self: _Publishes,
        target: Any,
        name: str,
        *,
        outcome_id: str | None = None,
        observed_at: Moment | None = None,
        source: str | None = None,
        kind: Kind = "metric",
    ) -> None:
        """Take back one outcome by its id, or without one every outcome of that name observed at or before `observed_at` (now).

        Comments are named `comment` and so on, unless they were given another name.
        """
        _publish(
            self,
            target,
            name,
            None,
            observed_at=observed_at,
            outcome_id=outcome_id,
            source=source,
            op="retract",
            kind=kind,
        )

    def comment(
        self: _Publishes,
        target: Any,
        text: str,
        *,
        name: str = "comment",
        observed_at: Moment | None = None,
        outcome_id: str | None = None,
        source: str | None = None,
        subject: str | None = None,
    ) -> str | None:
        """Say in words what was good or bad."""
        return _publish(
            self,
            target,
            name,
            text,
            observed_at=observed_at,
            outcome_id=outcome_id,
            source=source,
            subject=subject,
            kind="comment",
        )

    def preference(
        self: _Publishes,
        target: Any,
        *,
        over: Any = None,
        messages: Sequence[Any] | None = None,
        name: str = "preference",
        observed_at: Moment | None = None,
        outcome_id: str | None = None,
        source: str | None = None,
        subject: str | None = None,
    ) -> str | None:
        """Say that the target is better than another interaction (`over`), or than an answer that was never recorded (`messages`)."""
        return _publish(
            self,
            target,
            name,
            None,
            observed_at=observed_at,
            outcome_id=outcome_id,
            source=source,
            subject=subject,
            kind="preference",
            over=over,
            messages=messages,
        )

    def demonstration(
        self: _Publishes,
        target: Any,
        messages: Sequence[Any] | str,
        *,
        name: str = "demonstration",
        observed_at: Moment | None = None,
        outcome_id: str | None = None,
        source: str | None = None,
        subject: str | None = None,
    ) -> str | None:
        """Say what the answer should have been: chat messages, or the text of one assistant message."""
        said = [{"role": "assistant", "content": messages}] if isinstance(messages, str) else messages
        return _publish(
            self,
            target,
            name,
            None,
            observed_at=observed_at,
            outcome_id=outcome_id,
            source=source,
            subject=subject,
            kind="demonstration",
            messages=said,
        )

    def rights(
        self: _Publishes,
        target: Any,
        *,
        train: Right | None = None,
        eval: Right | None = None,
        recall: Right | None = None,
        observed_at: Moment | None = None,
        source: str | None = None,
    ) -> list[str]:
        """Allow or deny what may be done with recorded work; deny wins over allow. One outcome each: their ids."""
        made = [
            _publish(self, target, name, given, observed_at=observed_at, source=source, kind="rights")
            for name, given in (("train", train), ("eval", eval), ("recall", recall))
            if given is not None
        ]
        return [outcome_id for outcome_id in made if outcome_id is not None]


def _publish(
    recorder: _Publishes,
    target: Any,
    name: str,
    value: OutcomeValue,
    *,
    observed_at: Moment | None,
    source: str | None,
    outcome_id: str | None = None,
    op: Literal["set", "retract"] = "set",
    kind: Kind = "metric",
    over: Any = None,
    messages: Sequence[Any] | None = None,
    usage: Mapping[str, Any] | None = None,
    subject: str | None = None,
) -> str | None:
    set_id = outcome_id or (new_id() if op == "set" else None)
    recorder._publish_said(
        lambda: outcome_event(
            recorder.workspace,
            target,
            name,
            value,
            kind=kind,
            op=op,
            outcome_id=set_id,
            observed_at=observed_at,
            source=source,
            over=over,
            messages=messages,
            usage=usage,
            subject=subject,
        )
    )
    return set_id
