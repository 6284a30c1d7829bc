"""Sealed values: what a record says, encrypted with the key of its subject, so that destroying the key erases it wherever it was copied.

    magic 4 | key id 16 | nonce 12 | AES-256-GCM ciphertext and tag

The key id is random and says nothing. Additional data bind a value to its workspace and, but for outcomes, to the key of its record: an
outcome keeps its bytes when the join re-keys it. The nonce is a keyed hash of text and additional data, so sealing is a pure function: what
is sealed twice has the same bytes, and one nonce never serves two texts. The magic begins with a byte that no JSON text begins with.

`cryptography` is imported at the first use: the extra `treadle[encryption]`.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, Protocol

from treadle_schemas.codec import OUTCOME
from treadle_schemas.errors import FieldError, KeyErased

__all__ = [
    "KEY_BYTES",
    "KEY_ID_BYTES",
    "MAGIC",
    "NO_KEYS",
    "Cipher",
    "Keys",
    "about",
    "is_sealed",
    "key_id_of",
    "opened",
]

MAGIC: Final = b"\xf6tk1"
KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_ID_END: Final = len(MAGIC) + KEY_ID_BYTES
_TEXT_AT: Final = _ID_END + _NONCE_BYTES


class Cipher:
    """One key, ready for use from any thread."""

    def __init__(self, key_id: str, key: bytes) -> None:
        """`key_id` is 32 hex digits. Raises ModuleNotFoundError where `cryptography` is not installed."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self.key_id = key_id
        self._head = MAGIC + bytes.fromhex(key_id)
        # two uses of one secret need two keys
        self._nonces = hashlib.blake2b(b"nonce", key=key, digest_size=32).digest()
        self._aead: Any = AESGCM(hashlib.blake2b(b"seal", key=key, digest_size=32).digest())

    def seal(self, text: bytes, about: bytes) -> bytes:
        """`text`, sealed."""
        digest = hashlib.blake2b(about, key=self._nonces, digest_size=_NONCE_BYTES, person=b"treadle.seal")
        digest.update(len(about).to_bytes(4) + text)
        nonce = digest.digest()
        return b"".join((self._head, nonce, self._aead.encrypt(nonce, text, about)))

    def open(self, sealed: bytes, about: bytes) -> bytes:
        """The text of what this key sealed. Raises FieldError for bytes that were changed, or belong elsewhere."""
        from cryptography.exceptions import InvalidTag

        try:
            return bytes(self._aead.decrypt(sealed[_ID_END:_TEXT_AT], sealed[_TEXT_AT:], about))
        except (InvalidTag, ValueError):
            problem = (
                "is sealed, and its key does not open it: it was changed, or moved from another workspace or episode"
            )
            raise FieldError("$", problem) from None


class Keys(Protocol):
    """Where keys come from."""

    def cipher(self, key_id: str) -> Cipher:
        """The key of that id. Raises KeyErased where it was destroyed, KeyUnavailable where nothing is known of it."""
        ...


class _NoKeys:
    def cipher(self, key_id: str) -> Cipher:
        raise KeyErased(key_id)


NO_KEYS: Final[Keys] = _NoKeys()
"""Of a reader that may open nothing: everything sealed counts as erased."""


def is_sealed(value: bytes | None) -> bool:
    """Is it a sealed value?"""
    return value is not None and value.startswith(MAGIC)


def key_id_of(sealed: bytes) -> str:
    """The id of the key that sealed it, 32 hex digits. Raises FieldError for a value that is cut off."""
    if len(sealed) < _TEXT_AT:
        raise FieldError("$", f"is sealed and {len(sealed)} bytes long: it was cut off")
    return sealed[len(MAGIC) : _ID_END].hex()


def about(workspace: str, event_type: str, key: bytes | None) -> bytes:
    """The additional data of a record's value."""
    return b"\0".join((workspace.encode(), b"" if event_type == OUTCOME else key or b""))


def opened(value: bytes, keys: Keys, about: bytes) -> bytes:
    """The text of a value, sealed or not. Raises KeyErased, KeyUnavailable, FieldError."""
    if not value.startswith(MAGIC):
        return value
    return keys.cipher(key_id_of(value)).open(value, about)
