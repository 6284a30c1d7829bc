"""From a request and its reply to interactions, for every integration alike."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from treadle_schemas.ids import Handle, new_id

from treadle import episodes, targets
from treadle.integrations._formats import Asked, Reply, Sample
from treadle.integrations._structure import Node, current, id_of

if TYPE_CHECKING:
    from treadle.recorder import Recorder

__all__ = ["Place", "note", "publish", "recorded_lately", "trouble"]

_LOG = logging.getLogger("treadle")
_QUIET_S: Final = 10.0
_LATELY_S: Final = 120.0
"""For so long an adapter may report a call after the HTTP hook recorded it. Some servers reuse their response ids after a while."""
_MAX_LATELY: Final = 10_000

_lately: dict[str, float] = {}
_quiet_until: dict[str, float] = {}


class Place:
    """Where in the agent's work a call is made, as known just before it: the caller's open episode, and what adapters say.

    The call's interaction id is known from here on.
    """

    def __init__(self, recorder: Recorder, own: Node | None = None, interaction_id: str | None = None) -> None:
        """What is current here is marked as seen, and `own`, the node of the adapter that records.

        `interaction_id` is the call's where it has an id that other sources of the same call know too.
        """
        self._named = interaction_id is not None
        self.interaction_id = interaction_id or new_id()
        self._nodes = [node for node in current() if node is not own]
        if own is not None:
            self._nodes.insert(0, own)
        for node in self._nodes:
            node.seen = True
        turn = episodes.current_turn()
        self.explicit = (
            turn is not None and turn.explicit and turn.is_open and turn.episode.workspace == recorder.workspace
        )
        """The host records this call itself: nobody else shall."""
        self.fields: dict[str, Any] = {} if self.explicit else self._claim(recorder)
        """The arguments of Recorder.record that say where. What the caller's own episode says wins."""
        self.tags: dict[str, Any] = {**self.fields.pop("tags", {})}
        for node in self._nodes:
            self.tags = {**node.tags, **self.tags}

    @classmethod
    def of(cls, recorder: Recorder, own: Node, interaction_id: str | None = None) -> Place:
        """The place at which the call of a model that `own` stands for was made."""
        if own.context is None:
            return cls(recorder, own, interaction_id)
        return own.context.run(cls, recorder, own, interaction_id)

    def id_of(self, index: int) -> str:
        """The id of the interaction that is the answer of that index."""
        if not index:
            return self.interaction_id
        return f"{self.interaction_id}:{index}" if self._named else new_id()

    def _claim(self, recorder: Recorder) -> dict[str, Any]:
        said = episodes.claim(recorder.workspace, self.interaction_id)
        for node in self._nodes:
            if "episode_id" not in said and node.episode_id is not None:
                said.update(episode_id=node.episode_id, step=node.next_step())
            for name, given in (("slot", node.slot), ("parent_id", node.parent_id)):
                if given is not None:
                    said.setdefault(name, given)
        episode_id = said.get("episode_id") or self.interaction_id
        for node in self._nodes:
            node.recorded(Handle(recorder.workspace, episode_id, self.interaction_id))
        return said


def publish(
    recorder: Recorder,
    place: Place,
    asked: Asked,
    reply: Reply,
    *,
    started_at: str,
    ended_at: str | None = None,
    first_token_ms: float | None = None,
    attempts: list[dict[str, Any]] | None = None,
) -> None:
    """Record what became of one call: an interaction a sample, and one without a response where there is none.

    The first sample bears the reference `response:<id>`, usage and cost; the others are `response:<id>:<index>`.
    """
    said = dict(place.fields)
    shared = said.pop("references", [])
    tags = {**place.tags, **asked.tags}
    for index, sample in enumerate(reply.samples or [Sample(messages=[])]):
        before = len(asked.messages)
        messages = [*asked.messages, *sample.messages]
        if not messages:
            trouble("a call without messages cannot be recorded", reply.error or reply.response_id or "no response")
            return
        error = reply.error
        reason = sample.finish_reason
        if not reply.complete and error is None:
            error, reason = "truncated: the stream ended before its last event", "truncated"
        reference = id_of(f"response:{reply.response_id}{f':{index}' if index else ''}") if reply.response_id else None
        handle = recorder.record(
            interaction_id=place.id_of(index),
            messages=messages,
            response=range(before, len(messages)),
            tools=asked.tools,
            model=reply.model or asked.model,
            sampling=asked.sampling,
            usage=None if index else reply.usage,
            cost=None if index else reply.cost,
            finish_reason=reason,
            logprobs=sample.logprobs,
            token_ids=sample.token_ids,
            status="error" if error else None,
            error=error,
            started_at=started_at,
            ended_at=ended_at,
            first_token_ms=first_token_ms,
            attempts=attempts or None,
            references=[*shared, *([reference] if reference else ())] or None,
            tags=tags or None,
            **said,
        )
        if reply.response_id and not index:
            targets.remember(reply.response_id, handle)


def recorded_lately(response_id: object) -> bool:
    """Whether the HTTP hook recorded an answer of that id in the last two minutes."""
    return isinstance(response_id, str) and _lately.get(response_id, 0.0) > time.monotonic()


def trouble(kind: str, problem: object) -> None:
    """Log what went wrong in an integration, at most one of a kind in ten seconds. Its host must not notice more than that."""
    moment = time.monotonic()
    if moment >= _quiet_until.get(kind, 0.0):
        _quiet_until[kind] = moment + _QUIET_S
        _LOG.warning("%s: %s", kind, problem)


def note(response_id: str) -> None:
    """The HTTP hook records an answer of that id."""
    _lately.pop(response_id, None)
    _lately[response_id] = time.monotonic() + _LATELY_S
    while len(_lately) > _MAX_LATELY:
        try:
            _lately.pop(next(iter(_lately)), None)
        except (RuntimeError, StopIteration):  # another thread changed it, and looks after its size
            return
