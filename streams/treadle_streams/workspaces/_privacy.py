"""What is private and whose rights are denied, as a command line writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from treadle_schemas.errors import SettingError, shown
from treadle_schemas.pii import FieldRule, Pattern, PiiPolicy, RightsRule, built_in

RIGHT_FORM: Final = "subject=GLOB|model=GLOB|tag.NAME=GLOB[,...],train=deny[,eval=deny][,recall=deny]"
PATTERN_FORM: Final = "NAME[:ACTION]=REGEX"
ACTION_FORM: Final = "KIND=keep|mask|hash|drop|refuse"
FIELD_FORM: Final = "PATH[=ACTION]"


_Rule = TypeVar("_Rule", RightsRule, Pattern, FieldRule, PiiPolicy)


def parse_right(text: str) -> RightsRule:
    """The rule that `text` states, in the form of RIGHT_FORM. Raises SettingError."""
    fields: dict[str, Any] = {}
    tags: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if (
            not equals
            or not value
            or not (name.startswith("tag.") or name in RightsRule.__struct_fields__)
            or name == "tags"
        ):
            raise SettingError(f"right {shown(text)}: {shown(part)} is not understood; expected {RIGHT_FORM}")
        if name.startswith("tag."):
            tags[name[4:]] = value
        else:
            fields[name] = value
    return _converted({**fields, "tags": tags} if tags else fields, RightsRule, f"right {shown(text)}").checked()


def changed_policy(
    present: PiiPolicy,
    *,
    mode: str | None = None,
    file: Path | None = None,
    actions: tuple[str, ...] = (),
    patterns: tuple[str, ...] = (),
    fields: tuple[str, ...] = (),
    media: str | None = None,
    subject: str | None = None,
    name_model: str | None = None,
) -> PiiPolicy:
    """`present` with what the command line says: a built-in mode or a file starts afresh, the rest is put on top. Raises SettingError."""
    policy = present
    if mode is not None:
        policy = built_in(mode, present.version)
    if file is not None:
        policy = msgspec.structs.replace(read_policy(file), version=present.version)
    change: dict[str, Any] = {}
    if actions:
        change["actions"] = {**policy.actions, **dict(_pair(text, ACTION_FORM) for text in actions)}
    if patterns:
        change["patterns"] = [*policy.patterns, *(_pattern(text) for text in patterns)]
    if fields:
        change["fields"] = [*policy.fields, *(_field(text) for text in fields)]
    change |= {k: v for k, v in {"media": media, "subject": subject, "name_model": name_model}.items() if v is not None}
    if change:
        policy = _converted({**msgspec.to_builtins(policy), **msgspec.to_builtins(change)}, PiiPolicy, "pii")
    return policy.checked()


def read_policy(file: Path) -> PiiPolicy:
    """The policy in a JSON file. Raises SettingError."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=PiiPolicy).checked()
    except OSError as err:
        raise SettingError(f"pii file {file}: {err.strerror}") from None
    except msgspec.MsgspecError as err:
        raise SettingError(f"pii file {file}: {err}") from None


def _pair(text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise SettingError(f"pii {shown(text)}: expected {form}")
    return name, value


def _pattern(text: str) -> Pattern:
    head, regex = _pair(text, PATTERN_FORM)
    name, _, action = head.partition(":")
    return _converted({"name": name, "regex": regex, "action": action or "mask"}, Pattern, f"pii pattern {shown(text)}")


def _field(text: str) -> FieldRule:
    path, _, action = text.partition("=")
    return _converted({"path": path, "action": action or "mask"}, FieldRule, f"pii field {shown(text)}")


def _converted(fields: dict[str, Any], kind: type[_Rule], what: str) -> _Rule:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as err:
        raise SettingError(f"{what}: {err}") from None
