"""Identity: interaction ids, handles and release ids.

A row is (workspace, episode_id, interaction_id). Its handle `workspace/episode/interaction` has percent-encoded parts, so that any
id survives a URL, a database column or a pull-request comment.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote

from treadle_schemas.errors import FieldError, HandleError, shown

__all__ = ["MAX_ID_BYTES", "Handle", "ReleaseId", "check_id", "check_slot", "check_workspace", "new_id"]

MAX_ID_BYTES = 256
_WORKSPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SLOT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_MARK = re.compile(r"\btreadle:\s{0,8}([A-Za-z0-9_.~%-]+/[A-Za-z0-9_.~%-]+/[A-Za-z0-9_.~%-]+)", re.IGNORECASE)
_RELEASE_NUMBER = re.compile(r"r(0|[1-9][0-9]{0,9})")


# 80 random bits for each of the next ids: one system call for many. Emptied in a forked child, which must not draw its parent's.
_chances: list[int] = []
os.register_at_fork(after_in_child=_chances.clear)


def _more_chances() -> int:
    drawn = os.urandom(2560)
    first, *others = (int.from_bytes(drawn[at : at + 10]) for at in range(0, len(drawn), 10))
    _chances.extend(others)
    return first


def new_id() -> str:
    """A new UUIDv7 (RFC 9562 section 5.7): 48 bits of Unix milliseconds, then random bits, so ids sort by time."""
    native = getattr(uuid, "uuid7", None)  # in the standard library from Python 3.14
    if native is not None:
        return str(native())
    try:
        chance = _chances.pop()
    except IndexError:
        chance = _more_chances()
    value = (time.time_ns() // 1_000_000) << 80 | chance & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def check_id(value: str, field: str) -> str:
    """`value` if it can be an id: 1 to 256 bytes of UTF-8. Raises FieldError naming `field`."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise FieldError(field, "contains a lone surrogate, which cannot be an id") from None
    if not 1 <= size <= MAX_ID_BYTES:
        raise FieldError(field, f"is {size} bytes long; an id has 1 to {MAX_ID_BYTES}")
    return value


def check_workspace(name: str) -> str:
    """`name` if it can be a workspace: lower-case letters, digits and inner hyphens, at most 63. Raises FieldError.

    No dots, since `treadle.<workspace>.` is the prefix that isolates a workspace's topics, groups and transactional ids.
    """
    if not _WORKSPACE.fullmatch(name) or name == "workspaces":
        raise FieldError(
            "workspace",
            f"{shown(name)} is not a workspace name: use a-z, 0-9 and inner hyphens, at most 63 characters",
        )
    return name


def check_slot(slot: str) -> str:
    """`slot` if it can name a slot: lower-case letters, digits, `_` and `-`, at most 63. Raises FieldError."""
    if not _SLOT.fullmatch(slot):
        raise FieldError("slot", f"{shown(slot)} is not a slot name: use a-z, 0-9, _ and -, at most 63 characters")
    return slot


@dataclass(frozen=True)
class Handle:
    """What capture returns: the address of one interaction. `str()` gives the string form, `parse` takes it back."""

    workspace: str
    episode_id: str
    interaction_id: str

    def __str__(self) -> str:
        return "/".join(quote(part, safe="") for part in (self.workspace, self.episode_id, self.interaction_id))

    @property
    def mark(self) -> str:
        """The form for a pull-request comment or any other prose, which `find` takes back: `treadle: workspace/episode/interaction`."""
        text = str(self)
        # a full stop at the end belongs to the sentence
        return f"treadle: {text[:-1]}%2E" if text.endswith(".") else f"treadle: {text}"

    @classmethod
    def find(cls, text: str) -> Handle | None:
        """The first handle in a text that stands behind `treadle:`, as `mark` writes it; None where there is none."""
        return next(cls._marked(text), None)

    @classmethod
    def find_all(cls, text: str) -> list[Handle]:
        """All of them, in the text's order, each once."""
        return list(dict.fromkeys(cls._marked(text)))

    @classmethod
    def _marked(cls, text: str) -> Iterator[Handle]:
        for match in _MARK.finditer(text):
            try:
                yield cls.parse(match[1].rstrip("."))
            except HandleError:
                continue

    @classmethod
    def parse(cls, text: str) -> Handle:
        """Raises HandleError when `text` is not three percent-encoded parts."""
        parts = text.split("/")
        if len(parts) != 3:
            raise HandleError(f"{shown(text)} is not a handle: expected workspace/episode/interaction")
        try:
            workspace, episode, interaction = (unquote(part, errors="strict") for part in parts)
            check_workspace(workspace)
            return cls(workspace, check_id(episode, "episode_id"), check_id(interaction, "interaction_id"))
        except (FieldError, UnicodeError) as err:
            raise HandleError(f"{shown(text)} is not a handle: {err}") from None


@dataclass(frozen=True)
class ReleaseId:
    """`workspace/slot/rN`."""

    workspace: str
    slot: str
    number: int

    def __str__(self) -> str:
        return f"{self.workspace}/{self.slot}/r{self.number}"

    @classmethod
    def parse(cls, text: str) -> ReleaseId:
        """Raises HandleError when `text` is not a release id."""
        parts = text.split("/")
        match = _RELEASE_NUMBER.fullmatch(parts[2]) if len(parts) == 3 else None
        if not match:
            raise HandleError(
                f"{shown(text)} is not a release id: expected workspace/slot/rN, for example shop/main/r3"
            )
        try:
            return cls(check_workspace(parts[0]), check_slot(parts[1]), int(match[1]))
        except FieldError as err:
            raise HandleError(f"{shown(text)} is not a release id: {err}") from None
