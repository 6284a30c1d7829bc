"""Who belongs to whom in an export: on disk, so that memory stays bounded whatever its size."""

from __future__ import annotations

import re
import sqlite3
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from treadle_schemas.canonical import canonical_json, dumps, loads
from treadle_schemas.errors import FieldError, shown
from treadle_schemas.moments import to_micros

from treadle_streams.importing.formats._items import Call, Item, Remember, Score, Span, Trace

__all__ = ["Index", "Place"]

MAX_KNOWN_TRACES: Final = 10_000
"""Traces whose last call is kept in memory."""
MAX_LAST_CALLS: Final = 50
"""Calls at the end of a trace among which one of the main slot is looked for."""
MAX_ANCESTORS: Final = 1000
"""Spans above a call that are looked at. A damaged export may hold a loop."""
# every span of a trace may say a part of what is known of it
_UPSERT: Final = """
INSERT INTO trace VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET
  name = coalesce(nullif(?2, ''), name), session = coalesce(?3, session), subject = coalesce(?4, subject),
  tags = CASE ?5 WHEN CAST('{}' AS BLOB) THEN tags ELSE ?5 END
"""
_NOT_SLOT = re.compile(r"[^a-z0-9_-]+")


class Place(NamedTuple):
    """Where a call stands: its episode, its agent and its slot."""

    episode: str
    agent: str
    slot: str
    subject: str | None
    tags: dict[str, Any]


class Index:
    """Spans and traces by id, in a temporary SQLite file that is gone with the object."""

    def __init__(self) -> None:
        self._last: dict[str, str | None] = {}
        self._database = sqlite3.connect("")  # an empty name is a temporary file, kept in memory while small
        self._database.executescript(
            """
            CREATE TABLE span (
                id TEXT PRIMARY KEY, trace TEXT, parent TEXT, name TEXT, kind TEXT, ended INTEGER, session TEXT, subject TEXT,
                failed INTEGER
            );
            CREATE INDEX by_trace ON span (trace, kind, failed, ended);
            CREATE INDEX by_parent ON span (parent);
            CREATE TABLE trace (id TEXT PRIMARY KEY, name TEXT, session TEXT, subject TEXT, tags BLOB);
            CREATE TABLE memory (key TEXT PRIMARY KEY, value BLOB, twice INTEGER DEFAULT 0);
            """
        )

    def add(self, item: Item) -> None:
        """Note what other items may refer to."""
        match item:
            case Span():
                kind = "call" if isinstance(item, Call) else "agent" if item.agent else "other"
                ended = to_micros(item.ended_at, "$") if item.ended_at else 0
                failed = isinstance(item, Call) and item.failed
                row = (
                    item.id,
                    item.trace_id,
                    item.parent_id,
                    item.name,
                    kind,
                    ended,
                    item.session,
                    item.subject,
                    failed,
                )
                self._database.execute("INSERT OR REPLACE INTO span VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            case Trace():
                row_ = (item.id, item.name, item.session, item.subject, canonical_json(item.tags))
                self._database.execute(_UPSERT, row_)
            case Remember():
                self._database.execute(
                    "INSERT INTO memory (key, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET twice = twice OR value != ?2",
                    (item.key, dumps(item.value)),
                )
            case _:
                pass

    def recall(self, key: str) -> Any:
        """What was remembered under a key, or None."""
        found = self._database.execute("SELECT value, twice FROM memory WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        if found[1]:
            raise FieldError(
                "$", f"{shown(key)} stands for two different things in these files; import them one by one"
            )
        return loads(found[0])

    def place(self, call: Call) -> Place:
        """Where a call belongs, by the spans above it and by what is said of its trace."""
        trace = self._database.execute(
            "SELECT name, session, subject, tags FROM trace WHERE id = ?", (call.trace_id,)
        ).fetchone()
        above = self._above(call.id, call.parent_id)
        session = (
            call.session
            or (trace[1] if trace else None)
            or next((span.session for span in above if span.session), None)
        )
        agents = [span.name for span in above if span.agent and span.name]
        top = (
            agents[-1]
            if agents
            else (trace[0] if trace and trace[0] else "") or (above[-1].name if above else "") or call.name
        )
        slot = (
            _NOT_SLOT.sub("-", agents[0].lower()).strip("-_")[:63] if len(agents) > 1 and agents[0] != top else "main"
        )
        subject = (
            call.subject
            or (trace[2] if trace else None)
            or next((span.subject for span in above if span.subject), None)
        )
        return Place(session or call.trace_id, top, slot or "main", subject, loads(trace[3]) if trace else {})

    def judged(self, score: Score) -> dict[str, str]:
        """What an outcome is about: the call itself; of another span the last call below it; of a trace its last call; else the session.

        A span that is not in the export is taken for a call that was imported before. A trace that is not there, or that holds no call, is
        named by reference: `span:ID`, `trace:ID`.
        """
        if score.span_id is not None:
            found = self._database.execute("SELECT id, kind FROM span WHERE id = ?", (score.span_id,)).fetchone()
            if found is None or found[1] == "call":
                return {"interaction_id": score.span_id}
            below = self._last_below(score.span_id)
            return {"interaction_id": below} if below else {"reference": f"span:{score.span_id}"}
        if score.trace_id is not None:
            last = self.last_of(score.trace_id)
            return {"interaction_id": last} if last else {"reference": f"trace:{score.trace_id}"}
        return {"episode_id": score.session or ""}

    def last_of(self, trace: str) -> str | None:
        """The call of a trace that gave its answer: the last that did not fail, of the main slot where there is one."""
        if trace not in self._last:
            if len(self._last) >= MAX_KNOWN_TRACES:
                self._last.clear()
            rows = self._database.execute(
                "SELECT id, parent FROM span WHERE trace = ? AND kind = 'call' ORDER BY failed, ended DESC, id DESC LIMIT ?",
                (trace, MAX_LAST_CALLS),
            ).fetchall()
            main = (name for name, parent in rows if self._is_main(name, parent))
            self._last[trace] = next(main, rows[0][0] if rows else None)
        return self._last[trace]

    def _is_main(self, span: str, parent: str | None) -> bool:
        return len({above.name for above in self._above(span, parent) if above.agent and above.name}) < 2

    def _last_below(self, span: str) -> str | None:
        found = self._database.execute(
            """
            WITH RECURSIVE below (id) AS (SELECT ?1 UNION SELECT span.id FROM span JOIN below ON span.parent = below.id)
            SELECT id FROM span WHERE kind = 'call' AND id IN below ORDER BY failed, ended DESC, id DESC LIMIT 1
            """,
            (span,),
        ).fetchone()
        return found[0] if found else None

    def _above(self, span: str, parent: str | None) -> list[Span]:
        """The spans above a span with that parent, the nearest first."""
        found: list[Span] = []
        seen = {span}
        while parent is not None and parent not in seen and len(found) < MAX_ANCESTORS:
            seen.add(parent)
            row = self._database.execute(
                "SELECT trace, parent, name, kind, session, subject FROM span WHERE id = ?", (parent,)
            ).fetchone()
            if row is None:
                break
            found.append(
                Span(
                    id=parent,
                    trace_id=row[0],
                    parent_id=row[1],
                    name=row[2],
                    agent=row[3] == "agent",
                    session=row[4],
                    subject=row[5],
                )
            )
            parent = row[1]
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database.close()
