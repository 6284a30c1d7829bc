"""What models as judges use, in the form that the evidence of a turn has for it."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Spend"]


class Spend(msgspec.Struct, kw_only=True):
    """What models as judges used: requests, tokens as their servers counted them, and seconds of waiting."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def add(self, usage: Any, seconds: float) -> None:
        """Count one call. `usage` is what the server said of it; what it did not say counts as no tokens."""
        said = usage if isinstance(usage, dict) else {}
        self.calls += 1
        self.prompt_tokens += _count(said.get("prompt_tokens"))
        self.completion_tokens += _count(said.get("completion_tokens"))
        self.seconds = round(self.seconds + seconds, 3)


def _count(tokens: Any) -> int:
    return tokens if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0 else 0
