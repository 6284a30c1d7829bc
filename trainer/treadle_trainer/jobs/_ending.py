"""A job that is asked to end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["asked_to_end"]


@contextmanager
def asked_to_end() -> Iterator[Callable[[], bool]]:
    """A question that turns true at SIGTERM, which goes to the whole group of a job and then ends nothing here by itself."""
    asked = False

    def note(_: int, __: FrameType | None) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGTERM, before)
