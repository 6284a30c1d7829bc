"""One measured process of the capture benchmark: one library, one size of event, one state of the sink.

    python _capture_child.py '{"task": "latency", "name": "treadle", ...}'      prints one line of JSON

latency    `paced` events at `rate` a second, of which the caller's time is kept one by one; then `saturated` ones back to back, whose CPU
           time is that of the whole process until they have left (or FLUSH_S were over)
burst      `count` events back to back, then whatever the library needs to send them
outage     says `ready`, waits for a line, records `count` events at `rate` while the sink is away, says `recorded`, waits for a line and
           flushes
footprint  import time and memory of treadle
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLUSH_S = 30.0
UNREACHABLE_S = 1.0
WARM = 30


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do one task."""
    logging.disable(logging.CRITICAL)  # their complaints about a sink that is away are not what is measured
    if job["task"] == "footprint":
        return footprint(job)
    from _capture_peers import make

    peer = make(job["name"], job["address"], job["workspace"])
    return {"latency": latency, "burst": burst, "outage": outage}[job["task"]](job, peer)


def latency(job: dict[str, Any], peer: Any) -> dict[str, Any]:
    """Times of single calls, and CPU an event."""
    events = stream(job["size"])
    errors: dict[str, int] = {}
    for n in range(WARM if job["size"] != 300 else 6):
        attempt(peer, next(events), f"WRM-{n:08d}", errors)
    time.sleep(0.5)
    took = paced(peer, events, job["paced"], job["rate"], errors)
    leave(peer, job)
    count = job["saturated"]
    made = [next(events) for _ in range(count)]
    process, caller, wall = time.process_time(), time.thread_time(), time.perf_counter()
    for n, event in enumerate(made):
        attempt(peer, event, f"SAT-{n:08d}", errors)
    caller = time.thread_time() - caller
    call_wall = time.perf_counter() - wall
    leave(peer, job)
    process = time.process_time() - process
    return {
        "took_us": [round(x / 1000, 1) for x in took],
        "cpu_us": round(process / count * 1e6, 2),
        "caller_cpu_us": round(caller / count * 1e6, 2),
        "call_us": round(call_wall / count * 1e6, 2),
        "errors": errors,
        "stats": peer.stats(),
        "rss_mb": peak_mb(),
    }


def burst(job: dict[str, Any], peer: Any) -> dict[str, Any]:
    """As fast as the caller can."""
    events = stream(job["size"])
    errors: dict[str, int] = {}
    made = [next(events) for _ in range(job["count"])]
    before_mb = rss_mb()
    began = time.perf_counter()
    for n, event in enumerate(made):
        attempt(peer, event, f"EVT-{n:08d}", errors)
    called = time.perf_counter() - began
    peer.flush(60.0)
    time.sleep(2.0)  # some libraries' flush returns early
    return {
        "recorded_s": round(called, 3),
        "flushed_s": round(time.perf_counter() - began - 2.0, 3),
        "errors": errors,
        "stats": peer.stats(),
        "rss_added_mb": round(peak_mb() - before_mb, 1),
    }


def outage(job: dict[str, Any], peer: Any) -> dict[str, Any]:
    """Record while the sink is away; the parent takes it away and brings it back."""
    events = stream(job["size"])
    errors: dict[str, int] = {}
    for n in range(WARM):
        attempt(peer, next(events), f"WRM-{n:08d}", errors)
    peer.flush(FLUSH_S)
    say("ready")
    sys.stdin.readline()
    before_mb = rss_mb()
    began = time.perf_counter()
    took = paced(peer, events, job["count"], job["rate"], errors, "EVT")
    lasted = time.perf_counter() - began
    say("recorded")
    sys.stdin.readline()
    peer.flush(FLUSH_S)
    time.sleep(2.0)
    return {
        "took_us": [round(x / 1000, 1) for x in took],
        "lasted_s": round(lasted, 1),
        "errors": errors,
        "stats": peer.stats(),
        "rss_added_mb": round(peak_mb() - before_mb, 1),
    }


def footprint(job: dict[str, Any]) -> dict[str, Any]:
    """What importing and using treadle adds to a bare interpreter."""
    bare = rss_mb()
    began = time.perf_counter()
    import treadle

    took = time.perf_counter() - began
    imported = rss_mb()
    heavy = sorted({"torch", "faust", "deeplake", "confluent_kafka", "duckdb", "numpy"} & sys.modules.keys())
    recorder = treadle.Recorder(job["workspace"], bootstrap_servers=job["address"], agent="desk")
    events = stream(3)
    made = [next(events) for _ in range(64)]
    before = rss_mb()
    for n in range(job["count"]):
        recorder.record(messages=made[n % 64]["messages"], model="gpt-4o")
    recorder.flush(FLUSH_S)
    used = rss_mb()
    return {
        "import_ms": round(took * 1000, 1),
        "import_rss_mb": round(imported - bare, 1),
        "rss_added_mb": round(imported - bare + used - before, 1),
        "heavy_modules": heavy,
        "stats": recorder.stats()._asdict(),
    }


def stream(size: int | str) -> Iterator[dict[str, Any]]:
    """Events without end; `episode`: whole episodes one after the other."""
    from _capture_texts import episode, events

    number = 0
    if size == "episode":
        known = [episode(n) for n in range(4)]
        while True:
            name = f"episode-{os.getpid()}-{number}"
            yield from ({**event, "episode_id": name} for event in known[number % len(known)])
            number += 1
    pool = events(int(size))
    while True:
        yield pool[number % len(pool)]
        number += 1


def paced(
    peer: Any, events: Iterator[dict[str, Any]], count: int, rate: float, errors: dict[str, int], prefix: str = "PAC"
) -> list[int]:
    """Nanoseconds of each call."""
    took: list[int] = []
    clock = time.perf_counter_ns
    due = time.perf_counter()
    for n in range(count):
        event, tag = next(events), f"{prefix}-{n:08d}"
        begun = clock()
        attempt(peer, event, tag, errors)
        took.append(clock() - begun)
        due += 1 / rate
        left = due - time.perf_counter()
        if left > 0:
            time.sleep(left)
    return took


def leave(peer: Any, job: dict[str, Any]) -> None:
    """Let everything leave; where nothing can, give background threads a moment. Some libraries' flush never returns without a sink."""
    if job["reachable"]:
        peer.flush(FLUSH_S)
    else:
        time.sleep(UNREACHABLE_S)


def attempt(peer: Any, event: dict[str, Any], tag: str, errors: dict[str, int]) -> None:
    """Record one event; an exception is what the host would see, and is counted."""
    try:
        peer.record(event, tag)
    except Exception as err:
        errors[type(err).__name__] = errors.get(type(err).__name__, 0) + 1


def rss_mb() -> float:
    """Resident memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_mb() -> float:
    """Most resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def say(word: str) -> None:
    """A line to the parent."""
    print(word, flush=True)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))), flush=True)
    os._exit(0)  # without the exit handlers of libraries that wait for a sink which is away
