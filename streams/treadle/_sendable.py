"""One record on its way out: what it says, and the bytes that every record of its kind begins with, made once."""

from __future__ import annotations

from typing import Final, NamedTuple

from treadle_schemas.codec import EPISODE_END, INTERACTION, OUTCOME, PART, Headers, make_headers
from treadle_schemas.topics import topic

from treadle.spool._format import COMPANION, EVENT, encode_headers, frame_around

__all__ = ["Sendable", "Template", "Templates"]

_VARYING: Final = ("ce_id", "ce_time")
_TOPICS: Final = {
    INTERACTION: "interactions",
    PART: "interactions",
    EPISODE_END: "interactions",
    OUTCOME: "outcomes",
}


class Template:
    """What all records of one topic, type and policy share."""

    def __init__(self, topic: str, event_type: str, workspace: str, source: str, pii: str) -> None:
        self.topic = topic
        self.topic_bytes = topic.encode()
        made = make_headers(event_type, workspace, source=source, pii=pii)
        self.headers: Headers = [(name, value) for name, value in made if name not in _VARYING]
        self.header_bytes = encode_headers(self.headers)


class Sendable(NamedTuple):
    """One record. `event_id` and `time` become its `ce_id` and `ce_time`; a companion goes with the event behind it, uncounted."""

    template: Template
    key: bytes
    value: bytes
    event_id: bytes
    time: bytes
    companion: bool = False

    @property
    def headers(self) -> Headers:
        """All its headers."""
        return [*self.template.headers, ("ce_id", self.event_id), ("ce_time", self.time)]

    def frame(self) -> tuple[bytes, bytes]:
        """As a frame of the spool, in two pieces."""
        template = self.template
        headers = template.header_bytes + encode_headers((("ce_id", self.event_id), ("ce_time", self.time)))
        tag = COMPANION if self.companion else EVENT
        return frame_around(tag, template.topic_bytes, self.key, headers, self.value)


class Templates:
    """The templates of one recorder, by event type and PII policy."""

    def __init__(self, workspace: str, source: str) -> None:
        self._workspace = workspace
        self._source = source
        self._made: dict[tuple[str, str], Template] = {}

    def of(self, event_type: str, pii: str) -> Template:
        """The template of an event type under a policy."""
        found = self._made.get((event_type, pii))
        if found is None:
            name = topic(self._workspace, _TOPICS[event_type])
            found = Template(name, event_type, self._workspace, self._source, pii)
            self._made[event_type, pii] = found
        return found
