"""From the value of an event to the records that leave the process.

1. Rights are noted and private content is taken out, by the workspace's policy. 2. What an episode repeats is stored once. 3. Both are
encoded. 4. In a workspace that encrypts, what is of a subject is sealed with its key. Nothing of an event is written, to a file or to
Kafka, before step 1 is over; if that fails, a tombstone takes the text's place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from treadle_schemas.canonical import dumps
from treadle_schemas.codec import EPISODE_END, INTERACTION, OUTCOME, PART, encode
from treadle_schemas.ids import new_id
from treadle_schemas.parts import LONG_BYTES, SentParts, split

from treadle._sealing import Sealing
from treadle._sendable import Sendable, Templates
from treadle.errors import RedactionRefused
from treadle.policies import CapturePolicy, PolicySource
from treadle.redaction import TOMBSTONE_TEXT

__all__ = ["Pipeline"]

_KEPT: Final = ("interaction_id", "episode_id", "agent", "slot", "started_at", "ended_at")
"""What is left of an interaction whose redaction broke: what its maker's handle needs."""


class Pipeline:
    """One recorder's steps between `record` and its delivery. May be used from any thread."""

    def __init__(self, workspace: str, source: str, policies: PolicySource) -> None:
        self._templates = Templates(workspace, source)
        self._policies = policies
        self._sent = SentParts()
        self._sealing = Sealing(workspace)
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        """Told of each interaction after redaction, in the thread that redacts. They raise nothing."""

    def records(self, kind: str, value: dict[str, Any], key: str) -> list[Sendable]:
        """The records of one event, the event itself last.

        Raises RedactionRefused, FieldError for what JSON cannot carry, and where the workspace encrypts EncryptionMissing and SettingError.
        """
        raw_key = key.encode()
        policy = self._policies.current()
        if kind == OUTCOME:
            value = policy.redactor.redact_outcome(value)
            event_id = value.get("outcome_id") or new_id()
            template = self._templates.of(OUTCOME, policy.header)
            made = Sendable(template, raw_key, encode(value), event_id.encode(), value["observed_at"].encode())
            return self._sealing.outcome(value, made, policy.keys)
        if kind == EPISODE_END:  # names an episode and a moment, nothing private
            template = self._templates.of(EPISODE_END, policy.header)
            return [Sendable(template, raw_key, encode(value), new_id().encode(), value["ended_at"].encode())]
        value = _without_private(value, policy)
        for tell in self.listeners:
            tell(value)
        moment, event_id = value["ended_at"].encode(), value["interaction_id"].encode()
        template = self._templates.of(INTERACTION, policy.header)
        if "episode_id" not in value:
            raw = dumps(value)
            if len(raw) <= LONG_BYTES:  # alone and short, as nearly all are: nothing to store once
                return self._sealing.interaction(
                    value, [Sendable(template, raw_key, raw, event_id, moment)], policy.keys
                )
        value, parts = split(value, self._sent)
        try:
            part_template = self._templates.of(PART, policy.header)
            records = [
                Sendable(part_template, raw_key, encode(part), part["part"].encode(), moment, True) for part in parts
            ]
            records.append(Sendable(template, raw_key, encode(value), event_id, moment))
            records = self._sealing.interaction(value, records, policy.keys)
        except BaseException:
            self.not_sent(key)
            raise
        return records

    def not_sent(self, key: str) -> None:
        """The records of an event did not get out: its parts have to go with the next one of the episode."""
        self._sent.forget(key)

    def follow(self) -> None:
        """Keep the policy up to date from now on, in the background."""
        self._policies.refresh()

    def close(self) -> None:
        """Stop following the policy."""
        self._policies.close()

    def after_fork(self) -> None:
        """In a forked child: what the parent sent is the parent's to send again."""
        self._sent = SentParts()


def _without_private(value: dict[str, Any], policy: CapturePolicy) -> dict[str, Any]:
    try:
        denied = policy.rights_of(value)
        if denied:
            # deny wins over what the caller says
            value = {**value, "rights": {**(value.get("rights") or {}), **denied}}
        return policy.redactor.redact(value)
    except RedactionRefused:
        raise
    except Exception as err:  # the redactor fails closed itself; this is for whatever it did not think of
        return {
            **{name: value[name] for name in _KEPT if name in value},
            "messages": [{"role": "system", "content": TOMBSTONE_TEXT}],
            "rights": {"train": "deny", "eval": "deny", "recall": "deny"},
            "redaction": {"policy": policy.name, "version": policy.version, "error": type(err).__name__},
        }
