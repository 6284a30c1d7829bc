"""Days later, elsewhere: `python -m support_bot.followup TICKETS.db` tells treadle which answers the customers kept.

All it has is the table. It may run as often as it likes: id and time come from the table, so it tells the same outcome again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import treadle

from support_bot import tickets


def main(database: Path) -> None:
    """The handle says which workspace it belongs to; Kafka comes from TREADLE_BOOTSTRAP_SERVERS."""
    db = tickets.connect(database)
    told = 0
    for ticket in tickets.all_tickets(db):
        if ticket.handle is not None and ticket.reopened is not None:
            treadle.outcome(
                ticket.handle,
                "kept",
                not ticket.reopened,
                outcome_id=f"kept/{ticket.number}",
                observed_at=ticket.closed_at,
            )
            told += 1
    db.close()
    left = treadle.flush()
    print(f"{told} outcomes, {left} of them still on their way")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
