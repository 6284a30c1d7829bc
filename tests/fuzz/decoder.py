"""The decoder under atheris: `python tests/fuzz/decoder.py --inputs 2000000 --seconds 240 --report FILE`.

Coverage-guided bytes, as records of every type, and structured events with fields from the fuzzer. Each input is judged by `oracle` and
counted by its class in the report; an input that breaks a rule ends the process with its traceback, and libFuzzer keeps it beside the
report.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["treadle_schemas"]):
    sys.path.insert(0, str(Path(__file__).parent))
    import oracle
    from treadle_schemas.codec import CLOCK, IMPORT_MARKER, INTERACTION, OUTCOME, PART
    from treadle_schemas.events import Interaction, Outcome

TYPES = [INTERACTION, OUTCOME, PART, IMPORT_MARKER, CLOCK, "dev.treadle.interaction.v2"]
NOON = "2024-05-15T12:00:00Z"
GOOD: dict[str, dict[str, Any]] = {
    INTERACTION: {
        "interaction_id": "i",
        "agent": "a",
        "messages": [{"role": "user", "content": "x"}],
        "started_at": NOON,
        "ended_at": NOON,
    },
    OUTCOME: {"interaction_id": "i", "name": "reward", "value": 1.0, "observed_at": NOON, "outcome_id": "o"},
    PART: {"episode_id": "i", "part": "0" * 32, "value": 1},
    IMPORT_MARKER: {"import_id": "m", "phase": "begin"},
}
FIELDS = sorted(
    {*Interaction.__struct_fields__, *Outcome.__struct_fields__, "part", "prev", "count", "erased", "phase"}
)
WORDS = [
    "role",
    "content",
    "user",
    "deny",
    "train",
    "kind",
    "preference",
    "head",
    "count",
    NOON,
    "i",
    "\ud83d",
    "\u0000",
    "\u2028",
]
REPORT_EVERY = 50_000


def value_of(data: atheris.FuzzedDataProvider, depth: int = 0) -> Any:
    """A value that the fuzzer chooses: JSON, and what JSON does not have."""
    match data.ConsumeIntInRange(0, 11 if depth < 4 else 8):
        case 0:
            return None
        case 1:
            return data.ConsumeBool()
        case 2:
            return data.ConsumeInt(data.ConsumeIntInRange(1, 12))
        case 3:
            return data.ConsumeFloat()
        case 4:
            return data.ConsumeRegularFloat()
        case 5 | 6:
            return data.ConsumeUnicode(data.ConsumeIntInRange(0, 12))
        case 7 | 8:
            return data.PickValueInList(WORDS)
        case 9:
            return [value_of(data, depth + 1) for _ in range(data.ConsumeIntInRange(0, 3))]
        case _:
            return {
                data.PickValueInList(WORDS) if data.ConsumeBool() else data.ConsumeUnicode(6): value_of(data, depth + 1)
                for _ in range(data.ConsumeIntInRange(0, 3))
            }


def judged(raw: bytes) -> str:
    """The class of one input. The first byte says what it is."""
    if not raw:
        return oracle.judge(None, [], None)
    mode, kind = raw[0] % 4, TYPES[(raw[0] >> 2) % len(TYPES)]
    headers: oracle.Headers = [("ce_type", kind.encode()), ("ce_workspace", b"w")]
    if mode < 2:
        return str(oracle.judge(raw[1:], headers, b"i"))
    data = atheris.FuzzedDataProvider(raw[1:])
    if mode == 2:
        return str(oracle.judge_value(value_of(data)))
    value = dict(GOOD.get(kind, GOOD[INTERACTION]))
    for _ in range(data.ConsumeIntInRange(0, 3)):
        value[data.PickValueInList(FIELDS)] = value_of(data)
    try:
        body = json.dumps(value, ensure_ascii=data.ConsumeBool()).encode(errors="surrogatepass")
    except RecursionError:
        return "refused by the harness"
    return str(oracle.judge(body, headers, b"i"))


class Run:
    """Counts until the number of inputs or the time is reached."""

    def __init__(self, inputs: int, seconds: float, report: Path) -> None:
        self._counts: Counter[str] = Counter()
        self._inputs = inputs
        self._done = 0
        self._report = report
        self._started = time.monotonic()
        self._deadline = self._started + seconds

    def one(self, raw: bytes) -> None:
        """Judge one input and count it."""
        self._counts[judged(raw)] += 1
        self._done += 1
        if self._done % REPORT_EVERY == 0 or self._done >= self._inputs:
            over = self._done >= self._inputs or time.monotonic() > self._deadline
            self._write(over)
            if over:
                os._exit(0)  # libFuzzer would go on, or end without Python's knowing

    def _write(self, over: bool) -> None:
        seconds = time.monotonic() - self._started
        told = {
            "inputs": self._done,
            "seconds": round(seconds, 1),
            "complete": over,
            "classes": dict(self._counts.most_common()),
        }
        self._report.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def seeds(folder: Path) -> None:
    """Good events to start from."""
    for n, (kind, value) in enumerate(GOOD.items()):
        first = bytes([TYPES.index(kind) << 2])
        (folder / f"{n}").write_bytes(first + json.dumps(value).encode())
        (folder / f"{n}-escaped").write_bytes(first + json.dumps({**value, "x": "\ud83d 🙂", "n": 2**70}).encode())


def main() -> None:
    """Run until the inputs or the seconds are over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2_000_000)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, required=True)
    chosen = parser.parse_args()
    run = Run(chosen.inputs, chosen.seconds, chosen.report)
    folder = Path(tempfile.mkdtemp(dir=chosen.report.parent))
    seeds(folder)
    options = [
        f"-artifact_prefix={chosen.report.parent}/",
        f"-seed={chosen.seed}",
        "-max_len=1024",
        "-rss_limit_mb=4096",
        "-timeout=20",
    ]
    atheris.Setup([sys.argv[0], *options, "-verbosity=0", str(folder)], run.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
