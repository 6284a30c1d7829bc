"""The shop's own database: tickets, what the bot answered, and treadle's handle of that answer, a short text in a column."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple


class Ticket(NamedTuple):
    """One row of the table."""

    number: int
    question: str
    answer: str | None
    handle: str | None
    reopened: bool | None
    closed_at: str | None


def connect(path: Path) -> sqlite3.Connection:
    """The database, made where it is missing."""
    db = sqlite3.connect(path)
    db.execute(
        "CREATE TABLE IF NOT EXISTS tickets "
        "(number INTEGER PRIMARY KEY, question TEXT NOT NULL, answer TEXT, handle TEXT, reopened INTEGER, closed_at TEXT)"
    )
    return db


def ask(db: sqlite3.Connection, question: str) -> None:
    """A customer writes."""
    with db:
        db.execute("INSERT INTO tickets (question) VALUES (?)", (question,))


def answered(db: sqlite3.Connection, number: int, answer: str, handle: str) -> None:
    """The bot answered; the handle stays with the answer."""
    with db:
        db.execute("UPDATE tickets SET answer = ?, handle = ? WHERE number = ?", (answer, handle, number))


def closed(db: sqlite3.Connection, number: int, *, reopened: bool) -> None:
    """The customer came back with the same question, or did not for three days."""
    moment = datetime.now(UTC).isoformat()
    with db:
        db.execute("UPDATE tickets SET reopened = ?, closed_at = ? WHERE number = ?", (reopened, moment, number))


def all_tickets(db: sqlite3.Connection) -> list[Ticket]:
    """Every ticket, in order."""
    rows = db.execute("SELECT number, question, answer, handle, reopened, closed_at FROM tickets ORDER BY number")
    return [
        Ticket(n, asked, said, handle, None if again is None else bool(again), moment)
        for n, asked, said, handle, again, moment in rows
    ]
