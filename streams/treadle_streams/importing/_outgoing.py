"""What leaves the process for one line: rights noted, private content taken out, what an episode repeats stored once."""

from __future__ import annotations

from typing import Any

from treadle.policies import CapturePolicy
from treadle.redaction import Redactor
from treadle_schemas.codec import INTERACTION, PART
from treadle_schemas.parts import SentParts, split
from treadle_schemas.workspace import WorkspaceSettings

__all__ = ["Outgoing"]


class Outgoing:
    """An import's own redactor and memory of parts, so that the same files give the same bytes."""

    def __init__(self, settings: WorkspaceSettings, hash_key: bytes | None) -> None:
        self._policy = CapturePolicy(
            Redactor(settings.pii, hash_key), settings.rights, settings.pii.name, settings.pii.version
        )
        self._sent = SentParts()

    @property
    def pii(self) -> str:
        """The policy, for the headers."""
        return self._policy.header

    def interaction(self, value: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """(type, value) of each record, the interaction last. Raises RedactionRefused, FieldError."""
        denied = self._policy.rights_of(value)
        if denied:
            value = {**value, "rights": {**(value.get("rights") or {}), **denied}}
        value, parts = split(self._policy.redactor.redact(value), self._sent)
        return [*((PART, part) for part in parts), (INTERACTION, value)]

    def outcome(self, value: dict[str, Any]) -> dict[str, Any]:
        """An outcome as it may be written. Raises RedactionRefused."""
        return self._policy.redactor.redact_outcome(value)

    def not_sent(self, episode: str) -> None:
        """The records of a line did not go out: their parts have to go with the next one of the episode."""
        self._sent.forget(episode)
