"""A recorder's sink for tests: nothing leaves the process.

sink = MemorySink()
recorder = Recorder("shop", sink=sink)
...
assert sink.interactions[0]["task_id"] == "refund"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from treadle_schemas.codec import INTERACTION, OUTCOME, PART, Event, Headers, decode
from treadle_schemas.ids import Handle
from treadle_schemas.parts import Part, read_part, resolve

from treadle._delivery import Done
from treadle._sendable import Sendable

__all__ = ["MemorySink", "Sent"]


class Sent(NamedTuple):
    """One event as it would have been sent."""

    topic: str
    key: bytes
    value: bytes
    headers: Headers

    @property
    def event(self) -> Event:
        """The event as a reader decodes it."""
        return decode(self.value, list(self.headers))


class MemorySink:
    """Keeps what a recorder sends, in order."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []

    @property
    def interactions(self) -> list[dict[str, Any]]:
        """The values of the recorded interactions, long contexts put back."""
        events = [(sent.event.type, sent.event.data) for sent in self.sent]
        known: dict[tuple[str, str], Part] = {}
        for kind, data in events:
            if kind == PART:
                episode_id, found = read_part(data)
                known |= {(episode_id, part.hash): part for part in found}

        def whole(data: dict[str, Any]) -> dict[str, Any]:
            episode_id = data.get("episode_id") or data["interaction_id"]
            return resolve(data, lambda name: known.get((episode_id, name)))

        return [whole(data) for kind, data in events if kind == INTERACTION]

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        """The values of the recorded outcomes and retractions."""
        return [sent.event.data for sent in self.sent if sent.event.type == OUTCOME]

    @property
    def handles(self) -> list[Handle]:
        """The handles of the recorded interactions."""
        made = []
        for sent in self.sent:
            if sent.event.type == INTERACTION:
                data = sent.event.data
                interaction = data["interaction_id"]
                made.append(Handle(sent.topic.split(".")[1], data.get("episode_id") or interaction, interaction))
        return made

    def clear(self) -> None:
        """Forget what was sent so far."""
        self.sent = []

    def send_many(self, events: Sequence[Sendable], done: Done) -> None:
        """Keep one event, and its companions before it."""
        self.sent += [Sent(event.template.topic, event.key, event.value, event.headers) for event in events]
        done(None)

    def flush(self, timeout_s: float) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to let go of."""

    def after_fork(self) -> None:
        """The child begins with a copy of what the parent recorded; it is the parent's."""
        self.sent = []
