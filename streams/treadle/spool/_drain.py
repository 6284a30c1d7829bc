"""From the spool to Kafka: hands frames over in order, moves the acknowledged offset, tries again what failed.

Order of a record's life: 1. its frame is read, 2. handed to the producer, 3. acknowledged by every in-sync replica, 4. the offset of its
segment moves behind it, 5. the segment is deleted when it is full and wholly acknowledged. A crash between two steps repeats the earlier
ones: a record can arrive twice, never not at all, and duplicates fall away by their ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from treadle.spool._format import EVENT, Frame, read_body
from treadle.spool._segment import Pending, Segment
from treadle.spool._spool import Spool

if TYPE_CHECKING:
    from confluent_kafka import Producer

__all__ = ["Drain"]

RETRY_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before a segment in which something was not accepted is handed over again."""


class Drain:
    """Moves one spool into one producer. Used by one thread."""

    def __init__(self, spool: Spool, complain: Callable[[str, object], None], worry: Callable[[str], None]) -> None:
        self.spool = spool
        self._complain = complain
        self._worry = worry
        self.quiet = False
        """Whether it ends, and what its producer gives up is no news."""
        self.fatal = False
        """Whether the producer can do no more, and another one has to take its place."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be handed over or acknowledged."""
        return all(not segment.pending and segment.acked >= segment.size for segment in self.spool.segments)

    def step(self, producer: Producer) -> bool:
        """Hand over what fits into the producer's queue; whether anything moved."""
        moved = self.settle()
        for segment in self.spool.segments:
            if segment.failing or time.monotonic() < segment.retry_at:
                # our own records go in order; a dead process's file holds up nobody
                if segment.settle is not None:
                    break
                continue
            if not self._hand_over(segment, producer):
                return moved
            moved = moved or bool(segment.pending)
        return moved

    def settle(self) -> bool:
        """Book what Kafka acknowledged or refused; whether anything moved."""
        moved = False
        for segment in self.spool.segments:
            before = segment.acked
            counted = segment.advance()
            moved = moved or segment.acked != before
            if segment.acked != before:
                segment.retries = 0
            for _ in range(counted if segment.settle is not None else 0):
                segment.settle(None)  # type: ignore[misc]
            if segment.rewindable:
                pause = RETRY_S[min(segment.retries, len(RETRY_S) - 1)]
                segment.retries += 1
                segment.retry_at = time.monotonic() + pause
                segment.rewind()
            if segment.finished:
                self.spool.release(segment)
                moved = True
        return moved

    def start_over(self) -> None:
        """With a new producer: everything that was not acknowledged is handed over once more."""
        self.fatal = False
        for segment in self.spool.segments:
            segment.advance()
            segment.rewind()

    def _hand_over(self, segment: Segment, producer: Producer) -> bool:
        """Whether the producer can take more."""
        while segment.unsent or segment.read < segment.size:
            frames = segment.unsent or segment.next_frames().frames
            for n, frame in enumerate(frames):
                if not self._produce(segment, producer, frame):
                    segment.unsent = frames[n:]
                    return False
            segment.unsent = []
        return True

    def _produce(self, segment: Segment, producer: Producer, frame: Frame) -> bool:
        from confluent_kafka import KafkaException

        try:
            topic, key, headers, value = read_body(frame.body)
        except (ValueError, LookupError, ArithmeticError) as err:
            self._reject(segment, Pending(frame.end, frame.tag == EVENT), frame.body, f"unreadable: {err}")
            return True
        pending = Pending(frame.end, frame.tag == EVENT)

        def delivered(err: Any, _message: Any) -> None:
            if err is not None:
                self._failed(segment, pending, err)
            pending.done = True

        try:
            producer.produce(topic, value, key, headers=list(headers), on_delivery=delivered)
        except BufferError:
            return False
        except KafkaException as err:
            self._reject(segment, pending, frame.body, str(err.args[0].str()))
            return True
        segment.pending.append(pending)
        return True

    def _failed(self, segment: Segment, pending: Pending, err: Any) -> None:
        pending.failed = str(err.str())
        segment.failing = True
        if self.quiet:
            return
        self.fatal = self.fatal or bool(err.fatal())
        self._worry(pending.failed)
        self._complain("not accepted by Kafka, stays in the spool", pending.failed)

    def _reject(self, segment: Segment, pending: Pending, body: bytes, problem: str) -> None:
        """Kafka's client itself says that this record can never be sent."""
        self.spool.keep_rejected(body)
        if pending.counted and segment.settle is not None:
            segment.settle(problem)
        pending.counted = False
        pending.done = True
        segment.pending.append(pending)
