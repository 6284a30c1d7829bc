"""`Redactor`: a PII policy at work on events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from treadle_schemas.pii import Action, PiiPolicy

from treadle.errors import RedactionRefused
from treadle.redaction import _places
from treadle.redaction._episodes import Memory
from treadle.redaction._finding import PLACEHOLDER
from treadle.redaction._scan import Scanner
from treadle.redaction._walk import DROP, STRUCTURE, Refused, Walk, keyed_hash

__all__ = ["TOMBSTONE_TEXT", "Redactor", "subject_hash"]

TOMBSTONE_TEXT: Final = "[treadle: the content was dropped, because redacting it failed]"
FIELDS: Final = ("messages", "tools", "tags", "error", "sampling", "attempts")
"""The fields of an interaction that are gone through. Ids, references and times stay as they are."""
_KEPT: Final[dict[str, type | tuple[type, ...]]] = {
    "interaction_id": str, "episode_id": str, "task_id": str, "agent": str, "slot": str, "model": str, "release": str, "step": int,
    "started_at": str, "ended_at": str, "status": str, "parent_id": str, "references": list, "finish_reason": str, "cost": (int, float),
    "first_token_ms": (int, float),
}  # fmt: skip
"""What a tombstone keeps, where it has the right type."""
_SCALARS: Final = (int, float, bool, type(None))
_NO_COUNTS: Final[dict[str, int]] = {}


class Redactor:
    """Carries out a policy, from any thread. Keeps no private text; see `treadle.redaction` for what becomes of what.

    `hash_key` is the secret of the keyed hash; without one, what the policy hashes is masked instead.
    """

    def __init__(self, policy: PiiPolicy, hash_key: bytes | None = None) -> None:
        self.policy = policy.checked()
        self._actions: dict[str, Action] = policy.effective()
        self._actions |= {pattern.name: pattern.action for pattern in policy.patterns}
        self._hash_key = hash_key
        self._memory = Memory()
        self._scanner = Scanner(policy)
        self._rules: list[tuple[tuple[str | int, ...], Action]] = [
            (rule.steps(), rule.action) for rule in policy.fields if rule.action != "keep"
        ]
        self._keep_media = policy.media_action == "bytes"
        self._hash_subject = policy.subject_action == "hash"
        self._idle = (
            not self._scanner.looks_for_anything and not self._rules and self._keep_media and not self._hash_subject
        )
        self._clean: dict[str, Any] = {"policy": policy.name, "version": policy.version}

    def redact(self, value: dict[str, Any]) -> dict[str, Any]:
        """The interaction as it may be written: `value` is not changed, what is not private is shared with it.

        Fails closed: what cannot be redacted becomes a tombstone with the same ids and times and without the text, denied
        every use, with `redaction.error` saying what went wrong and where. Raises RedactionRefused where the policy refuses what was found.
        """
        place = ["$"]
        try:
            return self._redacted(value, place)
        except Refused as err:
            raise RedactionRefused(err.kind, self.policy.name, self.policy.version) from None
        except Exception as err:  # whatever it is, the text must not get out because of it
            return self._tombstone(value, f"{type(err).__name__} at {place[0]}")

    def subject(self, subject: str) -> str | None:
        """How the subject of an outcome is written. Where there is no key for hashes, it is left out."""
        if not self._hash_subject or PLACEHOLDER.fullmatch(subject):
            return subject
        return subject_hash(self._hash_key, subject) if self._hash_key else None

    def warm(self) -> None:
        """Load what the first candidates of a process need (phone numbers, check digits): some 50 ms, better spent in the background."""
        if not self._idle:
            sample = "call +1 415 555 2671, IBAN DE89 3704 0044 0532 0130 00, SSN 536-22-1234"
            self.redact({"interaction_id": "", "messages": [{"role": "user", "content": sample}]})

    def redact_outcome(self, value: dict[str, Any]) -> dict[str, Any]:
        """The outcome as it may be written: the text of a comment, the messages of a demonstration or preference, its subject.

        Fails closed like `redact`; raises RedactionRefused.
        """
        if self._hash_subject and isinstance(value.get("subject"), str):
            value = {**value, "subject": self.subject(value["subject"])}
        comment = value.get("kind") == "comment" and isinstance(value.get("value"), str)
        if self._idle or not (comment or value.get("messages")):
            return value
        try:
            walk = self._walk(value)
            done = dict(value)
            if comment:
                done["value"] = _text_of(walk.string(value["value"], value, "value"))
            if value.get("messages"):
                done["messages"] = walk.value(value["messages"])
            return done
        except Refused as err:
            raise RedactionRefused(err.kind, self.policy.name, self.policy.version) from None
        except Exception:
            done = dict(value)
            if comment:
                done["value"] = TOMBSTONE_TEXT
            if "messages" in value:
                done["messages"] = [{"role": "system", "content": TOMBSTONE_TEXT}]
            return done

    def _redacted(self, value: dict[str, Any], place: list[str]) -> dict[str, Any]:
        before = value.get("redaction")
        done = dict(value)
        done["redaction"] = self._said(before, _NO_COUNTS)
        if self._idle or (not self._rules and not self._hash_subject and self._all_clean(value)):
            return done
        walk = self._walk(value)
        for steps, action in self._rules:
            place[0] = f"$.{steps[0]}"
            made = _places.apply(walk, done, steps, action)
            done = done if made is DROP else made
        for field in FIELDS:
            part = done.get(field)
            if part is not None:
                place[0] = f"$.{field}"
                made = (
                    self._messages(walk, part, place)
                    if field == "messages" and isinstance(part, list)
                    else walk.value(part, done, field)
                )
                if made is DROP:
                    del done[field]
                elif made is not part:
                    done[field] = made
        place[0] = "$.subject"
        self._subject(walk, done)
        private = {kind: count for kind, count in walk.counts.items() if kind != "media"}
        if private and ("token_ids" in done or "logprobs" in done):
            # they spell the original text
            done.pop("token_ids", None)
            done.pop("logprobs", None)
            walk.count("token_ids")
        done["redaction"] = self._said(before, walk.counts)
        return done

    def _messages(self, walk: Walk, messages: list[Any], place: list[str]) -> list[Any]:
        changed: list[Any] | None = None
        for i, message in enumerate(messages):
            place[0] = f"$.messages[{i}]"
            done = walk.value(message)
            if done is not message:
                changed = list(messages) if changed is None else changed
                changed[i] = {"role": "system", "content": None} if done is DROP else done
        return messages if changed is None else changed

    def _subject(self, walk: Walk, done: dict[str, Any]) -> None:
        subject = done.get("subject")
        if not isinstance(subject, str) or PLACEHOLDER.fullmatch(subject):
            return
        if self._hash_subject:
            key = self._hash_key
            walk.count("subject")
            done["subject"] = subject_hash(key, subject) if key else walk.replace(subject, "subject", "mask")
            if not key:
                walk.counts["subject"] -= 1
            return
        made = walk.string(subject)
        if made is DROP:
            del done["subject"]
        else:
            done["subject"] = made

    def _all_clean(self, value: Mapping[str, Any]) -> bool:
        """Whether one look at all strings together shows that nothing can be in them."""
        texts: list[str] = []
        clean = self._memory.clean
        for field in FIELDS:
            part = value.get(field)
            if part is not None and not _collect(part, texts, clean):
                return False
        subject = value.get("subject")
        if isinstance(subject, str):
            texts.append(subject)
        if not texts:
            return True
        if self._scanner.may_hold("\n".join(texts)):
            return False
        for text in texts:
            if len(text) > 64:
                self._memory.remember_clean((hash(text), len(text)))
        return True

    def _walk(self, value: Mapping[str, Any]) -> Walk:
        episode = value.get("episode_id") or value.get("interaction_id") or ""
        return Walk(
            self._scanner,
            self._actions,
            self._memory,
            lambda: self._memory.episode(str(episode)),
            self._hash_key,
            self._keep_media,
        )

    def _said(self, before: Any, counts: Mapping[str, int]) -> dict[str, Any]:
        """What the row says of its redaction; counts of an earlier one are added."""
        said = dict(self._clean)
        earlier = before.get("counts") if isinstance(before, dict) else None
        merged = dict(counts)
        if isinstance(earlier, dict):
            for kind, count in earlier.items():
                if isinstance(kind, str) and isinstance(count, int):
                    merged[kind] = merged.get(kind, 0) + count
        if merged:
            said["counts"] = merged
        if isinstance(before, dict) and isinstance(before.get("error"), str):
            said["error"] = before["error"]
        return said

    def _tombstone(self, value: dict[str, Any], problem: str) -> dict[str, Any]:
        kept = {
            name: value[name]
            for name, kinds in _KEPT.items()
            if name in value and isinstance(value[name], kinds) and not isinstance(value[name], bool)
        }
        messages = [{"role": "system", "content": TOMBSTONE_TEXT}]
        rights = {"train": "deny", "eval": "deny", "recall": "deny"}
        return {**kept, "messages": messages, "rights": rights, "redaction": {**self._clean, "error": problem}}


def subject_hash(key: bytes, subject: str) -> str:
    """How a workspace that hashes subjects writes one."""
    return f"[SUBJECT:{keyed_hash(key, 'subject', subject)}]"


def _collect(value: Any, texts: list[str], clean: Mapping[tuple[int, int], None]) -> bool:
    """Gather every string of `value` that is not known to be clean. False where it holds what only a closer look can tell."""
    if isinstance(value, str):
        if (hash(value), len(value)) not in clean:
            texts.append(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str):
                if key in STRUCTURE and len(item) < 32:
                    texts.append(item)
                    continue
                if key not in ("role", "content") and isinstance(key, str):
                    texts.append(key)
                if item.startswith("data:") or key in ("data", "file_data"):
                    return False
                if (hash(item), len(item)) not in clean:
                    texts.append(item)
            elif not isinstance(item, _SCALARS):
                if isinstance(key, str):
                    texts.append(key)
                if not _collect(item, texts, clean):
                    return False
            else:
                if isinstance(key, str):
                    texts.append(key)
                if isinstance(item, int) and item >= 10_000_000:
                    texts.append(f"{key}: {item}")
    elif isinstance(value, list | tuple):
        for item in value:
            if not _collect(item, texts, clean):
                return False
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 10_000_000:
        texts.append(str(value))
    return True


def _text_of(made: Any) -> str:
    return "[DROPPED]" if made is DROP else str(made)
