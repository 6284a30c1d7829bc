"""The leak-proof split: train or heldout is a salted hash of the split group, fixed for good."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from treadle_schemas.canonical import content_hash

__all__ = ["DEFAULT_SALT", "Side", "Split", "split_group"]

Side = Literal["train", "heldout"]
DEFAULT_SALT = "treadle"
"""One constant for all workspaces, so that two workspaces with the same events agree."""


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """How a workspace splits. `share` is the held-out share of groups in [0, 1)."""

    salt: str = DEFAULT_SALT
    share: float = 0.1

    def side(self, group: str) -> Side:
        """heldout when the first 8 bytes of sha256(salt, NUL, group), as a fraction of 2**64, fall below the share."""
        digest = hashlib.sha256(f"{self.salt}\0{group}".encode(errors="surrogatepass")).digest()
        return "heldout" if int.from_bytes(digest[:8]) < self.share * 2.0**64 else "train"


def split_group(task_id: str | None, messages: Sequence[dict[str, Any]]) -> str:
    """The group that must not be torn: the task, or without one the hash of the messages before the first assistant turn."""
    if task_id is not None:
        return task_id
    asked: list[dict[str, Any]] = []
    for message in messages:
        if message.get("role") == "assistant":
            break
        asked.append(message)
    return content_hash(asked)
