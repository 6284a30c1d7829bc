"""What the capture benchmark records: real conversations where the airline logs lie beside the checkout, else seeded ones like them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

LOGS = Path(__file__).resolve().parents[2] / "shared" / "data" / "tau-airline" / "interactions.jsonl"
EPISODE_STEPS = 50
_POOL = {3: 64, 30: 16, 300: 6}
"""How many different events of a size (KB) there are: enough that no cache of one text helps."""
_STEP_BYTES = 3_000

_WORDS = str.split(
    "the reservation passenger flight refund baggage economy business insurance payment certificate cancel change policy "
    "member silver gold regular user airport departure arrival please confirm could would because although between during "
    "I you we they it is was has been will not only also more than before after upgrade cabin seat number total cost dollar"
)


def events(kilobytes: int) -> list[dict[str, Any]]:
    """Different interactions whose messages take about that much JSON."""
    return [_event(messages, n) for n, messages in enumerate(_windows(kilobytes * 1000, _POOL[kilobytes]))]


def episode(number: int) -> list[dict[str, Any]]:
    """The requests of an agent of 50 steps, each with all that was said before: 3 KB more a step, 150 KB at the end."""
    steps = _windows(_STEP_BYTES, EPISODE_STEPS, skip=number * 7)
    said: list[dict[str, Any]] = []
    made = []
    for n, step in enumerate(steps):
        said = [*said, *step]
        made.append(_event(said, number * EPISODE_STEPS + n))
    return made


def origin() -> str:
    """Where the texts come from, for the report."""
    return "tau-airline logs" if LOGS.exists() else "seeded text"


def _event(messages: list[dict[str, Any]], number: int) -> dict[str, Any]:
    return {"messages": messages, "model": "gpt-4o", "task_id": f"airline-{number % 50}", "agent": "desk"}


def _windows(size: int, count: int, skip: int = 0) -> list[list[dict[str, Any]]]:
    """Runs of consecutive messages of about `size` bytes each; one message too long is cut."""
    source = _messages(size * (count + 1) + skip * size)
    found: list[list[dict[str, Any]]] = []
    run: list[dict[str, Any]] = []
    room = size
    for message in source:
        took = len(json.dumps(message))
        if took > room and isinstance(message.get("content"), str):
            message = {**message, "content": message["content"][: max(1, room)]}
            took = room
        run.append(message)
        room -= took
        if room < 150:
            found.append(run)
            run, room = [], size
            if len(found) == count + skip:
                break
    return found[skip:]


def _messages(least_bytes: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    total = 0
    lines = LOGS.read_bytes().splitlines() if LOGS.exists() else None
    rng = random.Random(4)
    number = 0
    while total < 2 * least_bytes:
        # without the system prompt, which is the same in all of them
        said = json.loads(lines[number % len(lines)])["messages"][1:] if lines else _made_up(rng)
        found += said
        total += len(json.dumps(said))
        number += 1
    return found


def _made_up(rng: random.Random) -> list[dict[str, Any]]:
    def text(most: int) -> str:
        return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(8, most))) + "."

    called = f"call_{rng.getrandbits(64):x}"
    arguments = json.dumps({"reservation_id": f"{rng.getrandbits(24):06X}", "reason": text(12)})
    call = {"id": called, "type": "function", "function": {"name": "get_reservation_details", "arguments": arguments}}
    return [
        {"role": "user", "content": text(60)},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": called, "content": json.dumps({text(3): text(20) for _ in range(8)})},
        {"role": "assistant", "content": text(120)},
    ]
