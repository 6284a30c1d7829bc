"""The spool without Kafka: bounds, full disks, damage, adoption, and a producer that says no."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import treadle
from treadle import spool as spools
from treadle.errors import SpoolFull, SpoolUnwritable
from treadle.spool import Drain, Segment, Spool, encode_headers, frame_around, scan

MESSAGES = [{"role": "user", "content": "x" * 500}]
NOWHERE = "127.0.0.1:9"


class Err:
    """An error as the producer's callback gets it."""

    def __init__(self, text: str, *, fatal: bool = False) -> None:
        self._text, self._fatal = text, fatal

    def str(self) -> str:
        return self._text

    def fatal(self) -> bool:
        return self._fatal


class FakeProducer:
    """Answers only when told to: the order of answers is what these tests are about. The real one is used in tests/integration."""

    def __init__(self, room: int = 1000) -> None:
        self.room = room
        self.waiting: list[tuple[bytes, Callable[[Any, Any], None]]] = []
        self.arrived: list[bytes] = []

    def produce(self, topic: str, value: bytes, key: bytes, *, headers: Any, on_delivery: Any) -> None:
        if len(self.waiting) >= self.room:
            raise BufferError
        self.waiting.append((value, on_delivery))

    def answer(self, *errors: Err | None) -> None:
        for err in errors:
            value, tell = self.waiting.pop(0)
            if err is None:
                self.arrived.append(value)
            tell(err, None)


class Book:
    """What the ledger would be told."""

    def __init__(self) -> None:
        self.settled: list[str | None] = []
        self.said: list[object] = []

    def complain(self, kind: str, problem: object) -> None:
        self.said.append(problem)


def pieces(value: bytes) -> tuple[bytes, bytes]:
    return frame_around(1, b"treadle.w.interactions", b"k", encode_headers([("a", b"b")]), value)


def opened(folder: Path, limit: int = 10**9, full: Any = "refuse") -> tuple[Spool, Drain, Book]:
    book = Book()
    spool = Spool(folder, book.settled.append, limit_bytes=limit, when_full=full)
    return spool, Drain(spool, book.complain, book.said.append), book


def step(drain: Drain, producer: FakeProducer) -> None:
    drain.step(cast("Any", producer))


def test_what_arrived_is_settled_in_order_and_its_file_deleted(tmp_path: Path) -> None:
    spool, drain, book = opened(tmp_path)
    producer = FakeProducer(room=2)
    for n in range(3):
        spool.append(pieces(b"%d" % n), wait=False)
    step(drain, producer)
    assert [value for value, _ in producer.waiting] == [b"0", b"1"]
    _, second = producer.waiting.pop(1)
    second(None, None)
    assert drain.settle() is False  # the first one is not there yet: a crash now must repeat both
    producer.answer(None)
    step(drain, producer)
    assert book.settled == [None, None]
    producer.answer(None)
    drain.settle()
    assert book.settled == [None] * 3
    assert drain.idle
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_what_kafka_does_not_accept_is_handed_over_again_in_order(tmp_path: Path) -> None:
    spool, drain, book = opened(tmp_path)
    producer = FakeProducer()
    for n in range(3):
        spool.append(pieces(b"%d" % n), wait=False)
    step(drain, producer)
    producer.answer(None, Err("no such topic"), None)
    drain.settle()
    assert book.settled == [None]
    spool.segments[0].retry_at = 0.0
    step(drain, producer)
    assert [value for value, _ in producer.waiting] == [b"1", b"2"]
    producer.answer(None, None)
    drain.settle()
    assert book.settled == [None] * 3
    assert book.said == ["no such topic"] * 2
    spool.close()


def test_a_producer_that_is_beyond_help_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    spool, drain, _ = opened(tmp_path)
    producer = FakeProducer()
    spool.append(pieces(b"0"), wait=False)
    step(drain, producer)
    producer.answer(Err("out of order", fatal=True))
    assert drain.fatal
    drain.start_over()
    another = FakeProducer()
    spool.append(pieces(b"1"), wait=False)
    step(drain, another)
    assert [value for value, _ in another.waiting] == [b"0", b"1"]
    spool.close()


def test_a_dead_writers_file_is_adopted_once_and_from_where_it_was_acknowledged(tmp_path: Path) -> None:
    spool, drain, _ = opened(tmp_path)
    producer = FakeProducer()
    for n in range(3):
        spool.append(pieces(b"%d" % n), wait=False)
    step(drain, producer)
    producer.answer(None)
    drain.settle()
    other, other_drain, book = opened(tmp_path)
    assert other.adopt() == 0  # its writer lives
    for segment in spool.segments:
        segment.close()
    assert other.adopt() == 1
    third, _, _ = opened(tmp_path)
    assert third.adopt() == 0
    after = FakeProducer()
    step(other_drain, after)
    assert [value for value, _ in after.waiting] == [b"1", b"2"]
    after.answer(None, None)
    other_drain.settle()
    assert book.settled == []  # they were another process's events
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_ack_file_costs_duplicates_only(tmp_path: Path) -> None:
    spool, drain, _ = opened(tmp_path)
    producer = FakeProducer()
    spool.append(pieces(b"0"), wait=False)
    step(drain, producer)
    producer.answer(None)
    drain.settle()
    spool.append(pieces(b"1"), wait=False)
    (segment,) = spool.segments
    segment.close()
    ack = segment.path.with_suffix(".ack")
    ack.write_bytes(ack.read_bytes()[:-1] + b"?")
    other, other_drain, _ = opened(tmp_path)
    assert other.adopt() == 1
    after = FakeProducer()
    step(other_drain, after)
    assert [value for value, _ in after.waiting] == [b"0", b"1"]
    other.close()


def test_a_damaged_file_gives_everything_else_and_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool, _, _ = opened(tmp_path)
    values = [b"%d" % n * 1000 for n in range(3000)]  # some megabytes: more than one chunk
    for value in values:
        spool.append(pieces(value), wait=False)
    (segment,) = spool.segments
    segment.close()
    raw = bytearray(segment.path.read_bytes())
    raw[len(raw) // 2] ^= 1
    segment.path.write_bytes(raw[:-10])
    other, drain, _ = opened(tmp_path)
    assert other.adopt() == 1
    producer = FakeProducer(room=10_000)
    step(drain, producer)
    found = [value for value, _ in producer.waiting]
    assert len(found) == 2998
    assert set(found) < set(values)
    producer.answer(*[None] * 2998)
    with caplog.at_level(logging.WARNING, logger="treadle"):
        drain.settle()
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == [segment.path.name]
    assert (tmp_path / "quarantine" / segment.path.name).read_bytes() == bytes(raw[:-10])
    assert "damaged bytes" in caplog.text
    assert list(tmp_path.glob("*.*")) == []


def test_of_a_file_whose_writer_was_killed_in_mid_write_only_the_torn_frame_is_kept(tmp_path: Path) -> None:
    spool, _, _ = opened(tmp_path)
    spool.append(pieces(b"whole"), wait=False)
    (segment,) = spool.segments
    torn = b"".join(pieces(b"x" * 3_000_000))[:-5]
    os.write(segment.fd, torn)
    segment.close()
    other, drain, _ = opened(tmp_path)
    assert other.adopt() == 1
    producer = FakeProducer()
    step(drain, producer)
    assert [value for value, _ in producer.waiting] == [b"whole"]
    producer.answer(None)
    drain.settle()
    assert [path.name for path in tmp_path.iterdir()] == ["quarantine"]
    assert (tmp_path / "quarantine" / f"{segment.path.stem}.torn").read_bytes() == torn


def fill(spool: Spool, *, wait: bool) -> tuple[int, float]:
    """Append until it refuses: how often it did not, and how long the refusal took."""
    count = 0
    while True:
        began = time.monotonic()
        try:
            spool.append(pieces(b"x" * 1000), wait=wait)
        except SpoolFull:
            return count, time.monotonic() - began
        count += 1


def test_a_full_spool_refuses_at_once_and_takes_again_when_there_is_room(tmp_path: Path) -> None:
    spool, drain, _ = opened(tmp_path, limit=100_000)
    producer = FakeProducer()
    count, took_s = fill(spool, wait=True)
    assert took_s < 0.5
    with pytest.raises(SpoolFull, match="TREADLE_SPOOL_BYTES"):
        spool.append(pieces(b"x" * 1000), wait=True)
    assert 80 < count < 100
    assert sum(path.stat().st_size for path in tmp_path.glob("*.seg")) <= 100_000
    step(drain, producer)
    producer.answer(*[None] * count)
    drain.settle()
    spool.append(pieces(b"x" * 1000), wait=True)
    spool.close()


def test_the_bound_holds_over_processes(tmp_path: Path) -> None:
    first, _, _ = opened(tmp_path, limit=100_000)
    second, _, _ = opened(tmp_path, limit=100_000)
    for _ in range(60):
        first.append(pieces(b"x" * 1000), wait=False)
    second.adopt()
    assert fill(second, wait=False)[0] < 40
    first.close()
    second.close()


def test_a_blocking_spool_waits_for_room_and_no_longer_than_it_says(tmp_path: Path) -> None:
    spool, drain, _ = opened(tmp_path, limit=20_000, full="block")
    producer = FakeProducer()
    count, took_s = fill(spool, wait=True)
    assert spools.BLOCK_S <= took_s < spools.BLOCK_S + 0.5

    def make_room() -> None:
        step(drain, producer)
        producer.answer(*[None] * count)
        drain.settle()

    later = threading.Timer(0.2, make_room)
    later.start()
    spool.append(pieces(b"x" * 1000), wait=True)
    later.join()
    spool.close()


def test_a_recorder_never_blocks_an_event_loop(tmp_path: Path) -> None:
    home = treadle.Settings(home=tmp_path, corpus_root=tmp_path, spool_bytes=10_000, spool_full="block")
    recorder = treadle.Recorder("w", bootstrap_servers=NOWHERE, settings=home, raise_errors=False)

    async def work() -> float:
        longest = 0.0
        for _ in range(50):
            began = time.monotonic()
            recorder.record(messages=MESSAGES)
            longest = max(longest, time.monotonic() - began)
            await asyncio.sleep(0)
        return longest

    assert asyncio.run(work()) < 0.5
    stats = recorder.stats()
    assert stats.produced == 50 == stats.spooled + stats.refused
    assert stats.spooled > 5 < stats.refused
    recorder.close(timeout_s=0)


def test_a_full_disk_tears_nothing() -> None:
    # a limit of the file's size makes the write short, as a full disk does
    program = """
    import resource, sys, tempfile, pathlib, treadle
    from treadle.spool import scan
    folder = pathlib.Path(tempfile.mkdtemp())
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    recorder = treadle.Recorder("w", bootstrap_servers="127.0.0.1:9", spool_dir=folder, raise_errors=False)
    for n in range(100):
        recorder.record(messages=[{"role": "user", "content": "x" * (50 * n)}], interaction_id=f"i{n}")
    stats = recorder.stats()
    (segment,) = (folder / "w").glob("*.seg")
    assert segment.stat().st_size < 10_000
    found = scan(segment.read_bytes())
    assert found.damaged_bytes == 0
    assert stats.produced == 100 and stats.spooled == len(found.frames) and stats.refused == 100 - stats.spooled, stats
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    recorder.record(messages=[{"role": "user", "content": "x" * 9_000}])
    assert scan(segment.read_bytes()).damaged_bytes == 0
    assert recorder.stats().spooled == stats.spooled + 1
    recorder.close(timeout_s=0)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "the spool is full" in ran.stderr


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/proc/version").exists(), reason="needs a folder that root cannot write"
)
def test_an_unwritable_folder_is_told_once_with_the_way_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool, _, _ = opened(Path("/proc/treadle"))
    with pytest.raises(SpoolUnwritable, match="TREADLE_SPOOL"):
        spool.append(pieces(b"0"), wait=False)
    assert not spool.writable
    recorder = treadle.Recorder("w", bootstrap_servers=NOWHERE, spool_dir="/proc/treadle", raise_errors=False)
    for _ in range(3):
        recorder.record(messages=MESSAGES)
    assert recorder.stats() == (3, 0, 3, 0, 0)
    assert caplog.text.count("straight to Kafka") == 1
    assert recorder.close(timeout_s=0.1) == 0
    assert recorder.stats() == (3, 0, 0, 3, 0)


def test_a_long_event_is_one_frame_and_is_read_whole(tmp_path: Path) -> None:
    spool, drain, _ = opened(tmp_path)
    producer = FakeProducer()
    values = [b"s", b"x" * 7_000_000, b"y" * 3_000_000, b"e"]
    for value in values:
        spool.append(pieces(value), wait=False)
    step(drain, producer)
    assert [value for value, _ in producer.waiting] == values
    spool.close()


def test_many_pieces_are_appended_at_once(tmp_path: Path) -> None:
    spool, _, _ = opened(tmp_path)
    segment = spool.append([piece for n in range(3000) for piece in pieces(b"%d" % n)], wait=False)
    assert len(scan(segment.path.read_bytes()).frames) == 3000
    spool.close()


def test_threads_that_wait_for_the_disk_share_one_wait(tmp_path: Path) -> None:
    recorder = treadle.Recorder("w", bootstrap_servers=NOWHERE, spool_dir=tmp_path, durable="fsync")
    threads = [
        threading.Thread(target=lambda: [recorder.record(messages=MESSAGES) for _ in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.stats() == (80, 0, 80, 0, 0)
    recorder.close(timeout_s=0)


def test_a_segment_that_somebody_deletes_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool, _, _ = opened(tmp_path)
    first = spool.append(pieces(b"0"), wait=False)
    first.path.unlink()
    spool.adopt()
    second = spool.append(pieces(b"1"), wait=False)
    assert second is not first
    assert "was deleted" in caplog.text
    spool.close()


def test_only_a_locked_file_gets_its_name(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path / "a.seg", lambda _: None)
    assert Segment.adopt(tmp_path / "a.seg") is None
    segment.close()
    adopted = Segment.adopt(tmp_path / "a.seg")
    assert adopted is not None
    adopted.close()
