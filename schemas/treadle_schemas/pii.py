"""The PII policy and the usage rights of a workspace, as its settings say them. What carries them out is `treadle.redaction`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import msgspec

from treadle_schemas._regex import check_pattern
from treadle_schemas.errors import SettingError, shown
from treadle_schemas.events import Right

__all__ = [
    "ACTIONS",
    "BUILT_IN",
    "KINDS",
    "SECRET_KINDS",
    "STRICTEST",
    "Action",
    "FieldRule",
    "Pattern",
    "PiiPolicy",
    "PolicyName",
    "RightsRule",
    "built_in",
    "rights_of",
]

Action = Literal["keep", "mask", "hash", "drop", "refuse"]
ACTIONS: Final[tuple[Action, ...]] = ("keep", "mask", "hash", "drop", "refuse")
PolicyName = Literal["off", "secrets", "standard", "strict", "custom"]

SECRET_KINDS: Final = ("private_key", "jwt", "api_key", "secret", "url_credentials")
KINDS: Final = (*SECRET_KINDS, "email", "phone", "card", "iban", "national_id", "ip", "name")
"""What the detectors can find. `name` needs the extra `names` and a language model (`name_model`)."""

FIELD_ROOTS: Final = ("messages", "tools", "tags", "error", "subject", "sampling")
"""The fields of an interaction that a field rule may name; ids, times and structure stay as they are."""
MAX_RULES: Final = 64
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_-]*|\*)|\[(\*|[0-9]{1,6})\]|\[\"([^\"\\]{1,128})\"\]")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class Pattern(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A regular expression of the workspace's own. What it matches counts as kind `name`."""

    name: str
    regex: str
    action: Action = "mask"


class FieldRule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A place that is private whatever stands there: `$.tags.customer`, `$.messages[*].content`.

    A path leads on into JSON that a string holds: `$.messages[*].tool_calls[*].function.arguments.street`.
    """

    path: str
    action: Action = "mask"

    def steps(self) -> tuple[str | int, ...]:
        """The path in parts: names, indices, and `*` for every one. Raises SettingError."""
        rest, found = self.path.removeprefix("$"), list[str | int]()
        while rest:
            step = _STEP.match(rest)
            if step is None or not self.path.startswith("$"):
                raise SettingError(f"pii field {shown(self.path)}: expected a path such as $.messages[*].content")
            name, index, quoted = step.groups()
            found.append(int(index) if index not in (None, "*") else (name or quoted or "*"))
            rest = rest[step.end() :]
        if not found or found[0] not in FIELD_ROOTS:
            raise SettingError(f"pii field {shown(self.path)}: only {', '.join(FIELD_ROOTS)} can be redacted")
        return tuple(found)


class PiiPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is private in a workspace, and what becomes of it before an event is written anywhere."""

    name: PolicyName = "secrets"
    version: int = 1
    """Rises by one with every change; each row says under which version it was redacted."""
    actions: dict[str, Action] = {}
    """By kind, over what the built-in policy of that name does. `custom` starts from nothing."""
    patterns: tuple[Pattern, ...] = ()
    fields: tuple[FieldRule, ...] = ()
    media: Literal["hash", "bytes"] | None = None
    """Images, audio and files inside messages: kept, or replaced by their hash, type and size. None: as the built-in policy does."""
    subject: Literal["keep", "hash"] | None = None
    """The interaction's `subject`. None: as the built-in policy does."""
    phone_regions: tuple[str, ...] = ("US", "GB", "DE", "FR")
    """Countries (ISO 3166) whose national way to write a phone number is recognised; +-numbers always are."""
    name_model: str | None = None
    """The spaCy model that finds names, for example en_core_web_sm. It has to be installed where agents run."""

    def effective(self) -> dict[str, Action]:
        """The action of every kind that has one."""
        merged: dict[str, Action] = {**_ACTIONS_OF[self.name], **self.actions}
        if self.name_model is not None:
            merged.setdefault("name", "mask")
        return {kind: action for kind, action in merged.items() if action != "keep"}

    @property
    def media_action(self) -> Literal["hash", "bytes"]:
        """What becomes of media."""
        return self.media or ("hash" if self.name in ("standard", "strict") else "bytes")

    @property
    def subject_action(self) -> Literal["keep", "hash"]:
        """What becomes of the subject."""
        return self.subject or ("hash" if self.name == "strict" else "keep")

    def checked(self) -> PiiPolicy:
        """Itself, if it makes sense. Raises SettingError naming the setting."""
        unknown = sorted(set(self.actions) - set(KINDS))
        if unknown:
            raise SettingError(f"pii kind {shown(unknown[0])} is not known; kinds: {', '.join(KINDS)}")
        if len(self.patterns) > MAX_RULES or len(self.fields) > MAX_RULES:
            raise SettingError(f"pii: at most {MAX_RULES} patterns and {MAX_RULES} fields")
        if self.effective().get("name") and self.name_model is None:
            raise SettingError("pii kind name: say which spaCy model finds names (name_model)")
        for pattern in self.patterns:
            if not _NAME.fullmatch(pattern.name) or pattern.name in KINDS:
                raise SettingError(
                    f"pii pattern {shown(pattern.name)}: a name has a-z, 0-9, _ and is none of the built-in kinds"
                )
            check_pattern(pattern.regex, f"pii pattern {pattern.name}")
        for rule in self.fields:
            rule.steps()
        for region in self.phone_regions:
            if not re.fullmatch(r"[A-Z]{2}", region):
                raise SettingError(f"pii phone region {shown(region)}: expected a country code such as US")
        return self


_SECRETS: Final[dict[str, Action]] = dict.fromkeys(SECRET_KINDS, "mask")
_STANDARD: Final[dict[str, Action]] = {
    **_SECRETS,
    **dict.fromkeys(("email", "phone", "card", "iban", "national_id"), "mask"),
}
_ACTIONS_OF: Final[dict[str, dict[str, Action]]] = {
    "off": {},
    "secrets": _SECRETS,
    "standard": _STANDARD,
    "strict": {**_STANDARD, "ip": "mask"},
    "custom": {},
}

BUILT_IN: Final[dict[str, PiiPolicy]] = {
    "off": PiiPolicy(name="off"),
    "secrets": PiiPolicy(name="secrets"),
    "standard": PiiPolicy(name="standard"),
    "strict": PiiPolicy(name="strict"),
}
"""What `--pii` of `treadle workspace create` may name."""
STRICTEST: Final = PiiPolicy(name="strict", version=0)
"""The policy of a process that never saw its workspace's. No workspace has version 0."""


def built_in(name: str, version: int = 1) -> PiiPolicy:
    """The built-in policy of that name. Raises SettingError."""
    if name not in BUILT_IN:
        raise SettingError(f"pii {shown(name)}: expected one of {', '.join(BUILT_IN)}")
    return msgspec.structs.replace(BUILT_IN[name], version=version)


class RightsRule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What may be done with the interactions that a rule matches. Globs (`*`, `?`); everything that is named has to match."""

    subject: str | None = None
    tags: dict[str, str] = {}
    """Glob by tag, for example tenant: acme-*."""
    model: str | None = None
    """The model that spoke: for source models whose licence forbids training on what they say."""
    train: Right = "allow"
    eval: Right = "allow"
    recall: Right = "allow"

    def checked(self) -> RightsRule:
        """Itself, if it names something to match and denies something. Raises SettingError."""
        if self.subject is None and self.model is None and not self.tags:
            raise SettingError("right: name what it is about: subject=, model= or tag.NAME=")
        if "deny" not in (self.train, self.eval, self.recall):
            raise SettingError("right: say what is denied: train=deny, eval=deny or recall=deny")
        return self

    def matches(self, value: Mapping[str, Any]) -> bool:
        """Whether an interaction (a plain dict) is meant."""
        if self.subject is not None and not _matches(value.get("subject"), self.subject):
            return False
        if self.model is not None and not _matches(value.get("model"), self.model):
            return False
        tags = value.get("tags")
        return all(isinstance(tags, Mapping) and _matches(tags.get(name), glob) for name, glob in self.tags.items())


def rights_of(rules: tuple[RightsRule, ...], value: Mapping[str, Any]) -> dict[str, str] | None:
    """What the rules deny of an interaction, or None where they deny nothing."""
    denied: dict[str, str] = {}
    for rule in rules:
        if rule.matches(value):
            for use in ("train", "eval", "recall"):
                if getattr(rule, use) == "deny":
                    denied[use] = "deny"
    return denied or None


def _matches(value: object, glob: str) -> bool:
    # a tag may be a number; true is written as in JSON
    if value is None:
        return False
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    return fnmatchcase(text, glob)
