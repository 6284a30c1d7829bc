"""The agent: `python -m background_evaluator.agent` summarises a few notes. It knows nothing of the evaluator."""

from __future__ import annotations

import treadle

NOTES = (
    "The pump in hall 3 lost 40 percent of its pressure at 14:20 and was restarted.",
    "Delivery 7781 came 2 days late because the truck broke down near the border.",
    "We talked about the colour of the new chairs for an hour and decided nothing.",
    "Temperature in tank 9 rose to 81 degrees, the limit is 80, so we opened valve 2.",
    "The audit found 3 open points, of which 2 are older than 90 days.",
    "The night shift reports nothing unusual.",
)


def summarise(note: str) -> str:
    """What the model says: it is good at short notes and drops what comes late in long ones."""
    return " ".join(note.split()[:10]).rstrip(".,") + "."


def main() -> None:
    """Workspace and Kafka come from the environment."""
    with treadle.Recorder(agent="summariser", model="scripted-1") as recorder:
        for number, note in enumerate(NOTES):
            with recorder.interaction(messages=f"Summarise in one line: {note}", task_id=f"note-{number}") as turn:
                turn.respond(summarise(note))


if __name__ == "__main__":
    main()
