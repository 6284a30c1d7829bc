"""What it costs that a workspace encrypts by subject: recording an event, and joining a row, sealed against clear.

    python benchmarks/encryption.py [--quick] --json FILE

Interactions of 3 KB and of 30 KB of many subjects, each with an outcome. In every round both kinds take their turns, in changing order:

- `record_us`: CPU time of the calling thread for `Recorder.record` with the file of the spool behind it, an event.
- `outcome_us`: the same for `Recorder.outcome`.
- `join_us`: CPU time of the join's plan for a row, interaction and outcome in one batch of 200 rows: checks, fold, grade, state and
  outputs as bytes. Kafka and RocksDB come on top, and cost the same in both.
- `bytes`: of an interaction's value.

`added` is sealed minus clear, median of rounds.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
import treadle
from _machine import describe
from treadle.keys import FolderKeys, KeyRing, keys_in
from treadle.policies import remember
from treadle.settings import Settings
from treadle_schemas import Metric, WorkspaceSettings, codec
from treadle_schemas.moments import from_micros
from treadle_schemas.pii import BUILT_IN
from treadle_schemas.sealing import NO_KEYS, about
from treadle_streams.join import Arrival, Grading, MemoryPartition

KINDS: Final = ("clear", "sealed")
SIZES_KB: Final = (3, 30)
_BATCH: Final = 200
_SUBJECTS: Final = 200
_T0_MS: Final = 1_700_000_000_000
_SETTINGS: Final = WorkspaceSettings(
    workspace="bench", partitions=1, metrics=(Metric(name="reward", required=True),), pii=BUILT_IN["off"]
)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 400 events instead of 9 of 2,000")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    rounds, count = (3, 400) if options.quick else (9, 2_000)
    logging.getLogger("treadle").setLevel(
        logging.ERROR
    )  # there is no Kafka, so every recorder says that its events stay in the spool
    machine = describe("cryptography")
    samples: list[dict[str, Any]] = []
    for number in range(rounds):
        for kilobytes in SIZES_KB:
            for kind in KINDS if number % 2 else reversed(KINDS):
                with tempfile.TemporaryDirectory(prefix="encryption-") as folder:
                    samples.append(
                        {
                            "round": number,
                            "kb": kilobytes,
                            "kind": kind,
                            **measure(Path(folder), kind, kilobytes, count),
                        }
                    )
    results = [_summary(kilobytes, samples) for kilobytes in SIZES_KB]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": machine, "results": results, "samples": samples}, indent=1) + "\n")
    for result in results:
        print(json.dumps(result))


def measure(home: Path, kind: str, kilobytes: int, count: int) -> dict[str, float]:
    """One kind, one size: microseconds of CPU an event and a row."""
    workspace = msgspec.structs.replace(_SETTINGS, encrypt="subjects" if kind == "sealed" else "nothing")
    remember(home, workspace)
    settings = Settings.load({"TREADLE_HOME": str(home), "TREADLE_BOOTSTRAP_SERVERS": "127.0.0.1:9"})
    said = texts(kilobytes, count)
    ring = KeyRing(FolderKeys(settings.keys_folder / "bench"))
    if kind == "sealed":
        for n in range(_SUBJECTS):
            ring.of_subject(f"s{n}")
    with keys_in(settings.keys_folder):
        recorded = _recorded(settings, said)
    return {**recorded, **_joined(workspace, ring, said)}


def texts(kilobytes: int, count: int) -> list[dict[str, Any]]:
    """Interactions, each of another text."""
    draw = random.Random(7)
    words = [f"{draw.randrange(16**7):07x}" for _ in range(4_000)]
    return [
        {
            "messages": [
                {"role": "user", "content": " ".join(draw.choices(words, k=kilobytes * 100))},
                {"role": "assistant", "content": " ".join(draw.choices(words, k=kilobytes * 25))},
            ],
            "interaction_id": f"i{n}",
            "subject": f"s{n % _SUBJECTS}",
        }
        for n in range(count)
    ]


def _recorded(settings: Settings, said: list[dict[str, Any]]) -> dict[str, float]:
    with treadle.Recorder("bench", settings=settings, raise_errors=True) as recorder:
        for one in said[:50]:  # detectors, files and keys are there from here on
            recorder.record(**{**one, "interaction_id": f"w{one['interaction_id']}"})
        began = time.thread_time()
        handles = [recorder.record(**one) for one in said]
        recorded = time.thread_time()
        for handle in handles:
            recorder.outcome(handle, "reward", 0.5)
        ended = time.thread_time()
        recorder.close(0.0)
    return {"record_us": _us(recorded - began, said), "outcome_us": _us(ended - recorded, said)}


def _joined(workspace: WorkspaceSettings, ring: KeyRing, said: list[dict[str, Any]]) -> dict[str, float]:
    sealed = workspace.encrypt == "subjects"
    partition = MemoryPartition(Grading(workspace, ring if sealed else NO_KEYS))
    arrivals: list[Arrival] = []
    size = 0
    for n, one in enumerate(said):
        at = from_micros((_T0_MS + n) * 1000)
        key = one["interaction_id"].encode()
        interaction = codec.encode({**one, "agent": "a", "started_at": at, "ended_at": at})
        outcome = codec.encode(
            {"interaction_id": f"i{n}", "episode_id": f"i{n}", "name": "reward", "value": 0.5, "observed_at": at}
            | {"outcome_id": f"o{n}"}
        )
        if sealed:
            cipher = ring.of_subject(one["subject"])
            interaction = cipher.seal(interaction, about("bench", codec.INTERACTION, key))
            outcome = cipher.seal(outcome, about("bench", codec.OUTCOME, key))
        size += len(interaction)
        for kind, event_type, value in (
            ("interactions", codec.INTERACTION, interaction),
            ("outcomes", codec.OUTCOME, outcome),
        ):
            headers: Any = codec.make_headers(event_type, "bench", source="bench", event_id=f"i{n}")
            arrivals.append(Arrival(kind, 0, n, _T0_MS + n, key, value, headers))  # type: ignore[arg-type]
    began = time.thread_time()
    for start in range(0, len(arrivals), 2 * _BATCH):
        partition.step(arrivals[start : start + 2 * _BATCH])
    return {"join_us": _us(time.thread_time() - began, said), "bytes": size / len(said)}


def _summary(kilobytes: int, samples: list[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {"kb": kilobytes}
    for name in ("record_us", "outcome_us", "join_us", "bytes"):
        found = {k: [s[name] for s in samples if (s["kb"], s["kind"]) == (kilobytes, k)] for k in KINDS}
        out[name] = {kind: round(median(values), 1) for kind, values in found.items()}
        out[name]["added"] = round(median(b - a for a, b in zip(found["clear"], found["sealed"], strict=True)), 1)
    return out


def _us(seconds: float, said: list[dict[str, Any]]) -> float:
    return seconds * 1e6 / len(said)


if __name__ == "__main__":
    main()
