"""The events that every engine of benchmarks/join.py joins: order, bytes, expected rows, and a paced loader.

Interactions of about 3 KB and outcomes of 300 bytes as treadle's own SDK writes them, with the disorder of a real log: 80 % of the
interactions have an outcome, of those 15 % come much later and 3 % before their interaction; 5 % of the outcomes and 2 % of the
interactions arrive twice; 1 % of the outcomes belong to nothing.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from confluent_kafka import Producer
from treadle_schemas.codec import INTERACTION, OUTCOME, encode, make_headers
from treadle_schemas.topics import topic

_PLACE = "@@@@@@@@@@@@@@"
_WORDS = [
    "the",
    "a",
    "model",
    "reward",
    "token",
    "policy",
    "agent",
    "user",
    "system",
    "tool",
    "call",
    "result",
    "error",
    "function",
    "latency",
    "value",
    "estimate",
    "context",
    "window",
    "answer",
    "question",
    "python",
    "code",
    "data",
    "batch",
    "stream",
    "state",
    "join",
    "outcome",
    "late",
    "early",
    "score",
    "feedback",
    "label",
    "please",
    "explain",
    "compare",
    "implement",
]
POOL = 200


class Step(NamedTuple):
    """One event of the schedule: when (in steps), which kind, of which number."""

    at: int
    outcome: bool
    number: int


def ident(number: int) -> str:
    """The id of an interaction, and of its episode."""
    return f"ix{number:012d}"


def schedule(first: int, count: int, seed: int = 3) -> list[Step]:
    """The events of `count` interactions from number `first` on, in the order of their arrival."""
    chance = random.Random(seed)
    steps = []
    far = max(200, count // 8)
    for n in range(first, first + count):
        steps.append(Step(n, False, n))
        if chance.random() < 0.02:
            steps.append(Step(n + chance.randint(1, far), False, n))
        if chance.random() < 0.80:
            draw = chance.random()
            delay = (
                chance.randint(far, 2 * far)
                if draw < 0.15
                else -chance.randint(1, 50)
                if draw < 0.18
                else chance.randint(1, 100)
            )
            at = n + delay
            steps.append(Step(at, True, n))
            if chance.random() < 0.05:
                steps.append(Step(at + chance.randint(1, far), True, n))
        if chance.random() < 0.01:
            steps.append(Step(n, True, 10**11 + n))
    steps.sort(key=lambda step: (step.at, step.outcome))
    return steps


def reward(number: int) -> float:
    """What the outcome of an interaction says."""
    return (number % 8) / 8


class Bodies:
    """Values of the events, by splicing an id into prepared ones."""

    def __init__(self, seed: int = 7) -> None:
        chance = random.Random(seed)
        at = "2026-01-01T00:00:00.000000Z"
        self._interactions = [encode(_interaction(chance, at)) for _ in range(POOL)]
        self._outcomes = [encode(_outcome(chance, at)) for _ in range(POOL)]

    def interaction(self, number: int) -> bytes:
        """An interaction's value."""
        return self._interactions[number % POOL].replace(_PLACE.encode(), ident(number).encode())

    def outcome(self, number: int) -> bytes:
        """Its outcome's value."""
        raw = self._outcomes[number % POOL].replace(_PLACE.encode(), ident(number).encode())
        return raw.replace(b'"value":0.5', b'"value":%s' % repr(reward(number)).encode())


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(_WORDS) for _ in range(words))


def _interaction(chance: random.Random, at: str) -> dict[str, Any]:
    call = {"name": "search", "arguments": json.dumps({"q": _text(chance, 8), "k": 5})}
    return {
        "interaction_id": _PLACE,
        "task_id": f"task-{chance.randint(0, 999)}",
        "messages": [
            {"role": "system", "content": _text(chance, 40)},
            {"role": "user", "content": _text(chance, 120)},
            {"role": "assistant", "content": _text(chance, 160)},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": _text(chance, 60)},
        ],
        "response": [2, 3],
        "agent": "bench",
        "model": "policy-7b",
        "sampling": {"temperature": 0.7, "top_p": 0.95, "max_tokens": 512},
        "usage": {"prompt_tokens": 310, "completion_tokens": 210},
        "started_at": at,
        "ended_at": at,
    }


def _outcome(chance: random.Random, at: str) -> dict[str, Any]:
    return {
        "outcome_id": f"o-{_PLACE}",
        "episode_id": _PLACE,
        "interaction_id": _PLACE,
        "name": "reward",
        "value": 0.5,
        "source": "human",
        "comment": _text(chance, 12),
        "observed_at": at,
    }


def load(servers: str, workspace: str, steps: list[Step], rate: float | None) -> float:
    """Send the events, `rate` a second (None: as fast as it goes), and the seconds that it took."""
    bodies = Bodies()
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "enable.idempotence": True,
            "linger.ms": 2 if rate else 20,
            "batch.size": 1 << 20,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 200_000,
        }
    )
    topics = topic(workspace, "interactions"), topic(workspace, "outcomes")
    headers = [list(make_headers(kind, workspace, source="bench")) for kind in (INTERACTION, OUTCOME)]
    began, sent = time.monotonic(), 0
    while sent < len(steps):
        due = len(steps) if rate is None else min(len(steps), int((time.monotonic() - began) * rate) + 1)
        for step in steps[sent:due]:
            value = bodies.outcome(step.number) if step.outcome else bodies.interaction(step.number)
            while True:
                try:
                    producer.produce(
                        topics[step.outcome], value, ident(step.number).encode(), headers=headers[step.outcome]
                    )
                    break
                except BufferError:
                    producer.poll(0.01)
        sent = due
        producer.poll(0)
        if rate is not None:
            time.sleep(0.002)
    producer.flush()
    return time.monotonic() - began


def expected(steps: list[Step]) -> Iterator[int]:
    """The numbers of the interactions that have to be joined."""
    seen: tuple[set[int], set[int]] = (set(), set())
    for step in steps:
        seen[step.outcome].add(step.number)
    return iter(seen[0] & seen[1])


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    took = load(job["servers"], job["workspace"], schedule(job["first"], job["count"]), job["rate"])
    print(json.dumps({"seconds": took}))
