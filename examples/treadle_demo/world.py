"""The demo's world: the process through which customers and the finance department speak. It publishes outcomes, the agent does not.

Outcomes come out of order, some before their interaction has been recorded, a few twice; some are retracted; some never come, and what
falls after the end of the turn's day waits for a later turn.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import orjson
from treadle import Recorder
from treadle_schemas.moments import from_micros

from treadle_demo._pipe import answer, commands
from treadle_demo.clock import EventClock

__all__ = ["World", "main"]

DUPLICATED = 0.02
"""Share of outcomes sent twice."""
EARLY = 0.05
"""Share of a turn's outcomes that speak before the interaction is recorded."""


class World:
    """Holds what will be said, and says what is due. Deterministic by seed, up to the append order of other processes."""

    def __init__(self, recorder: Recorder, seed: int) -> None:
        self.recorder = recorder
        self.rng = random.Random(f"world-{seed}")
        self.waiting: list[dict[str, Any]] = []
        self.clock = EventClock()

    def learn(self, file: Path) -> None:
        """Take in the fates of a turn's episodes."""
        for line in file.read_bytes().splitlines():
            episode = orjson.loads(line)
            for n, verdict in enumerate(episode["verdicts"]):
                interaction = episode["handle"].rsplit("/", 1)[1]
                self.waiting.append(
                    {
                        "target": episode["handle"],
                        "name": verdict["name"],
                        "value": verdict["value"],
                        "op": verdict["op"],
                        "source": verdict["source"],
                        "outcome_id": f"{interaction}-{verdict['ref'] or n}",
                        "at_us": episode["ended_us"] + int(verdict["after_s"] * 1e6),
                    }
                )

    def speak(self, cut_us: int | None, share: float = 1.0) -> dict[str, int]:
        """Publish a share of what is due at `cut_us` (None: everything), in random order. Counts by kind."""
        due = [o for o in self.waiting if cut_us is None or o["at_us"] <= cut_us]
        self.rng.shuffle(due)
        due = due[: max(1, int(len(due) * share))] if share < 1.0 else due
        said = {id(o) for o in due}
        self.waiting = [o for o in self.waiting if id(o) not in said]
        counts = {"outcomes": 0, "duplicates": 0, "retracted": 0}
        for outcome in due:
            again = self.rng.random() < DUPLICATED
            counts["outcomes"] += 1
            counts["duplicates"] += again
            counts["retracted"] += outcome["op"] == "retract"
            for _ in range(1 + again):
                self.recorder.outcome(
                    outcome["target"],
                    outcome["name"],
                    outcome["value"],
                    op=outcome["op"],
                    outcome_id=outcome["outcome_id"],
                    observed_at=from_micros(outcome["at_us"]),
                    source=outcome["source"],
                )
        counts["left"] = self.recorder.flush(30.0)
        counts["waiting"] = len(self.waiting)
        return counts

    def broken_grader(self, file: Path, cut_us: int) -> dict[str, int]:
        """A grader with its sign wrong scores every episode of the turn, under a metric of its own."""
        graded = 0
        for line in file.read_bytes().splitlines():
            episode = orjson.loads(line)
            interaction = episode["handle"].rsplit("/", 1)[1]
            self.recorder.outcome(
                episode["handle"],
                "broken_grader",
                1.0 - episode["success"],
                outcome_id=f"{interaction}-broken",
                observed_at=from_micros(cut_us),
                source="broken grader",
            )
            graded += 1
        return {"outcomes": graded, "left": self.recorder.flush(30.0)}


def main() -> None:
    """Serve commands until the pipe closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    recorder = Recorder(args.workspace, agent="world")
    world = World(recorder, args.seed)
    answer(event="ready")
    for command in commands():
        turn = int(command["turn"])
        match command["do"]:
            case "early":
                world.learn(Path(command["file"]))
                counts = world.speak(world.clock.cut(turn), EARLY)
            case "speak":
                counts = world.speak(world.clock.cut(turn))
            case "rest":
                counts = world.speak(None)
            case _:
                counts = world.broken_grader(Path(command["file"]), world.clock.cut(turn))
        answer(event=command["do"], turn=turn, **counts)
    recorder.close()


if __name__ == "__main__":
    main()
