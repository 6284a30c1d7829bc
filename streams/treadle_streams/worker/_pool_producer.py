"""A transactional producer that exists while it is used: made at the first batch, closed when none came for a while.

It costs five threads and two connections, which 200 idle workspaces need not have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from treadle_streams.worker._ports import ProducerPort

__all__ = ["REST_AFTER_S", "RestingProducer"]

REST_AFTER_S: Final = 60.0


class RestingProducer:
    """A `ProducerPort`. Not thread-safe: whoever holds the lane holds its producer."""

    def __init__(
        self,
        config: Mapping[str, Any],
        make: Callable[[Mapping[str, Any]], ProducerPort],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`make` makes the real one, each time with the same transactional id, so that it fences the one before."""
        self._config = config
        self._make = make
        self._monotonic = monotonic
        self._timeout_s = 30.0
        self._real: ProducerPort | None = None
        self._used = 0.0

    @property
    def awake(self) -> bool:
        """Whether there is a real producer now."""
        return self._real is not None

    def rest(self, after_s: float = REST_AFTER_S) -> None:
        """Close it if no transaction began for so long. To be called between transactions only."""
        if self._real is not None and self._monotonic() - self._used >= after_s:
            self._real = None

    def init_transactions(self, timeout: float, /) -> None:
        """Nothing yet: the first transaction does it."""
        self._timeout_s = timeout

    def begin_transaction(self) -> None:
        """Make the producer where there is none, then begin."""
        if self._real is None:
            real = self._make(self._config)
            real.init_transactions(self._timeout_s)
            self._real = real
        self._used = self._monotonic()
        self._real.begin_transaction()

    def produce(self, topic: str, *args: Any, **kwargs: Any) -> None:
        """See Producer."""
        self._open.produce(topic, *args, **kwargs)

    def poll(self, timeout: float, /) -> int:
        """See Producer; nothing while it rests."""
        return 0 if self._real is None else int(self._real.poll(timeout) or 0)

    def flush(self, timeout: float, /) -> int:
        """See Producer."""
        return self._open.flush(timeout)

    def send_offsets_to_transaction(self, positions: list[Any], group_metadata: Any, timeout: float, /) -> None:
        """See Producer."""
        self._open.send_offsets_to_transaction(positions, group_metadata, timeout)

    def commit_transaction(self, timeout: float, /) -> None:
        """See Producer."""
        self._open.commit_transaction(timeout)

    def abort_transaction(self, timeout: float, /) -> None:
        """See Producer."""
        self._open.abort_transaction(timeout)

    @property
    def _open(self) -> ProducerPort:
        assert self._real is not None, "no transaction was begun"
        return self._real
