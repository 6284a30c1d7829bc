"""Which release serves an episode: the champion, a canary on trial, or the control that everything is measured against.

The choice is a stable hash of the episode, so every process of an agent, a proxy in front of it, and whoever recomputes it later agree.
Control and canary are drawn independently, each by a hash of its own release: the control keeps its episodes while canaries come and go,
and two canaries one after the other do not serve the same ones.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

__all__ = ["Arm", "Traffic"]

Arm = Literal["champion", "canary", "control"]


class Traffic(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who serves a slot, by release id. A share is that of the episodes; what neither control nor canary takes is the champion's."""

    champion: str | None = None
    canary: str | None = None
    canary_share: float = 0.0
    control: str | None = None
    control_share: float = 0.0
    manifests: dict[str, str] = {}
    """Release -> SHA-256 of its manifest, which names the SHA-256 of every file: what a loader holds them against."""

    def arm(self, episode_id: str) -> Arm:
        """The arm that serves an episode."""
        if self.control is not None and _uniform("control", self.control, episode_id) < self.control_share:
            return "control"
        if self.canary is not None and _uniform("canary", self.canary, episode_id) < self.canary_share:
            return "canary"
        return "champion"

    def release(self, episode_id: str) -> str | None:
        """The release that serves an episode, None where nothing was ever promoted."""
        return {"champion": self.champion, "canary": self.canary, "control": self.control}[self.arm(episode_id)]


def _uniform(arm: str, release: str, episode_id: str) -> float:
    # 64 bits of SHA-256 as a fraction; lone surrogates are ids as well
    data = f"{arm}\0{release}\0{episode_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64
