"""What the tests of erasure share: two subjects whose words are all marked, and a search for the marks in every byte that is kept."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import treadle
from treadle.log import Admin
from treadle.settings import Settings
from treadle_schemas import Metric, WorkspaceSettings

METRICS = (Metric(name="reward", required=True),)


class Person:
    """A subject, and marks that stand in everything said by it or about it."""

    def __init__(self, name: str) -> None:
        self.name = f"{name}-{secrets.token_hex(4)}"
        self.marks = {
            place: f"{name}{place}{secrets.token_hex(12)}"
            for place in ("prompt", "answer", "argument", "tag", "comment", "part", "demonstration", "late")
        }
        self.image = secrets.token_bytes(90_000)
        self.episodes: list[str] = []

    @property
    def needles(self) -> dict[str, bytes]:
        image = base64.b64encode(self.image)[3_000:3_060]
        return {place: mark.encode() for place, mark in self.marks.items() if place != "late"} | {
            "image": image,
            "name": self.name.encode(),
        }

    def speak(self, recorder: treadle.Recorder) -> None:
        """An episode of two long steps with an image, a short interaction, outcomes with text about both."""
        marks, episode = self.marks, f"e-{secrets.token_hex(6)}"
        image = {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + base64.b64encode(self.image).decode()},
        }
        arguments = json.dumps({"address": marks["argument"]})
        messages = [
            {"role": "user", "content": [{"type": "text", "text": "look " * 400 + marks["part"]}, image]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": arguments}}
                ],
            },
        ]
        recorder.record(
            messages=messages, response=[1], episode_id=episode, subject=self.name, tags={"n": marks["tag"]}
        )
        more = [
            {"role": "tool", "tool_call_id": "c", "content": "none"},
            {"role": "assistant", "content": marks["answer"]},
        ]
        second = recorder.record(
            messages=[*messages, *more], response=[3], episode_id=episode, step=1, subject=self.name
        )
        single = [{"role": "user", "content": marks["prompt"]}, {"role": "assistant", "content": "yes"}]
        alone = recorder.record(messages=single, response=[1], subject=self.name)
        for handle in (second, alone):
            recorder.outcome(handle, "reward", 0.5)
        recorder.comment(second, marks["comment"])
        recorder.demonstration(alone, [single[0], {"role": "assistant", "content": marks["demonstration"]}])
        self.episodes = [episode, alone.episode_id]


def until(found: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < deadline, f"{what}: not in {timeout_s} s"
        time.sleep(0.05)


@contextmanager
def running(settings: Settings, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command of treadle, ended in order."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TREADLE_")} | {
        "TREADLE_HOME": str(settings.home),
        "TREADLE_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "TREADLE_WORKSPACE": str(settings.workspace),
    }
    process = subprocess.Popen([sys.executable, "-m", "treadle", *argv], env=environment)
    try:
        yield process
    except BaseException:
        process.kill()
        process.wait()
        raise
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def in_files(folder: Path, needles: dict[str, bytes], of: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """By place, the files below a folder that hold a mark as it is, in the folders named `of` (default: all)."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or (of and path.relative_to(folder).parts[0] not in of):
            continue
        data = path.read_bytes()
        for place, needle in needles.items():
            if needle in data:
                found.setdefault(place, []).append(str(path.relative_to(folder)))
    return found


def in_topics(servers: str, workspace: str, needles: dict[str, bytes]) -> dict[str, set[tuple[str, int, int]]]:
    """By place, the records of all topics of a workspace whose bytes hold a mark: topic, partition, offset. Read as they lie there."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    found: dict[str, set[tuple[str, int, int]]] = {}
    counts = {n: c for n, c in Admin(servers).partitions().items() if n.startswith(f"treadle.{workspace}.")}
    left = {(name, number) for name, count in counts.items() for number in range(count)}
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "search",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_uncommitted",
            "auto.offset.reset": "earliest",
        }
    )
    try:
        consumer.assign([TopicPartition(name, number, 0) for name, number in left])
        while left:
            for message in consumer.consume(500, 0.2):
                where = (str(message.topic()), message.partition() or 0, message.offset() or 0)
                error = message.error()
                if error is not None:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    left.discard(where[:2])
                    continue
                said = b"\0".join((message.key() or b"", message.value() or b"", repr(message.headers()).encode()))
                for place, needle in needles.items():
                    if needle in said:
                        found.setdefault(place, set()).add(where)
    finally:
        consumer.close()
    return found


def settings_of(broker: str, workspace: str, home: Path, **changes: object) -> Settings:
    from treadle.policies import remember
    from treadle_schemas.pii import BUILT_IN
    from treadle_streams import workspaces

    wanted = WorkspaceSettings(workspace=workspace, partitions=2, metrics=METRICS, pii=BUILT_IN["off"], **changes)  # type: ignore[arg-type]
    remember(home, workspaces.create(broker, wanted, home=home))
    return Settings.load(
        {"TREADLE_HOME": str(home), "TREADLE_BOOTSTRAP_SERVERS": broker, "TREADLE_WORKSPACE": workspace}
    )
