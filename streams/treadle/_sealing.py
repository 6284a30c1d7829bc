"""The last step of recording in a workspace that encrypts: what is of a subject is sealed with the subject's key."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from treadle_schemas.codec import INTERACTION, OUTCOME
from treadle_schemas.sealing import Cipher, about

from treadle._sendable import Sendable

if TYPE_CHECKING:
    from treadle.keys import KeyRing

__all__ = ["Sealing"]

_REMEMBERED: Final = 16_384
"""Episodes whose subject is remembered, for what is said of them later, and for steps that name none."""


class Sealing:
    """Seals the records of one recorder's events, or of an import's. May be used from any thread."""

    def __init__(self, workspace: str) -> None:
        self._workspace = workspace
        self._lock = threading.Lock()
        self._subjects: OrderedDict[str, str] = OrderedDict()

    def of_interaction(self, value: dict[str, Any], keys: KeyRing | None) -> Cipher | None:
        """The key of an interaction and its parts. One without subject is its episode's, as far as that is known here; None: in clear.

        Raises SettingError, EncryptionMissing.
        """
        if keys is None:
            return None
        own = value["interaction_id"]
        episode = value.get("episode_id") or own
        subject = value.get("subject") or self._subjects.get(episode)
        if subject is None:
            return None
        self._remember(episode, subject)
        if own != episode:
            self._remember(own, subject)
        return keys.of_subject(subject)

    def of_outcome(self, value: dict[str, Any], keys: KeyRing | None) -> Cipher | None:
        """The key of an outcome: of the subject that it names, or that its target is known to have; None: in clear."""
        if keys is None:
            return None
        targets = (value.get("episode_id"), value.get("interaction_id"))
        known = (self._subjects.get(name) for name in targets if name is not None)
        subject = value.get("subject") or next((found for found in known if found is not None), None)
        return None if subject is None else keys.of_subject(subject)

    def interaction(self, value: dict[str, Any], records: list[Sendable], keys: KeyRing | None) -> list[Sendable]:
        """The records of an interaction, parts included, as they are sent."""
        cipher = self.of_interaction(value, keys)
        if cipher is None:
            return records
        return [r._replace(value=self.seal(cipher, r.value, INTERACTION, r.key)) for r in records]

    def outcome(self, value: dict[str, Any], record: Sendable, keys: KeyRing | None) -> list[Sendable]:
        """The record of an outcome as it is sent."""
        cipher = self.of_outcome(value, keys)
        if cipher is None:
            return [record]
        return [record._replace(value=self.seal(cipher, record.value, OUTCOME, record.key))]

    def seal(self, cipher: Cipher, text: bytes, event_type: str, key: bytes) -> bytes:
        """The value of a record of this workspace."""
        return cipher.seal(text, about(self._workspace, event_type, key))

    def _remember(self, name: str, subject: str) -> None:
        with self._lock:
            self._subjects[name] = subject
            self._subjects.move_to_end(name)
            if len(self._subjects) > _REMEMBERED:
                self._subjects.popitem(last=False)
