"""The evaluator: `python -m background_evaluator.evaluator PLACE.json [MOST]` scores every new summary, and ends after some quiet seconds.

Its order is what makes it safe to kill: 1. score, 2. wait until the outcomes are acknowledged, 3. write down the place. A kill between two
steps repeats the earlier ones. The outcomes have ids and times made of the interaction's, so a repetition is the same outcome. With MOST it
kills itself after so many, for the demonstration.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import treadle

from background_evaluator import rubric

QUIET_S = 2.0


def main(place: Path, most: int | None = None) -> None:
    """Workspace and Kafka come from the environment."""
    start = {int(n): offset for n, offset in json.loads(place.read_text()).items()} if place.exists() else {}
    scored = 0
    idle_s = QUIET_S if most is None else None
    with treadle.Recorder(agent="evaluator") as recorder:
        with treadle.consume(recorder.workspace, "interactions", start=start, idle_s=idle_s) as interactions:
            for interaction in interactions:
                if interaction.agent != "summariser" or interaction.status != "ok":
                    continue
                note = str(interaction.messages[0]["content"]).partition(": ")[2]
                value, reason = rubric.score(note, str(interaction.messages[-1]["content"]))
                handle = treadle.Handle(recorder.workspace, interaction.episode, interaction.interaction_id)
                name, moment = interaction.interaction_id, interaction.ended_at
                recorder.outcome(handle, "judge", value, outcome_id=f"judge/{name}", observed_at=moment)
                recorder.comment(handle, reason, outcome_id=f"reason/{name}", observed_at=moment)
                scored += 1
                if scored == most:
                    recorder.flush()
                    os.kill(os.getpid(), signal.SIGKILL)  # after the outcomes, before the place: the worst moment
                if recorder.flush(10) == 0:
                    place.write_text(json.dumps(interactions.positions))
    print(f"scored {scored} summaries")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
