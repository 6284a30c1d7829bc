"""A thread that works ahead: what it makes waits in a small queue, and what it raises is raised where it is asked for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["Prefetch"]

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterates over what `make` gives, at most `depth` ahead. `close` ends the thread; so does the end of the iteration.

    The two threads hand over half of the depth at a time: waking each other for every single item costs as much as making a batch.
    """

    def __init__(self, make: Callable[[], Iterator[T]], depth: int) -> None:
        self._make = make
        self._depth = depth
        self._some = max(1, depth // 2)
        self._changed = threading.Condition()
        self._ready: deque[T] = deque()
        self._over = False
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="treadle-prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        try:
            while True:
                with self._changed:
                    if not self._ready:
                        self._changed.wait_for(lambda: len(self._ready) >= self._some or self._over)
                    if not self._ready:
                        break
                    item = self._ready.popleft()
                    if len(self._ready) == self._depth - self._some:
                        self._changed.notify_all()
                yield item
            if self._error is not None:
                raise self._error
        finally:
            self.close()

    def close(self) -> None:
        """End the thread, and wait for it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        try:
            for item in self._make():
                with self._changed:
                    if len(self._ready) >= self._depth:
                        self._changed.wait_for(lambda: self._closed or len(self._ready) <= self._depth - self._some)
                    if self._closed:
                        return
                    self._ready.append(item)
                    if len(self._ready) == self._some:
                        self._changed.notify_all()
        except BaseException as err:  # the reader must hear of it, whatever it is
            self._error = err
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
