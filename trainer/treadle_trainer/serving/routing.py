"""What an episode is routed by, and when a release is left out. Which release serves it then is treadle_schemas.traffic's. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from treadle_schemas.split import split_group

__all__ = ["Breaker", "routing_key"]


class Breaker:
    """Keeps traffic off a release that fails: open for `rest_s` after `limit` failures in a row, then one request tries again."""

    LIMIT: Final = 5
    REST_S: Final = 30.0

    def __init__(self, limit: int = LIMIT, rest_s: float = REST_S) -> None:
        self._limit = limit
        self._rest_s = rest_s
        self._failures: dict[str, int] = {}
        self._closed_at: dict[str, float] = {}

    def allows(self, release: str, now_s: float) -> bool:
        """Whether the release may be asked at `now_s` (any clock that only goes on)."""
        if self._failures.get(release, 0) < self._limit:
            return True
        if now_s < self._closed_at[release]:
            return False
        self._closed_at[release] = now_s + self._rest_s  # this one tries
        return True

    def succeeded(self, release: str) -> None:
        """It answered."""
        self._failures.pop(release, None)

    def failed(self, release: str, now_s: float) -> None:
        """It did not."""
        self._failures[release] = self._failures.get(release, 0) + 1
        self._closed_at[release] = now_s + self._rest_s

    def failures(self, release: str) -> int:
        """In a row, up to now."""
        return self._failures.get(release, 0)


def routing_key(episode_id: str | None, messages: Sequence[dict[str, Any]]) -> str:
    """What an episode is known by. Without an id it is how the conversation begins, which does not change while it grows."""
    return episode_id if episode_id is not None else split_group(None, messages)
