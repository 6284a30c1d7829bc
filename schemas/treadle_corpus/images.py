"""Images inside messages: found, and lifted out into a column of bytes. Pure.

OpenAI's chat messages carry an image as a part `{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}`. Trainers of
vision-language models want a placeholder in its place, and the image itself in a column beside the messages.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

__all__ = ["BROKEN", "REMOTE", "has_images", "lift"]

REMOTE: Final = "remote_image"
"""An image that is only linked to: nobody can say what was there when the agent looked."""
BROKEN: Final = "broken_image"
"""What stands there is no image: it was masked, cut or erased."""
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)
_KINDS: Final = ("image_url", "input_image", "image")

Messages = list[dict[str, Any]]


def has_images(messages: Messages) -> bool:
    """Whether some part of a message is an image."""
    return any(_is_image(part) for message in messages for part in _parts(message))


def lift(messages: Messages) -> tuple[Messages, list[bytes]] | str:
    """The messages with `{"type": "image"}` where images stood, and these in order; or why that cannot be done (REMOTE, BROKEN)."""
    out: Messages = []
    images: list[bytes] = []
    for message in messages:
        parts = []
        for part in _parts(message):
            if not _is_image(part):
                parts.append(part)
                continue
            found = _bytes(part)
            if isinstance(found, str):
                return found
            images.append(found)
            parts.append({"type": "image"})
        out.append({**message, "content": parts} if parts else message)
    return out, images


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _is_image(part: dict[str, Any]) -> bool:
    return part.get("type") in _KINDS


def _bytes(part: dict[str, Any]) -> bytes | str:
    url = part.get("image_url")
    if isinstance(url, dict):
        url = url.get("url")
    if not isinstance(url, str):
        return BROKEN
    found = _DATA_URL.match(url)
    if found is None:
        return REMOTE if url.startswith(("http://", "https://")) else BROKEN
    try:
        return base64.b64decode(url[found.end() :], validate=True) or BROKEN
    except (binascii.Error, ValueError):
        return BROKEN
