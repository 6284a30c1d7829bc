"""The second hand of a pool: one thread, one producer and one admin client for the clocks of all its lanes (see _clockwork for the order).

A workspace whose clock record is not acknowledged, or whose ends cannot be asked for, stands still by itself: the others are told theirs.
"""

# The names below are confluent-kafka's documented public ones; its type information marks the re-exports as private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Final, Protocol, cast

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from treadle.errors import TopicMissing
from treadle_schemas import codec, topics

from treadle_streams.join import INPUTS, Input
from treadle_streams.worker._clockwork import View

__all__ = ["PoolClock", "Ticking"]

_log = logging.getLogger(__name__)

TICK_S: Final = 1.0
_ACK_S: Final = 1.0
"""How long acknowledgements are waited for; a later one counts at the next tick."""
_ASK_S: Final = 5.0
_GONE: Final = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
# typed as optional in the library, though it is made on the first call
_LATEST: Final = cast(OffsetSpec, OffsetSpec.latest())  # type: ignore[no-untyped-call]


class Ticking(Protocol):
    """What has a clock."""

    workspace: str

    @property
    def view(self) -> View:
        """What its lane is at."""
        ...

    def told(self, broker_ms: dict[int, int], ends: dict[tuple[Input, int], int], settings_end: int) -> None:
        """The broker's time, then the ends of its inputs and of its settings."""
        ...

    def tick(self) -> None:
        """A second has passed, with or without news."""
        ...

    def renew(self) -> None:
        """Leaders have moved: clients that rest are better made anew than used again."""
        ...

    def fail(self, err: BaseException) -> None:
        """It cannot go on."""
        ...


class _Beat:
    """The clock records of one workspace that are on their way or have arrived, not yet told."""

    def __init__(self, of: Ticking, partitions: Iterable[int]) -> None:
        self.of = of
        self.left = set(partitions)
        self.broker_ms: dict[int, int] = {}


class PoolClock(threading.Thread):
    """The thread. `ticking` gives those who have a clock at this moment."""

    def __init__(
        self, servers: str, ticking: Callable[[], Sequence[Ticking]], failed: Callable[[BaseException], None]
    ) -> None:
        """`failed` is told what ends the thread, and all clocks with it."""
        super().__init__(name="treadle-clock", daemon=True)
        self._ticking = ticking
        self._failed = failed
        self._quit = threading.Event()
        self._beats: dict[str, _Beat] = {}
        self._stands = False
        self._servers = servers
        self._admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
        self._producer = Producer(
            {
                "bootstrap.servers": servers,
                # a clock record twice is one clock record too many, and nothing else
                "acks": "all",
                "linger.ms": 5,
                "message.timeout.ms": 5_000,
                "queue.buffering.max.messages": 100_000,
                "reconnect.backoff.max.ms": 1_000,
                "log_level": 0,
            }
        )

    def close(self) -> None:
        """Tick no more."""
        self._quit.set()

    def run(self) -> None:
        """The thread: without it no clock moves, so whatever it cannot handle ends the process."""
        try:
            due = time.monotonic()
            while not self._quit.wait(max(0.0, due - time.monotonic())):
                due = max(due + TICK_S, time.monotonic())
                everyone = list(self._ticking())
                self._beat([one for one in everyone if one.view.state == "running"])
                self._tell()
                for one in everyone:
                    one.tick()
        except BaseException as err:
            self._failed(err)

    def _beat(self, running: Sequence[Ticking]) -> None:
        live = {one.workspace: one for one in running}
        # a beat of a lane that is gone, or has other partitions now, is nobody's
        self._beats = {
            name: beat
            for name, beat in self._beats.items()
            if live.get(name) is beat.of and set(beat.of.view.metas) == beat.left | beat.broker_ms.keys()
        }
        for name, one in live.items():
            partitions = sorted(one.view.metas)
            if name in self._beats or not partitions:
                continue
            beat = self._beats[name] = _Beat(one, partitions)
            headers = list(codec.make_headers(codec.CLOCK, name, source="treadle/join"))
            for partition in partitions:
                self._produce(topics.topic(name, "progress"), partition, headers, beat)
        deadline = time.monotonic() + _ACK_S
        while any(beat.left for beat in self._beats.values()) and time.monotonic() < deadline:
            self._producer.poll(0.02)

    def _produce(self, topic: str, partition: int, headers: Any, beat: _Beat) -> None:
        def delivered(err: KafkaError | None, message: Message) -> None:
            if err is None:
                beat.broker_ms[partition] = message.timestamp()[1]
                beat.left.discard(partition)
                return
            if err.code() in _GONE:
                beat.of.fail(TopicMissing(f"{topic}: no such topic"))
            if self._beats.get(beat.of.workspace) is beat:
                del self._beats[beat.of.workspace]  # the next tick tries again

        try:
            self._producer.produce(topic, b"{}", None, partition, on_delivery=delivered, headers=headers)
        except BufferError:
            self._beats.pop(beat.of.workspace, None)

    def _tell(self) -> None:
        ready = [beat for beat in self._beats.values() if not beat.left]
        if not ready:
            return
        where: dict[tuple[str, int], tuple[_Beat, Input | None]] = {
            (topics.topic(beat.of.workspace, kind), partition): (beat, kind)
            for beat in ready
            for kind in INPUTS
            for partition in beat.broker_ms
        }
        where |= {(topics.topic(beat.of.workspace, "settings"), 0): (beat, None) for beat in ready}
        request = {TopicPartition(name, partition): _LATEST for name, partition in where}
        ends: dict[str, dict[tuple[Input, int], int]] = {beat.of.workspace: {} for beat in ready}
        settings_ends: dict[str, int] = {}
        trouble = ""
        try:
            answers = self._admin.list_offsets(
                request, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=_ASK_S
            )
        except KafkaException as err:
            answers, trouble = {}, str(err.args[0].str())
        deadline = time.monotonic() + 2 * _ASK_S
        for asked, future in answers.items():
            beat, kind = where[asked.topic, asked.partition]
            try:
                found = future.result(max(0.0, deadline - time.monotonic()))
                if kind is None:
                    settings_ends[beat.of.workspace] = found.offset
                else:
                    ends[beat.of.workspace][kind, asked.partition] = found.offset
            except KafkaException as err:
                if err.args[0].code() in _GONE:
                    beat.of.fail(TopicMissing(f"{asked.topic}: no such topic"))
                else:
                    trouble = str(err.args[0].str())
            except FutureTimeout:
                trouble = f"no answer from {self._servers} in {2 * _ASK_S:g} s"
        for beat in ready:
            del self._beats[beat.of.workspace]
            name = beat.of.workspace
            if len(ends[name]) == len(INPUTS) * len(beat.broker_ms) and name in settings_ends:
                beat.of.told(beat.broker_ms, ends[name], settings_ends[name])
        self._complain(trouble)

    def _complain(self, trouble: str) -> None:
        if trouble:
            # a client that saw a broker before its restart keeps that leader epoch and is refused for good
            self._admin = AdminClient({"bootstrap.servers": self._servers, "log_level": 0})
            for one in self._ticking():
                one.renew()
            if not self._stands:
                _log.warning("clocks stand still: %s", trouble)
        self._stands = bool(trouble)
