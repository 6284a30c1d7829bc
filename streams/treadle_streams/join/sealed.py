"""Sealed text inside the join: which keys open it while a batch is planned, and how state and outputs are sealed again.

In memory an event is its text; `key_id` beside it says which key sealed it. Whatever leaves the plan, state, changelog and outputs, is
sealed with that key, and sealing is a pure function, so a plan stays one. Text whose key was destroyed is erased.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from treadle_schemas.canonical import loads
from treadle_schemas.codec import OUTCOME
from treadle_schemas.errors import KeyErased
from treadle_schemas.sealing import NO_KEYS, Cipher, Keys, about, is_sealed, opened

__all__ = ["Pinned", "keys", "open_event", "open_state", "open_text", "seal_event", "seal_state", "seal_text", "using"]

_KEYS: Final[ContextVar[Keys]] = ContextVar("treadle-join-keys", default=NO_KEYS)


class Pinned:
    """The keys of another, each as it was when it was asked for first: one batch sees one state of them."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._known: dict[str, Cipher | None] = {}

    def cipher(self, key_id: str) -> Cipher:
        """See treadle_schemas.sealing.Keys."""
        if key_id not in self._known:
            try:
                self._known[key_id] = self._keys.cipher(key_id)
            except KeyErased:
                self._known[key_id] = None
        found = self._known[key_id]
        if found is None:
            raise KeyErased(key_id)
        return found


@contextmanager
def using(given: Keys) -> Iterator[None]:
    """Open and seal with these keys inside the block."""
    token = _KEYS.set(given)
    try:
        yield
    finally:
        _KEYS.reset(token)


def keys() -> Keys:
    """The keys of the batch that is planned."""
    return _KEYS.get()


def seal_state(text: bytes, key_id: str, key: bytes) -> bytes:
    """Text in the record of `key`. Raises KeyErased."""
    return keys().cipher(key_id).seal(text, b"state\0" + key)


def open_state(data: bytes, key: bytes) -> bytes:
    """The inverse of `seal_state`; what is not sealed as it is. Raises KeyErased, FieldError."""
    return opened(data, keys(), b"state\0" + key)


def seal_text(plain: Any, text: bytes, key_id: str, key: bytes) -> Any:
    """`text`, the JSON of `plain`, as a member of a header: sealed in base64; without key `plain` itself."""
    return base64.b64encode(seal_state(text, key_id, key)).decode() if key_id else plain


def open_text(member: Any, key: bytes) -> Any:
    """The inverse of `seal_text`. Raises KeyErased, FieldError."""
    return loads(open_state(base64.b64decode(member), key)) if isinstance(member, str) else member


def seal_event(text: bytes, key_id: str, workspace: str, event_type: str, key: bytes | None) -> bytes:
    """The value of a record with the key `key`, as its maker sealed it. Raises KeyErased."""
    return keys().cipher(key_id).seal(text, about(workspace, event_type, key)) if key_id else text


def open_event(value: bytes, workspace: str, key: bytes | None = None, event_type: str = OUTCOME) -> bytes:
    """The text of a record's value. Raises KeyErased, KeyUnavailable, FieldError."""
    return opened(value, keys(), about(workspace, event_type, key)) if is_sealed(value) else value
