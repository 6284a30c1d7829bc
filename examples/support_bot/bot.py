"""The bot: `python -m support_bot.bot TICKETS.db` answers every ticket that has no answer yet, and ends."""

from __future__ import annotations

import sys
from pathlib import Path

import treadle

from support_bot import model, tickets

SYSTEM = "You are the support desk of a small shop. Answer in one or two sentences."


def main(database: Path) -> None:
    """Workspace and Kafka come from TREADLE_WORKSPACE and TREADLE_BOOTSTRAP_SERVERS."""
    db = tickets.connect(database)
    with treadle.Recorder(agent="support-bot") as recorder:
        for ticket in tickets.all_tickets(db):
            if ticket.answer is not None:
                continue
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ticket.question}]
            with recorder.interaction(messages=messages, task_id=f"ticket-{ticket.number}") as turn:
                completion = turn.respond(model.complete(messages))
            tickets.answered(db, ticket.number, completion["choices"][0]["message"]["content"], turn.handle)
        print(f"the bot is done; {recorder.stats()}")
    db.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
