"""Images, audio and files inside messages: where they stand, and what stands for them once they are taken out."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

_DATA_URL: Final = re.compile(r"data:([\w.+/-]*)((?:;[\w.+=-]+)*?)(;base64)?,")
REPLACED: Final = "media:sha256/"
"""How the text begins that stands for media: `media:sha256/HEX?type=image/png&size=1234`, size in bytes."""
_FIELDS: Final = {
    "data": "application/octet-stream",
    "file_data": "application/octet-stream",
    "b64_json": "image/png",
    "image_base64": "image/png",
}


def media_type(parent: Mapping[str, Any], key: str, text: str) -> str | None:
    """The mime type of `parent[key]` where it carries media (a data: URL, or base64 of a content part), else None."""
    if text.startswith(REPLACED):
        return None
    if text.startswith("data:"):
        found = _DATA_URL.match(text)
        # a short one without base64 is text, and is read as such
        return (found[1] or "text/plain") if found is not None and found[3] else None
    if key not in _FIELDS or len(text) < 64 or not _is_base64(text):
        return None
    said = parent.get("media_type") or parent.get("mime_type")
    if isinstance(said, str):
        return said
    kind = parent.get("format")
    return f"audio/{kind}" if isinstance(kind, str) else _FIELDS[key]


def stand_in(text: str, mime: str) -> str:
    """What replaces media: hash, type and size of its bytes."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        raw = base64.b64decode(encoded)
    except (binascii.Error, ValueError):
        raw = encoded.encode(errors="surrogatepass")
    return f"{REPLACED}{hashlib.sha256(raw).hexdigest()}?type={mime}&size={len(raw)}"


def _is_base64(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9+/\r\n_-]+={0,2}\s*", text) is not None
