"""What leaves the process for one line: rights noted, private content taken out, what an episode repeats stored once."""

from __future__ import annotations

from typing import Any

from treadle._sealing import Sealing
from treadle.keys import ring_of
from treadle.policies import CapturePolicy
from treadle.redaction import Redactor
from treadle_schemas.codec import INTERACTION, OUTCOME, PART, encode
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
        self._sealing = Sealing(settings.workspace)
        self._keys = ring_of(settings.workspace) if settings.encrypt == "subjects" else None

    @property
    def pii(self) -> str:
        """The policy, for the headers."""
        return self._policy.header

    def interaction(self, value: dict[str, Any], key: str) -> list[tuple[str, bytes]]:
        """(type, bytes) of each record, the interaction last, for records keyed by `key`.

        Raises RedactionRefused, FieldError, SettingError.
        """
        denied = self._policy.rights_of(value)
        if denied:
            value = {**value, "rights": {**(value.get("rights") or {}), **denied}}
        value, parts = split(self._policy.redactor.redact(value), self._sent)
        records = [*((PART, encode(part)) for part in parts), (INTERACTION, encode(value))]
        cipher = self._sealing.of_interaction(value, self._keys)
        if cipher is None:
            return records
        return [(kind, self._sealing.seal(cipher, text, kind, key.encode())) for kind, text in records]

    def outcome(self, value: dict[str, Any]) -> bytes:
        """An outcome as it is written. Raises RedactionRefused, FieldError, SettingError."""
        value = self._policy.redactor.redact_outcome(value)
        cipher, text = self._sealing.of_outcome(value, self._keys), encode(value)
        return text if cipher is None else self._sealing.seal(cipher, text, OUTCOME, b"")

    def not_sent(self, episode: str) -> None:
        """The records of a line did not go out: their parts have to go with the next one of the episode."""
        self._sent.forget(episode)
