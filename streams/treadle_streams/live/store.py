"""The rows of the live index, in SQLite: what each row says and how it is graded, positions in the log, parts, rights.

It is the authority: the text index (`text.py`) and the vectors (`vectors.py`) only rank, and what is not shown here is in no answer.
Positions and content change in one transaction. The text index is committed before it, and what it then holds twice or too early is
written again, to the same ids, when the same records are read once more.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple

from treadle_streams.live.errors import IndexFull
from treadle_streams.live.extract import Spoken
from treadle_streams.live.ids import row_id

__all__ = ["FORMAT", "Hidden", "Row", "Rows", "StoredPart", "writing"]

FORMAT: Final = "3"
"""Of all files of an index. One of another format is made anew from the log."""

Hidden = Literal["", "unseen", "waiting", "denied", "redacted", "erased"]
"""Why a row is in no answer: its interaction was not read yet, waits for parts, may not be recalled, lost its text when it was recorded,
or names a part that was erased. Empty: it is shown."""

_SCHEMA: Final = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE positions(topic TEXT, partition INTEGER, next INTEGER NOT NULL, PRIMARY KEY(topic, partition)) WITHOUT ROWID;
CREATE TABLE rows(
    id INTEGER PRIMARY KEY, episode TEXT NOT NULL, interaction TEXT NOT NULL, hidden TEXT NOT NULL, subject TEXT,
    captured TEXT, ended_us INTEGER, content TEXT, side TEXT, needs TEXT,
    append_ms INTEGER, partition INTEGER, position INTEGER, progress TEXT, revision INTEGER, slot INTEGER UNIQUE,
    asked TEXT, request TEXT, response TEXT);
CREATE INDEX rows_of_episode ON rows(episode);
CREATE INDEX rows_waiting ON rows(hidden) WHERE hidden = 'waiting';
CREATE INDEX rows_of_subject ON rows(subject) WHERE subject IS NOT NULL;
CREATE TABLE parts(
    episode TEXT, hash TEXT, kind TEXT NOT NULL, role TEXT, text TEXT, prev TEXT, first TEXT,
    PRIMARY KEY(episode, hash)) WITHOUT ROWID;
CREATE TABLE rights(episode TEXT, interaction TEXT, at_us INTEGER NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY(episode, interaction)) WITHOUT ROWID;
CREATE TABLE metrics(name TEXT, kind TEXT, PRIMARY KEY(name, kind)) WITHOUT ROWID;
"""
_COLUMNS: Final = (
    "id, episode, interaction, hidden, subject, captured, asked, request, response, ended_us, content, side, needs, append_ms, partition, "
    "position, progress, revision, slot"
)
_BUSY_MS: Final = 5_000
_UNWRITABLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


# The texts come last: whoever reads the columns before them does not touch the pages that they fill.


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what SQLite, the text index and the system say of a failed write into IndexFull, naming the index's folder."""
    try:
        yield
    except sqlite3.OperationalError as err:
        if err.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY):
            raise
        raise IndexFull(folder, str(err)) from err
    except OSError as err:
        if err.errno not in _UNWRITABLE:
            raise
        raise IndexFull(folder, err.strerror or str(err)) from err
    except ValueError as err:  # all that tantivy raises
        if not any(f"os error {code}" in str(err) for code in _UNWRITABLE) and "was killed" not in str(err):
            raise
        raise IndexFull(folder, str(err)[:300]) from err


class Row(NamedTuple):
    """One row. JSON columns are text; `captured`, `asked`, `request` and `response` are None while it is hidden."""

    id: int
    episode: str
    interaction: str
    hidden: Hidden = "unseen"
    subject: str | None = None
    captured: str | None = None
    asked: str | None = None
    request: str | None = None
    response: str | None = None
    ended_us: int | None = None
    content: str | None = None
    """Content hash of the interaction, which decides between two of one id."""
    side: str | None = None
    needs: str | None = None
    """JSON list of the parts that the interaction names."""
    append_ms: int | None = None
    partition: int | None = None
    position: int | None = None
    """Partition and offset of the interaction."""
    progress: str | None = None
    """The newest record of `.progress`."""
    revision: int | None = None
    slot: int | None = None
    """Its place in the matrix of vectors."""

    @property
    def text(self) -> str:
        """What is searched."""
        return f"{self.request or ''}\n{self.response or ''}"


class StoredPart(NamedTuple):
    """A message of a transcript, a value or an erased part, as far as it is searched."""

    kind: str
    spoken: Spoken
    prev: str | None
    first: str | None
    """The part of the first message of the user, in a transcript that ends with this one."""


class Rows:
    """The database of one index. Writes need the index's lock; any number of processes may read."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Open one that is there. Raises sqlite3.Error."""
        self._before = 0
        target = f"{path.absolute().as_uri()}?mode={'rw' if writable else 'ro'}"
        self._db = sqlite3.connect(
            target, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_MS / 1000
        )
        if writable:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.execute("PRAGMA secure_delete=ON")
            except sqlite3.Error:
                self._db.close()
                raise

    @classmethod
    def create(cls, path: Path, meta: Mapping[str, str]) -> Rows:
        """A new one, which appears with all that belongs to it."""
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with closing(sqlite3.connect(fresh, isolation_level=None)) as database:
            database.execute("BEGIN")
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            database.executemany("INSERT INTO meta VALUES(?, ?)", meta.items())
            database.execute("COMMIT")
        fresh.replace(path)
        return cls(path, writable=True)

    def close(self) -> None:
        """Close it."""
        self._db.close()

    # ---- one transaction a batch

    def begin(self) -> None:
        """Begin a batch, where none is open."""
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
            self._before = self._db.total_changes

    @property
    def dirty(self) -> bool:
        """Whether the open batch changed anything."""
        return self._db.in_transaction and self._db.total_changes != self._before

    def commit(self) -> None:
        """Make the batch visible and durable."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")

    def rollback(self) -> None:
        """Forget the batch."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    # ---- what belongs to all

    def meta(self, name: str) -> str | None:
        """A value of the whole index."""
        found = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def set_meta(self, name: str, value: str) -> None:
        """Set a value of the whole index."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (name, value))

    def positions(self) -> dict[tuple[str, int], int]:
        """The next offset of each partition."""
        return {(t, p): n for t, p, n in self._db.execute("SELECT topic, partition, next FROM positions")}

    def set_positions(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Set the next offsets."""
        self._db.executemany(
            "INSERT OR REPLACE INTO positions VALUES(?, ?, ?)", ((t, p, n) for (t, p), n in positions.items())
        )

    def metrics(self) -> dict[str, frozenset[str]]:
        """Of each metric that was seen, the kinds of its values: number, text, bool."""
        found: dict[str, set[str]] = {}
        for name, kind in self._db.execute("SELECT name, kind FROM metrics"):
            found.setdefault(name, set()).update([kind] if kind else [])
        return {name: frozenset(kinds) for name, kinds in found.items()}

    def add_metrics(self, seen: Iterable[tuple[str, str]]) -> None:
        """Remember metrics and the kinds of their values."""
        self._db.executemany("INSERT OR IGNORE INTO metrics VALUES(?, ?)", seen)

    # ---- rows

    def row(self, episode: str, interaction: str) -> Row:
        """A row, a new one where there is none."""
        return self.by_id(row_id(episode, interaction)) or Row(row_id(episode, interaction), episode, interaction)

    def by_id(self, number: int) -> Row | None:
        """A row by its id."""
        found = self._db.execute(f"SELECT {_COLUMNS} FROM rows WHERE id = ?", (number,)).fetchone()  # noqa: S608
        return None if found is None else Row(*found)

    def by_ids(self, numbers: Sequence[int], *, texts: bool = True) -> list[Row]:
        """Those of some rows that are shown, in the order asked for; without `texts` request and response are None."""
        columns = _COLUMNS if texts else _COLUMNS.replace("asked, request, response", "NULL, NULL, NULL")
        found: dict[int, Row] = {}
        for start in range(0, len(numbers), 500):
            some = numbers[start : start + 500]
            marks = ",".join("?" * len(some))
            query = f"SELECT {columns} FROM rows WHERE id IN ({marks}) AND hidden = ''"  # noqa: S608
            found.update((row[0], Row(*row)) for row in self._db.execute(query, some))
        return [found[number] for number in numbers if number in found]

    def visible(self, numbers: Sequence[int]) -> list[int]:
        """Those of some rows that are shown."""
        found: list[int] = []
        for start in range(0, len(numbers), 500):
            some = numbers[start : start + 500]
            marks = ",".join("?" * len(some))
            query = f"SELECT id FROM rows WHERE id IN ({marks}) AND hidden = ''"  # noqa: S608
            found += [number for (number,) in self._db.execute(query, some)]
        return found

    def in_slots(self, slots: Sequence[int]) -> list[int]:
        """The ids of the rows in these places of the matrix, in the order asked for."""
        found: dict[int, int] = {}
        for start in range(0, len(slots), 500):
            some = slots[start : start + 500]
            marks = ",".join("?" * len(some))
            query = f"SELECT slot, id FROM rows WHERE slot IN ({marks}) AND hidden = ''"  # noqa: S608
            found.update(self._db.execute(query, some))
        return [found[slot] for slot in slots if slot in found]

    def of_episode(self, episode: str) -> list[Row]:
        """All rows of an episode."""
        return [Row(*r) for r in self._db.execute(f"SELECT {_COLUMNS} FROM rows WHERE episode = ?", (episode,))]  # noqa: S608

    def shown(self) -> Iterator[Row]:
        """All rows that are in answers, by id."""
        with closing(self._db.execute(f"SELECT {_COLUMNS} FROM rows WHERE hidden = '' ORDER BY id")) as found:  # noqa: S608
            yield from (Row(*row) for row in found)

    def waiting(self) -> list[Row]:
        """All rows whose interaction has to be read again."""
        return [Row(*r) for r in self._db.execute(f"SELECT {_COLUMNS} FROM rows WHERE hidden = 'waiting'")]  # noqa: S608

    def count(self) -> dict[str, int]:
        """How many rows there are, by `hidden`."""
        return dict(self._db.execute("SELECT hidden, count(*) FROM rows GROUP BY hidden"))

    def put(self, row: Row) -> None:
        """Write a row."""
        marks = ",".join("?" * len(row))
        self._db.execute(f"INSERT OR REPLACE INTO rows({_COLUMNS}) VALUES({marks})", row)

    def grade(self, number: int, progress: str, revision: int) -> None:
        """Set what `.progress` says of a row that is there."""
        self._db.execute("UPDATE rows SET progress = ?, revision = ? WHERE id = ?", (progress, revision, number))

    def free_slot(self) -> int:
        """A place of the matrix that no row has."""
        (top,) = self._db.execute("SELECT coalesce(max(slot), -1) + 1 FROM rows").fetchone()
        return int(top)

    def clear_slots(self) -> None:
        """Give all places of the matrix back."""
        self._db.execute("UPDATE rows SET slot = NULL WHERE slot IS NOT NULL")

    def set_slots(self, slots: Iterable[tuple[int | None, int]]) -> None:
        """Give rows (slot, id) places in the matrix."""
        self._db.executemany("UPDATE rows SET slot = ? WHERE id = ?", slots)

    # ---- parts and rights

    def part(self, episode: str, name: str) -> StoredPart | None:
        """A part of an episode."""
        found = self._db.execute(
            "SELECT kind, role, text, prev, first FROM parts WHERE episode = ? AND hash = ?", (episode, name)
        ).fetchone()
        return None if found is None else StoredPart(found[0], Spoken(found[1], found[2]), found[3], found[4])

    def put_part(self, episode: str, name: str, part: StoredPart) -> None:
        """Keep a part."""
        self._db.execute(
            "INSERT OR REPLACE INTO parts VALUES(?, ?, ?, ?, ?, ?, ?)",
            (episode, name, part.kind, *part.spoken, part.prev, part.first),
        )

    def forget_parts(self, episode: str) -> None:
        """Forget what the messages of an episode said; that parts were erased is kept."""
        self._db.execute("DELETE FROM parts WHERE episode = ? AND kind <> 'erased'", (episode,))

    def right(self, episode: str, interaction: str) -> tuple[int, str] | None:
        """What was said last about recalling a row, or with an empty interaction about the whole episode: (when, allow or deny)."""
        return self._db.execute(  # type: ignore[no-any-return]
            "SELECT at_us, value FROM rights WHERE episode = ? AND interaction = ?", (episode, interaction)
        ).fetchone()

    def set_right(self, episode: str, interaction: str, at_us: int, value: str) -> None:
        """Keep what was said about recalling."""
        self._db.execute("INSERT OR REPLACE INTO rights VALUES(?, ?, ?, ?)", (episode, interaction, at_us, value))

    # ---- erasure

    def subjects(self) -> list[str]:
        """All subjects of rows."""
        return [s for (s,) in self._db.execute("SELECT DISTINCT subject FROM rows WHERE subject IS NOT NULL")]

    def episodes_of(self, subject: str) -> list[str]:
        """The episodes in which a subject occurs."""
        return [e for (e,) in self._db.execute("SELECT DISTINCT episode FROM rows WHERE subject = ?", (subject,))]

    def episodes(self) -> list[str]:
        """All episodes of which something is kept."""
        found = self._db.execute(
            "SELECT episode FROM rows UNION SELECT episode FROM parts UNION SELECT episode FROM rights"
        )
        return [episode for (episode,) in found]

    def delete_episode(self, episode: str) -> None:
        """Delete all that is known of an episode."""
        for table in ("rows", "parts", "rights"):
            self._db.execute(f"DELETE FROM {table} WHERE episode = ?", (episode,))  # noqa: S608

    def scrub(self) -> bool:
        """Write the file anew, so that nothing deleted is left in it or in its log. False where a reader was in the way."""
        self._db.execute("VACUUM")
        (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def unusable(self, expected: Mapping[str, str]) -> str | None:
        """Why this is no index with these values; None where it is one."""
        try:
            for name, value in expected.items():
                if self.meta(name) != value:
                    return f"{name} is {self.meta(name)!r}, not {value!r}"
        except sqlite3.DatabaseError as err:
            return str(err)
        return None
