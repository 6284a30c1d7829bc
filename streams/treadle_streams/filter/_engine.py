"""Evaluating a filter: DuckDB over Arrow batches, without access to anything outside.

There is no second evaluator for single rows: two would have to be kept equal in every corner of SQL (casts, collation, time zones,
overflow), and one call costs about a millisecond whether it is asked about one row or a thousand. So readers that follow a topic ask in
batches.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import duckdb
import pyarrow as pa
from treadle_corpus import Decision
from treadle_schemas.records import GradedRow

from treadle_streams.filter._columns import Column, SqlType
from treadle_streams.filter._grammar import ANY_COLUMN, NOW, Checked, check_syntax, resolve
from treadle_streams.filter.errors import FilterTypeError

__all__ = ["Filter", "compile"]

_ARROW: Final[Mapping[SqlType, Any]] = {
    "VARCHAR": pa.string(),
    "DOUBLE": pa.float64(),
    "BIGINT": pa.int64(),
    "BOOLEAN": pa.bool_(),
    "TIMESTAMPTZ": pa.timestamp("us", tz="UTC"),
}
_CONFIG: Final = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "threads": 1,
}


class Filter:
    """A compiled filter: a SQL boolean expression in three-valued logic. Only true selects.

    Pending and absent metrics are NULL, so `reward > 0` is then neither true nor false; `state(METRIC)` tells them apart. What cannot be
    computed for a row (a cast, a division by zero) is NULL too. `now` is the watermark that the filter was compiled with.
    """

    def __init__(self, text: str | None, checked: Checked | None, now_ms: int) -> None:
        """Use `compile`."""
        self.text = text
        self._checked = checked
        self._now = datetime.fromtimestamp(now_ms / 1000, UTC)
        parts = ["all"]
        if checked is not None:
            parts = [checked.sql, *(c.sql_type for c in checked.columns)]
            if checked.uses_now:
                parts.append(str(now_ms))
            self._connection = _database().cursor()
        self.identity = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        """Names all that a decision depends on beside the row: expression, types, and the time where it is asked for."""

    def at(self, now_ms: int) -> Filter:
        """The same filter with another `now`."""
        return self if self._checked is None or not self._checked.uses_now else Filter(self.text, self._checked, now_ms)

    def matches(self, rows: Sequence[GradedRow]) -> list[bool | None]:
        """True, False or None (unknown) for each row. A thousand rows in one call cost little more than one."""
        if self._checked is None or not rows:
            return [True] * len(rows)
        return self._run(f"TRY({self._checked.sql})", rows)

    def select(self, rows: Sequence[GradedRow]) -> list[Decision]:
        """The decision for each row: selected, rejected, or why it is unknown (a metric it needs is pending, or absent)."""
        return [self._decision(row, match) for row, match in zip(rows, self.matches(rows), strict=True)]

    def _decision(self, row: GradedRow, match: bool | None) -> Decision:
        if match is not None:
            return "selected" if match else "rejected"
        named = {c.metric for c in self._checked.columns} if self._checked else set()
        states = (state for name, (state, _) in row.grade.metrics.items() if "*" in named or name in named)
        return "pending" if "pending" in states else "absent"

    def _check_types(self) -> None:
        """Raises FilterTypeError. One row of NULLs makes DuckDB look at types and literals, and at nothing else."""
        assert self._checked is not None
        nulls = {f"c{n}": pa.array([None], _ARROW[c.sql_type]) for n, c in enumerate(self._checked.columns)}
        probe = pa.table({**nulls, NOW: pa.array([self._now], _ARROW["TIMESTAMPTZ"])})
        found = self._execute(self._checked.sql, probe)
        kind = str(found.description[0][1])
        if kind != "BOOLEAN":
            raise FilterTypeError(self.text or "", f"it is a {kind}, not a condition; compare it with something")

    def _run(self, sql: str, rows: Sequence[GradedRow]) -> list[bool | None]:
        assert self._checked is not None
        arrays = [_array(column, rows) for column in self._checked.columns]
        arrays.append(pa.array([self._now] * len(rows), _ARROW["TIMESTAMPTZ"]))
        names = [*(f"c{n}" for n in range(len(arrays) - 1)), NOW]
        table = pa.table(dict(zip(names, arrays, strict=True)))
        return [value for (value,) in self._execute(sql, table).fetchall()]

    def _execute(self, sql: str, table: Any) -> duckdb.DuckDBPyRelation:
        try:
            found = self._connection.from_arrow(table).query("rows_", f"SELECT {sql} FROM rows_")  # noqa: S608
            return found.execute()
        except duckdb.Error as err:
            raise FilterTypeError(self.text or "", _readable(str(err))) from None


def compile(
    text: str | None, metrics: Mapping[str, SqlType], now_ms: int, columns: Collection[str] = ANY_COLUMN
) -> Filter:
    """Compile a filter; None selects every row.

    `metrics` gives the types of those that are declared or were seen (`metric_types`); `now_ms` is the watermark. `columns` are those
    that the rows have, for rows that are not whole (`PROGRESS_COLUMNS`). Raises FilterError.
    """
    if text is None:
        return Filter(None, None, now_ms)
    made = Filter(text, resolve(text, check_syntax(text), metrics, columns), now_ms)
    made._check_types()
    return made


@functools.cache
def _database() -> duckdb.DuckDBPyConnection:
    """The one database of this process, empty for ever: making one costs 10 ms and opens files, a connection to it does neither."""
    database = duckdb.connect(":memory:", config=dict(_CONFIG))
    database.execute("SET GLOBAL TimeZone='UTC'")
    # division by zero is NULL: NaN would be greater than anything
    database.execute("SET GLOBAL ieee_floating_point_ops=false")
    database.execute("SET GLOBAL lock_configuration=true")
    return database


os.register_at_fork(after_in_child=_database.cache_clear)


def _array(column: Column, rows: Sequence[GradedRow]) -> pa.Array:
    values = [column.read(row) for row in rows]
    try:
        return pa.array(values, _ARROW[column.sql_type])
    except UnicodeEncodeError:
        # lone surrogates are allowed in JSON, and are no text for anything else
        whole = [v.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if v else v for v in values]
        return pa.array(whole, _ARROW[column.sql_type])


def _readable(message: str) -> str:
    first = message.split("\n\n", 1)[0].replace("\n", " ")
    _, _, problem = first.partition("Error: ")
    return (problem or first)[:300]
